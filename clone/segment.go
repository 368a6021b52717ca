package clone

import "github.com/ublk-clone/ublk-clone/bitmap"

// This file carries out plans. Each segment is started by a function and ends in the one below it.

// segmentDone goes on with the next segment, or ends the plan.
func (l *Lane) segmentDone(o *op, err error) {
	if err != nil {
		l.planDone(o, err)
		return
	}
	o.plan.seg++
	l.nextSegment(o)
}

// nextSegment starts the segment at hand. All but segRuns, which may find nothing to do, queue an I/O.
func (l *Lane) nextSegment(o *op) {
	for o.plan.seg < o.plan.nrSegs {
		s := &o.plan.segments[o.plan.seg]
		o.at = s.lo
		switch s.kind {
		case segMerge:
			l.merge(o, s)
			return
		case segCopy:
			l.copyPiece(o, s)
			return
		case segData:
			o.step = dataWrite
			l.backend.WriteDest(o.token, s.lo, Data{Request: o.req, At: s.lo - o.req.Off, Len: s.hi - s.lo}, false)
			return
		case segZero:
			o.at = s.hi
			l.zeroClaimed(o, s)
			return
		case segEarly:
			o.step = earlyWrite
			l.backend.WriteDest(o.token, s.lo, Data{Buf: o.buf[s.lo-o.off : s.hi-o.off]}, false)
			return
		case segRuns:
			if l.zeroRun(o, s) {
				return
			}
			o.plan.seg++
		}
	}
	l.planDone(o, nil)
}

// merge reads what the request does not cover of [s.lo, s.hi): the two edges, of which either may be
// empty, or in state Zero and need no read. When both are needed it is one read from the first byte to
// the last, the covered bytes between them included; should that fail, each edge is read alone, as the
// trouble may lie in bytes that nobody needs (I11). It is called again after each read, with o.at
// behind what has been read.
func (l *Lane) merge(o *op, s *segment) {
	head, tail := l.edges(o.req, s)
	needHead := head > s.lo && l.core.state(l.core.geo.Region(s.lo)) == bitmap.Source
	needTail := tail < s.hi && l.core.state(l.core.geo.Region(s.hi-1)) == bitmap.Source
	if o.at == s.lo {
		clear(o.buf[:s.hi-s.lo])
	}
	switch {
	case needHead && needTail && !o.narrow && o.at == s.lo:
		l.mergeIn(o, s, s.lo, s.hi)
	case needHead && o.at < head:
		l.mergeIn(o, s, s.lo, head)
	case needTail && o.at < s.hi:
		l.mergeIn(o, s, tail, s.hi)
	default:
		l.mergeOut(o, s, head, tail)
	}
}

// edges gives the stretch of s that the request covers.
func (l *Lane) edges(r *Request, s *segment) (head, tail int64) {
	return max(s.lo, r.Off), min(s.hi, r.Off+r.Len)
}

func (l *Lane) mergeIn(o *op, s *segment, lo, hi int64) {
	o.step, o.off, o.end = mergeRead, lo, hi
	l.readSource(o, lo, Data{Buf: o.buf[lo-s.lo : hi-s.lo]})
}

func (l *Lane) mergeReadDone(o *op, err error) {
	s := &o.plan.segments[o.plan.seg]
	head, tail := l.edges(o.req, s)
	if err != nil {
		wide := o.off < head && o.end > tail
		switch {
		case wide && l.core.Class(err) != Away:
			o.narrow = true
			l.merge(o, s)
		case wide || !l.tryAgain(o, err):
			l.planDone(o, err)
		}
		return
	}
	o.at, o.tries = o.end, 0
	l.merge(o, s)
}

