package clone

import (
	"cmp"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// DeltaConfig is how much memory there is for marks that are not committed yet.
type DeltaConfig struct {
	// Pages is how many pages of the region map may hold such marks; 0 is the default. Start is for
	// how many there is memory from the start; 0: all. Half of them is the users'; neither a
	// request nor a Hydration may touch more pages than that.
	Pages, Start int
	// Memory reads as zeros and is for twice Start pages, which is as much as there is of it; nil:
	// the core takes its own.
	Memory []bitmap.Page
	// Want tells that half of what there is memory for is in use: GrowDelta is to be called. Called
	// under the core's lock; it must not block. May be nil.
	Want func()
}

// The memory of marks that are not committed yet grows before it is needed, and shrinks when there
// are none. A request that finds it full waits for a commit, as ever, and not for memory (I9).

// init makes the two sets, of a map of so many pages. A process that died may have left more marks
// than there is memory for at the start.
func (m *marks) init(cfg *DeltaConfig, uncommitted *bitmap.Delta, pages uint64, most int) {
	m.start, m.most, m.want = min(cmp.Or(cfg.Start, most), most), most, cfg.Want
	m.active, m.frozen = uncommitted, bitmap.NewDelta(pages, 0)
	if m.active == nil {
		m.active = bitmap.NewDelta(pages, 0)
	}
	left := m.active.Cap()
	m.most = max(m.most, left)
	for i, d := range [...]*bitmap.Delta{m.active, m.frozen} {
		d.Most(m.most)
		if n := m.start - d.Cap(); n > 0 && len(cfg.Memory) > 0 {
			d.AddSlots(cfg.Memory[i*m.start:][:n])
		}
		d.Reserve(max(left, m.start))
	}
	m.bounded = pages > uint64(m.active.Cap())
}

// DeltaSlots is how many pages of the region map there is memory for, and how many there may be.
func (c *Core) DeltaSlots() (now, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.active.Cap(), c.mu.most
}

// GrowDelta adds memory that reads as zeros, for as many pages in either set: each takes marks in
// turn. It answers false when it is not needed any more. From any thread.
func (c *Core) GrowDelta(one, other []bitmap.Page) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.complete.Load() || c.mu.active.Cap()+len(one) > c.mu.most {
		return false
	}
	c.mu.active.AddSlots(one)
	c.mu.frozen.AddSlots(other)
	return true
}

// ShrinkDelta gives up all that GrowDelta has added, and of a complete clone all there is, if no
// mark is there and no claim needs it. From any thread.
func (c *Core) ShrinkDelta() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.active.Used() > 0 || c.mu.frozen.Used() > 0 || c.mu.claims.reserved > c.mu.start:
		return false
	case c.complete.Load(): // as in thaw
		c.mu.active.Drop()
		c.mu.frozen.Drop()
		return true
	}
	c.mu.active.DropSlots(c.mu.start)
	c.mu.frozen.DropSlots(c.mu.start)
	return true
}
