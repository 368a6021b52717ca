package clone

import "github.com/ublk-clone/ublk-clone/bitmap"

// EachDurable calls visit for stretches that are durably hydrated, in bytes, in order; two that
// follow each other may touch. Where marks of a page wait for a commit it looks at pieces of unit
// bytes, and leaves out those that are not durable as a whole. H is final, so what is visited stays
// so; what becomes durable meanwhile may be missed.
//
// Any thread. The lock is held for a page at a time and not while visit is called. A mark is
// recorded as uncommitted before it shows in the map, so a region that shows as H, and then is not
// recorded, is committed.
func (c *Core) EachDurable(unit int64, visit func(off, length int64)) {
	step := max(1, uint64(unit>>c.geo.shift))
	for at, nr := uint64(0), c.geo.Regions(); at < nr; {
		first, ok := c.regions.NextHydrated(at, nr)
		if !ok {
			return
		}
		_, end := c.regions.Run(first, nr)
		for first < end {
			stop := min(end, (bitmap.PageOf(first)+1)*bitmap.RegionsPerPage)
			for _, s := range c.mu.durableIn(first, stop, step) {
				off := c.geo.Start(s[0])
				visit(off, min(c.geo.Start(s[1]), c.geo.Size())-off)
			}
			first = stop
		}
		at = end
	}
}

// durableIn are the stretches of [first, end), which lies in one page and shows as H throughout,
// that are committed, in pieces that end at multiples of step. It takes the lock.
func (g *guarded) durableIn(first, end, step uint64) (found [][2]uint64) {
	g.Lock()
	defer g.Unlock()
	if !g.uncommitted(first, end) {
		return [][2]uint64{{first, end}}
	}
	for first < end {
		stop := min(end, (first/step+1)*step)
		if !g.uncommitted(first, stop) {
			found = append(found, [2]uint64{first, stop})
		}
		first = stop
	}
	return found
}
