package clone

import "github.com/ublk-clone/ublk-clone/bitmap"

// changes are WRITEs, DISCARDs and WRITE_ZEROES: they change the destination, and mostly need a
// claim, and a plan for it.
type changes struct {
	core    *Core
	backend Backend
	pool    *pool
	users   *users
	plans   *plans
	recent  recent
}

// write routes a WRITE:
//
//	all regions hydrated   straight to the destination: no lock, no claim
//	otherwise              claim what is not, then one of
//	  no ragged edge       the request's bytes; no copy is needed
//	  fits a copy buffer   one read of the source, merge, one write
//	  larger               edges by the buffer in pieces, the request's bytes between them
//
// Whoever meets somebody else's claim, or finds no operation or buffer, waits holding nothing and
// comes back to here.
func (c *changes) write(r *Request) {
	c.recent.add(r.Off, r.Len)
	first, end := c.core.geo.Touched(r.Off, r.Len)
	if c.core.regions.AllHydrated(first, end) {
		if o := c.pool.newOp(r); o != nil {
			c.writeThrough(o, first, end)
		}
		return
	}
	o := c.claimOp(r, first, end)
	switch {
	case o == nil:
	case o.holds:
		c.planWrite(o)
		c.plans.nextSegment(o)
	default: // hydrated meanwhile
		c.pool.freeBuffer(o)
		c.writeThrough(o, first, end)
	}
}

// claimOp takes an operation for r, a buffer if r covers a region in part or looks at the
// destination, and a claim of what in [first, end) is not hydrated; without one when all of it is.
// nil: r waits, or has been refused.
func (c *changes) claimOp(r *Request, first, end uint64) *op {
	o := c.pool.newOp(r)
	if o == nil {
		return nil
	}
	if need := c.needs(r, first, end); need > 0 && !c.pool.takeBuffer(o, need) {
		c.pool.freeOp(o)
		c.pool.starved.push(r)
		return nil
	}
	s := c.claimSpan(r, first, end)
	v := released
	for v == released {
		if err := c.core.memory.take(s); err != nil {
			c.pool.freeOp(o)
			c.users.end(r, err)
			return nil
		}
		v = c.core.claimFor(r, &o.claim, s)
	}
	switch v {
	case claimed, nothing:
		o.holds = v == claimed
		return o
	case refused:
		c.pool.freeOp(o)
		c.users.end(r, ErrReadOnly)
	case excluded, full: // r is in a list already, and perhaps woken
		c.pool.freeOp(o)
	}
	return nil
}

// needs is how large a buffer r needs, of the regions [first, end), in bytes; 0: none. What merges
// needs room for all of these, if that fits a buffer, and a complete clone has pieces only.
func (c *changes) needs(r *Request, first, end uint64) int64 {
	switch {
	case r.Op != OpDiscard && c.ragged(r) && !c.core.regions.AllHydrated(first, end):
		return c.core.geo.End(end-1) - c.core.geo.Start(first)
	case !c.looks(r, first, end):
		return 0
	case c.core.Complete():
		return 1
	}
	return c.pool.bufSize
}

// looks says whether r, of the regions [first, end), will look at the destination, for which it
// needs a buffer.
func (c *changes) looks(r *Request, first, end uint64) bool {
	spared := c.core.spare() == SpareAll && r.Op == OpWriteZeroes || c.core.spare() != SpareNothing && r.Op == OpDiscard
	if !spared || r.NoUnmap {
		return false
	}
	_, any := c.core.regions.NextHydrated(first, end)
	return any
}

// claimSpan is what r claims of the regions [first, end).
func (c *changes) claimSpan(r *Request, first, end uint64) span {
	s := span{first: first, end: end}
	if r.Op == OpDiscard || r.Op == OpWriteZeroes {
		s.zero, s.zeroEnd = c.core.geo.Covered(r.Off, r.Len)
	}
	return s
}

// ragged says whether r covers a region in part.
func (c *changes) ragged(r *Request) bool {
	first, end := c.core.geo.Touched(r.Off, r.Len)
	return c.core.geo.Start(first) < r.Off || c.core.geo.End(end-1) > r.Off+r.Len
}

// writeThrough writes hydrated regions. A FUA of regions whose marks are durable is mostly one
// durable write; otherwise it is a plain write, and a commit makes data and marks durable together
// (I5).
func (c *changes) writeThrough(o *op, first, end uint64) {
	r := o.req
	o.step = writeThrough
	if r.FUA {
		o.durable = c.core.beginDurable(first, end)
	}
	c.backend.WriteDest(o.token, r.Off, Data{Request: r, Len: r.Len}, o.durable)
}

func (c *changes) writeThroughDone(o *op, err error) {
	r, durable := o.req, o.durable
	c.pool.freeOp(o)
	if durable {
		c.core.endDurable(err)
		c.users.end(r, err)
		return
	}
	c.users.answer(r, err)
}

// planWrite widens the write to the edges of the regions at its ends that are not hydrated.
func (c *changes) planWrite(o *op) {
	r, geo, p := o.req, c.core.geo, &o.plan
	off, end := r.Off, r.Off+r.Len
	lo, hi := off, end
	if st := c.core.state(o.claim.first); st != bitmap.Hydrated && geo.Start(o.claim.first) < off {
		lo = geo.Start(o.claim.first)
		p.edge(st)
	}
	if st := c.core.state(o.claim.end - 1); st != bitmap.Hydrated && geo.End(o.claim.end-1) > end {
		hi = geo.End(o.claim.end - 1)
		if lo == off || o.claim.end-o.claim.first > 1 {
			p.edge(st)
		}
	}
	switch {
	case lo == off && hi == end:
		c.pool.freeBuffer(o)
		p.work(segData, off, end)
	case hi-lo <= c.pool.bufSize:
		p.work(segMerge, lo, hi)
	default:
		c.planEdge(p, lo, off)
		p.work(segData, off, end)
		c.planEdge(p, end, hi)
	}
	p.mark(mark{bitmap.PlaneHydrated, o.claim.first, o.claim.end})
}

// edge counts a region that is copied in part.
func (p *plan) edge(st bitmap.State) {
	if st == bitmap.Source {
		p.edges++
	}
}

// planEdge fills [lo, hi), which is empty or lies inside one claimed region.
func (c *changes) planEdge(p *plan, lo, hi int64) {
	if lo < hi && c.core.state(c.core.geo.Region(lo)) == bitmap.Zero {
		p.work(segZero, lo, hi)
		return
	}
	p.work(segCopy, lo, hi)
}
