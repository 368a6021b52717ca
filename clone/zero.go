package clone

import "github.com/ublk-clone/ublk-clone/bitmap"

// discard rounds inward: ragged ends keep their data. What is in state Source becomes Zero without
// a copy, what is hydrated is zeroed in place before the answer; never by a discard whose zeros
// nobody promises (dm-clone shows the destination's old content there). With passdown the space is
// given up: by the zeroing, where the destination can (spare.go), and by a discard of what is not
// hydrated, before its claim ends.
func (c *changes) discard(r *Request) {
	first, end := c.core.geo.Covered(r.Off, r.Len)
	if first == end {
		c.users.end(r, nil)
		return
	}
	c.zero(r, first, end)
}

// writeZeroes covers every byte: whole regions as discard does, ragged edges like a partial write.
func (c *changes) writeZeroes(r *Request) {
	first, end := c.core.geo.Touched(r.Off, r.Len)
	c.zero(r, first, end)
}

// zero claims the regions of [first, end) that are not hydrated. The claim stays, and the request
// unanswered, until all zeroing of the destination has ended (I3): the hydrated regions among and
// beside them cannot come to be otherwise meanwhile.
func (c *changes) zero(r *Request, first, end uint64) {
	if o := c.claimOp(r, first, end); o != nil {
		c.planZero(o)
		c.plans.nextSegment(o)
	}
}

// planZero: hydrated bytes in place, partly covered regions of the source merged, the rest only
// marked.
func (c *changes) planZero(o *op) {
	r, geo, p := o.req, c.core.geo, &o.plan
	off, end := r.Off, r.Off+r.Len
	first, stop := geo.Covered(off, r.Len)
	if r.Op == OpDiscard {
		o.passdown = c.core.passdown.Load()
		p.work(segRuns, geo.Start(first), geo.Start(stop))
	} else {
		p.work(segRuns, off, end)
		c.planZeroEdge(p, off, end, geo.Region(off))
		if last := geo.Region(end - 1); last != geo.Region(off) {
			c.planZeroEdge(p, off, end, last)
		}
	}
	if o.holds {
		p.mark(mark{bitmap.PlaneZero, first, stop})
	}
}

// planZeroEdge hydrates region with zeros laid over [off, end), if it is in state Source and
// covered only in part; in state Zero there is nothing to do, and hydrated it is done in place.
func (c *changes) planZeroEdge(p *plan, off, end int64, region uint64) {
	lo, hi := c.core.geo.Start(region), c.core.geo.End(region)
	if off <= lo && hi <= end || c.core.state(region) != bitmap.Source {
		return
	}
	if hi-lo <= c.pool.bufSize {
		p.work(segMerge, lo, hi)
	} else {
		p.work(segCopy, lo, off)
		p.work(segZero, max(lo, off), min(hi, end))
		p.work(segCopy, end, hi)
	}
	p.edges++
	p.mark(mark{bitmap.PlaneHydrated, region, region + 1})
}
