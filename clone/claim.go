package clone

import (
	"slices"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// A claim is the right to write regions that are not hydrated, and to mark them: at most one claim
// holds a region (I3, H15). It lies inside its operation and is in the table from the look at the
// map that justified it until its end, which alone marks.
type claim struct {
	first, end uint64 // regions
	at         int    // place in the table
	pages      int    // reserved in the pool of uncommitted pages
	waiters    requestList
}

// claimTable is scanned: there are at most as many claims as operations, some hundreds, and a scan
// of 512 takes less than the atomic operations around it.
type claimTable struct {
	open []*claim
	// reserved is how many pages of the active set the open claims may still need. What it has and
	// reserved together never exceed the pool, so a settle always finds room, also right after a
	// freeze.
	reserved int
}

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

// span is what a claim is to be of: the regions [first, end). What of them are [zero, zeroEnd) and
// not hydrated is marked zero by its end, if anything.
type span struct{ first, end, zero, zeroEnd uint64 }

// claimFor claims the regions of s for request r, unless all of them are hydrated; or it makes r
// wait, for the claim in the way, or for a commit to free the pool of uncommitted pages (I9).
// Hydrated regions inside a claim do no harm: nobody asks for a claim of those. Called without mu.
func (c *Core) claimFor(r *Request, k *claim, s span) verdict {
	c.mu.Lock()
	if c.regions.AllHydrated(s.first, s.end) {
		c.mu.Unlock()
		return nothing
	}
	v := c.mu.open(k, s, c.mu.active.Cap(), &c.memory)
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

// open puts k into the table, or answers excluded, full, refused or released; room is how many
// pages of the pool may be taken in all.
func (g *guarded) open(k *claim, s span, room int, m *mapMemory) verdict {
	if g.mode != ReadWrite {
		return refused
	}
	if g.claims.find(s.first, s.end) != nil {
		return excluded
	}
	pages := 0
	for page := bitmap.PageOf(s.first); page <= bitmap.PageOf(s.end-1); page++ {
		if m.lacks(s, page) {
			return released
		}
		if !m.zeroed(s, page) {
			pages++
		}
	}
	g.runLow(g.active.Used() + g.claims.reserved + pages)
	if g.bounded && g.active.Used()+g.claims.reserved+pages > room {
		return full
	}
	g.claims.reserved += pages
	k.first, k.end, k.pages = s.first, s.end, pages
	g.claims.add(k)
	g.claims.check(&g.marks)
	return claimed
}

// claimBackground claims for the hydrator the first stretch in [from, end) that is still in state
// st and nobody's, or answers nothing. It never waits: what is claimed is left out (I8). When the
// pool is full or the mode is not rw it answers so. Half of the pool is left to users: a request
// that finds it full waits for a commit, and would find it full again if the background took what
// the commit has freed (I8).
func (c *Core) claimBackground(k *claim, st bitmap.State, from, end uint64) verdict {
	v := nothing
	c.mu.Lock()
	if s, ok := c.mu.claims.firstFree(&c.view, st, from, end); ok {
		v = c.mu.open(k, s, c.mu.active.Cap()/2, &c.memory)
	}
	c.mu.Unlock()
	if v == full {
		c.kick()
	}
	return v
}

// firstFree gives the first stretch in [from, end) that is in state st and in no claim.
func (t *claimTable) firstFree(v *view, st bitmap.State, from, end uint64) (s span, ok bool) {
	for from < end {
		state, stop := v.regions.Run(from, end)
		if state != st {
			from = stop
			continue
		}
		other := t.firstIn(from, stop)
		if other == nil {
			return span{first: from, end: stop}, true
		}
		if other.first > from {
			return span{first: from, end: other.first}, true
		}
		from = other.end
	}
	return span{}, false
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
			g.hydrated += c.mu.markHydrated(&c.view, m.first, m.end)
		} else {
			g.zero += c.mu.markZero(&c.view, m.first, m.end)
		}
	}
	c.mu.claims.reserved -= k.pages
	c.mu.claims.remove(k)
	c.mu.claims.check(&c.mu.marks)
	woken := k.waiters.take()
	c.mu.Unlock()
	wake(woken)
	return g
}

// wake posts requests to their lanes.
func wake(l requestList) {
	for r := l.pop(); r != nil; r = l.pop() {
		r.lane.post(r)
	}
}

// grow makes room for the claims of n more operations, so that add never allocates.
func (t *claimTable) grow(n int) { t.open = slices.Grow(t.open, cap(t.open)+n) }
