package clone

import "github.com/ublk-clone/ublk-clone/bitmap"

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
func (l *Lane) write(r *Request) {
	l.recent.note(r.Off, r.Len)
	first, end := l.core.geo.Touched(r.Off, r.Len)
	if l.core.regions.AllHydrated(first, end) {
		if o := l.newOp(r); o != nil {
			l.writeThrough(o, first, end)
		}
		return
	}
	o := l.claimOp(r, first, end)
	switch {
	case o == nil:
	case o.holds:
		l.planWrite(o)
		l.nextSegment(o)
	default: // hydrated meanwhile
		l.freeBuffer(o)
		l.writeThrough(o, first, end)
	}
}

// claimOp takes an operation for r, a buffer if r covers a region in part or looks at the destination, and a claim of
// what in [first, end) is not hydrated; without one when all of it is. nil: r waits, or has been refused.
func (l *Lane) claimOp(r *Request, first, end uint64) *op {
	o := l.newOp(r)
	if o == nil {
		return nil
	}
	if (r.Op != OpDiscard && l.ragged(r) || l.looks(r, first, end)) && !l.takeBuffer(o) {
		l.freeOp(o)
		l.starved.push(r)
		return nil
	}
	s := l.claimSpan(r, first, end)
	v := released
	for v == released {
		if err := l.core.memory.take(s); err != nil {
			l.freeOp(o)
			l.end(r, err)
			return nil
		}
		v = l.core.claimFor(r, &o.claim, s)
	}
	switch v {
	case claimed, nothing:
		o.holds = v == claimed
		return o
	case refused:
		l.freeOp(o)
		l.end(r, ErrReadOnly)
	case excluded, full: // r is in a list already, and perhaps woken
		l.freeOp(o)
	}
	return nil
}

// claimSpan is what r claims of the regions [first, end).
func (l *Lane) claimSpan(r *Request, first, end uint64) span {
	s := span{first: first, end: end}
	if r.Op == OpDiscard || r.Op == OpWriteZeroes {
		s.zero, s.zeroEnd = l.core.geo.Covered(r.Off, r.Len)
	}
	return s
}

// ragged says whether r covers a region in part.
func (l *Lane) ragged(r *Request) bool {
	first, end := l.core.geo.Touched(r.Off, r.Len)
	return l.core.geo.Start(first) < r.Off || l.core.geo.End(end-1) > r.Off+r.Len
}

// writeThrough writes hydrated regions. A FUA of regions whose marks are durable is mostly one durable write;
// otherwise it is a plain write, and a commit makes data and marks durable together (I5).
func (l *Lane) writeThrough(o *op, first, end uint64) {
	r := o.req
	o.step = writeThrough
	if r.FUA {
		o.durable = l.core.beginDurable(first, end)
	}
	l.backend.WriteDest(o.token, r.Off, Data{Request: r, Len: r.Len}, o.durable)
}

func (l *Lane) writeThroughDone(o *op, err error) {
	r, durable := o.req, o.durable
	l.freeOp(o)
	if durable {
		l.core.endDurable(err)
		l.end(r, err)
		return
	}
	l.answer(r, err)
}

// planWrite widens the write to the edges of the regions at its ends that are not hydrated.
func (l *Lane) planWrite(o *op) {
	r, geo, p := o.req, l.core.geo, &o.plan
	off, end := r.Off, r.Off+r.Len
	lo, hi := off, end
	if st := l.core.state(o.claim.first); st != bitmap.Hydrated && geo.Start(o.claim.first) < off {
		lo = geo.Start(o.claim.first)
		p.edge(st)
	}
	if st := l.core.state(o.claim.end - 1); st != bitmap.Hydrated && geo.End(o.claim.end-1) > end {
		hi = geo.End(o.claim.end - 1)
		if lo == off || o.claim.end-o.claim.first > 1 {
			p.edge(st)
		}
	}
	switch {
	case lo == off && hi == end:
		l.freeBuffer(o)
		p.work(segData, off, end)
	case hi-lo <= l.bufSize:
		p.work(segMerge, lo, hi)
	default:
		l.planEdge(p, lo, off)
		p.work(segData, off, end)
		l.planEdge(p, end, hi)
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
func (l *Lane) planEdge(p *plan, lo, hi int64) {
	if lo < hi && l.core.state(l.core.geo.Region(lo)) == bitmap.Zero {
		p.work(segZero, lo, hi)
		return
	}
	p.work(segCopy, lo, hi)
}