// mergeOut lays the request's bytes (zeros for WRITE_ZEROES) over what was read and writes all of it.
func (l *Lane) mergeOut(o *op, s *segment, head, tail int64) {
	over := o.buf[head-s.lo : tail-s.lo]
	if o.req.Op != OpWrite {
		clear(over)
	} else if err := l.backend.Fetch(o.req, head-o.req.Off, over); err != nil {
		l.planDone(o, err)
		return
	}
	o.step = mergeWrite
	l.backend.WriteDest(o.token, s.lo, Data{Buf: o.buf[:s.hi-s.lo]}, false)
}

// copyPiece reads the next piece of a stretch that is larger than the buffer.
func (l *Lane) copyPiece(o *op, s *segment) {
	o.step = copyRead
	o.end = min(s.hi, o.at+l.bufSize)
	l.readSource(o, o.at, Data{Buf: o.buf[:o.end-o.at]})
}

func (l *Lane) copyReadDone(o *op, err error) {
	if err != nil {
		if !l.tryAgain(o, err) {
			l.planDone(o, err)
		}
		return
	}
	o.step, o.tries = copyWrite, 0
	l.backend.WriteDest(o.token, o.at, Data{Buf: o.buf[:o.end-o.at]}, false)
}

func (l *Lane) copyWriteDone(o *op, err error) {
	s := &o.plan.segments[o.plan.seg]
	if err != nil || o.end == s.hi {
		l.segmentDone(o, err)
		return
	}
	o.at = o.end
	l.copyPiece(o, s)
}

// zeroRun zeroes the next run of hydrated regions in [o.at, s.hi), or passes a discard of others down, whose
// bytes in the destination nobody reads; false: there is no such run. The states stand still meanwhile: H is
// final, and what is not H is in our claim.
func (l *Lane) zeroRun(o *op, s *segment) bool {
	geo := l.core.geo
	_, end := geo.Touched(s.lo, s.hi-s.lo)
	for o.at < s.hi {
		st, stop := l.core.regions.Run(geo.Region(o.at), end)
		lo, hi := o.at, min(s.hi, geo.Start(stop))
		o.at = hi
		switch {
		case st == bitmap.Hydrated:
			l.zeroHydrated(o, lo, hi)
			return true
		case o.passdown:
			o.step = passDown
			l.backend.DiscardDest(o.token, lo, hi-lo)
			return true
		}
	}
	return false
}

func (l *Lane) zeroWriteDone(o *op, err error) {
	if s := &o.plan.segments[o.plan.seg]; err == nil && s.kind == segRuns && l.zeroRun(o, s) {
		return
	}
	l.segmentDone(o, err)
}

// planDone is the end of a plan: the claim ends and, if all went well, marks; then the request is
// answered, or the background hydration goes on.
func (l *Lane) planDone(o *op, err error) {
	if o.holds {
		marks := o.plan.marks[:o.plan.nrMarks]
		if err != nil {
			marks = nil
		}
		l.count(o, l.core.settle(&o.claim, marks))
		o.holds = false
	}
	if o.bg != nil {
		l.landed(o, err)
		return
	}
	r := o.req
	l.freeOp(o)
	l.answer(r, err)
}

// answer ends a request that changed the destination; FUA waits for a commit of its marks first (I5).
func (l *Lane) answer(r *Request, err error) {
	if err == nil && r.FUA {
		l.deferToCommit(r)
		return
	}
	l.end(r, err)
}

func (l *Lane) deferToCommit(r *Request) {
	if err := l.core.waitCommit(r); err != nil {
		l.end(r, err)
	}
}

// count books the bytes that left state Source to what made them leave.
func (l *Lane) count(o *op, g gain) {
	if o.bg != nil && o.bg.Kind == ZeroHole {
		g = gain{zero: g.hydrated}
	}
	add(&l.stats.discarded, g.zero)
	copied := g.hydrated
	if o.req != nil {
		copied = min(copied, int64(o.plan.edges)<<l.core.geo.shift)
	}
	add(&l.stats.copied, copied)
	add(&l.stats.written, g.hydrated-copied)
}
