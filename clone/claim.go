package clone

import (
	"slices"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// A claim is the right to write regions that are not hydrated, and to mark them: at most one claim
// holds a region (I3, H15). It lies inside its operation and is in the table from the look at the map
// that justified it until its end, which alone marks.
type claim struct {
	first, end uint64 // regions
	at         int    // place in the table
	pages      int    // reserved in the pool of uncommitted pages
	waiters    requestList
}

// claimTable is scanned: there are at most as many claims as operations, some hundreds, and a scan of
// 512 takes less than the atomic operations around it.
type claimTable struct{ open []*claim }

// find gives a claim that overlaps [first, end), or nil.
func (t *claimTable) find(first, end uint64) *claim {
	for _, k := range t.open {
		if k.first < end && first < k.end {
			return k
		}
	}
	return nil
}

func (t *claimTable) add(k *claim) {
	k.at = len(t.open)
	t.open = append(t.open, k)
}

func (t *claimTable) remove(k *claim) {
	last := t.open[len(t.open)-1]
	t.open[k.at] = last
	last.at = k.at
	t.open = t.open[:len(t.open)-1]
}

// verdict is what came of the wish to claim.
type verdict uint8

const (
	claimed  verdict = iota
	nothing          // nothing in the range needs a claim any more
	excluded         // somebody else's: a request waits for its end
	full             // too many uncommitted pages: a request waits for a commit
	refused          // mode is not rw
	released         // memory that takeMemory has taken was given back: it is to be taken again
)

// span is what a claim is to be of: the regions [first, end). What of them are [zero, zeroEnd) and not hydrated is
// marked zero by its end, if anything.
type span struct{ first, end, zero, zeroEnd uint64 }

// zeroed says whether a page is marked zero as a whole, or is so: that needs no memory.
func (c *Core) zeroed(s span, page uint64) bool {
	first := page * bitmap.RegionsPerPage
	end := min(first+bitmap.RegionsPerPage, c.geo.nr)
	return s.zero <= first && end <= s.zeroEnd && (c.regions.AllZero(page) || c.regions.KeepsZeros() && !c.regions.Used(page))
}

// lacksMemory says whether the marks of a claim of s need memory of a page that is not there.
func (c *Core) lacksMemory(s span, page uint64) bool {
	return c.touch != nil && !c.touched[page].Load() && !c.regions.Full(page) && !c.zeroed(s, page)
}

// claimFor claims the regions of s for request r, unless all of them are hydrated; or it makes r
// wait, for the claim in the way, or for a commit to free the pool of uncommitted pages (I9). Hydrated
// regions inside a claim do no harm: nobody asks for a claim of those. Called without mu.
func (c *Core) claimFor(r *Request, k *claim, s span) verdict {
	c.mu.Lock()
	if c.regions.AllHydrated(s.first, s.end) {
		c.mu.Unlock()
		return nothing
	}
	v := c.open(k, s, c.mu.active.Cap())
	switch v {
	case excluded:
		r.after = startAgain
		c.mu.claims.find(s.first, s.end).waiters.push(r)
	case full:
		r.after = startAgain
		c.mu.waiters.push(r)
	}
	c.mu.Unlock()
	if v == full {
		c.kick()
	}
	return v
}

// open puts k into the table, or answers excluded, full, refused or released; room is how many pages of the pool
// may be taken in all. mu must be held.
func (c *Core) open(k *claim, s span, room int) verdict {
	if c.mu.mode != ReadWrite {
		return refused
	}
	if c.mu.claims.find(s.first, s.end) != nil {
		return excluded
	}
	pages := 0
	for page := bitmap.PageOf(s.first); page <= bitmap.PageOf(s.end-1); page++ {
		if c.lacksMemory(s, page) {
			return released
		}
		if !c.zeroed(s, page) {
			pages++
		}
	}
	if c.poolBounds && c.mu.active.Used()+c.mu.reserved+pages > room {
		return full
	}
	c.mu.reserved += pages
	k.first, k.end, k.pages = s.first, s.end, pages
	c.mu.claims.add(k)
	c.checkClaims()
	return claimed
}

// takeMemory sees to it that the marks of a claim of s need no memory that is not there (I9).
func (c *Core) takeMemory(s span) error {
	for page := bitmap.PageOf(s.first); page <= bitmap.PageOf(s.end-1); page++ {
		if !c.lacksMemory(s, page) {
			continue
		}
		if err := c.takePage(page); err != nil {
			return err
		}
	}
	return nil
}

// takePage: between the taking and the note of it nobody gives the memory back.
func (c *Core) takePage(page uint64) error {
	c.touching.Lock()
	defer c.touching.Unlock()
	err := c.touch(page)
	if err == nil {
		c.touched[page].Store(true)
	}
	return err
}

// claimBackground claims for the hydrator the first stretch in [from, end) that is still in state st
// and nobody's, or answers nothing. It never waits: what is claimed is left out (I8). When the pool is
// full or the mode is not rw it answers so.
func (c *Core) claimBackground(k *claim, st bitmap.State, from, end uint64) verdict {
	c.mu.Lock()
	v := c.openFree(k, st, from, end)
	c.mu.Unlock()
	if v == full {
		c.kick()
	}
	return v
}

// openFree leaves half of the pool to users: a request that finds it full waits for a commit, and would
// find it full again if the background took what the commit has freed (I8).
func (c *Core) openFree(k *claim, st bitmap.State, from, end uint64) verdict {
	room := c.mu.active.Cap() / 2
	for from < end {
		s, stop := c.regions.Run(from, end)
		if s != st {
			from = stop
			continue
		}
		other := c.mu.claims.firstIn(from, stop)
		if other == nil {
			return c.open(k, span{first: from, end: stop}, room)
		}
		if other.first > from {
			return c.open(k, span{first: from, end: other.first}, room)
		}
		from = other.end
	}
	return nothing
}

// firstIn gives the claim in [first, end) that begins first, or nil.
func (t *claimTable) firstIn(first, end uint64) *claim {
	var found *claim
	for _, k := range t.open {
		if k.first < end && first < k.end && (found == nil || k.first < found.first) {
			found = k
		}
	}
	return found
}

// mark is one stretch that the end of a claim marks.
type mark struct {
	plane      bitmap.Plane
	first, end uint64
}

// gain is how many bytes left state Source by a settle, per plane.
type gain struct{ hydrated, zero int64 }

// settle ends a claim: it marks (nothing when the work failed), frees the regions and wakes whoever
// waited for them, who then start again from the top.
func (c *Core) settle(k *claim, marks []mark) (g gain) {
	c.mu.Lock()
	for _, m := range marks {
		if m.plane == bitmap.PlaneHydrated {
			g.hydrated += c.markHydrated(m.first, m.end)
		} else {
			g.zero += c.markZero(m.first, m.end)
		}
	}
	c.mu.reserved -= k.pages
	c.mu.claims.remove(k)
	c.checkClaims()
	woken := k.waiters.take()
	c.mu.Unlock()
	c.wake(woken)
	return g
}

// markHydrated gives the bytes that were in state Source. mu must be held.
func (c *Core) markHydrated(first, end uint64) int64 {
	short := c.tailShort(first, end)
	zero := c.regions.NrZero()
	nr := c.regions.Mark(bitmap.PlaneHydrated, first, end, c.mu.active)
	nr -= zero - c.regions.NrZero()
	return int64(nr)<<c.geo.shift - short
}

// markZero marks what is in state Source and gives its bytes; a Z under an H would only be one more
// page to commit. mu must be held.
func (c *Core) markZero(first, end uint64) (n int64) {
	for first < end {
		st, stop := c.regions.Run(first, end)
		if st == bitmap.Source {
			short := c.tailShort(first, stop)
			n += int64(c.regions.Mark(bitmap.PlaneZero, first, stop, c.mu.active))<<c.geo.shift - short
		}
		first = stop
	}
	return n
}

// tailShort is how many bytes the tail lacks to a full region, if it is in [first, end) and about to
// leave state Source.
func (c *Core) tailShort(first, end uint64) int64 {
	last := c.geo.nr - 1
	if end != c.geo.nr || first > last || c.regions.State(last) != bitmap.Source {
		return 0
	}
	return int64(c.geo.nr)<<c.geo.shift - c.geo.size
}

// wake posts requests to their lanes.
func (c *Core) wake(l requestList) {
	for r := l.pop(); r != nil; r = l.pop() {
		r.lane.post(r)
	}
}

// grow makes room for the claims of n more operations, so that add never allocates.
func (t *claimTable) grow(n int) { t.open = slices.Grow(t.open, cap(t.open)+n) }
