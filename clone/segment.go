package clone

import (
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// plans carries out plans. Each segment is started by a function and ends in the one below it.
type plans struct {
	core    *Core
	backend Backend
	pool    *pool
	source  *source
	users   *users
	zeroing zeroing
	landed  func(*op, error) // the end of a plan of the background

	gains
}

// gains are the bytes that left state Source, by what made them leave. Written by their lane only
// and read by anybody.
type gains struct{ copied, written, discarded atomic.Int64 }

// segmentDone goes on with the next segment, or ends the plan.
func (p *plans) segmentDone(o *op, err error) {
	if err != nil {
		p.planDone(o, err)
		return
	}
	o.plan.seg++
	p.nextSegment(o)
}

// nextSegment starts the segment at hand. All but segRuns, which may find nothing to do, queue an
// I/O.
func (p *plans) nextSegment(o *op) {
	for o.plan.seg < o.plan.nrSegs {
		s := &o.plan.segments[o.plan.seg]
		o.at = s.lo
		switch s.kind {
		case segMerge:
			p.merge(o, s)
			return
		case segCopy:
			p.copyPiece(o, s)
			return
		case segData:
			o.step = dataWrite
			p.backend.WriteDest(o.token, s.lo, Data{Request: o.req, At: s.lo - o.req.Off, Len: s.hi - s.lo}, false)
			return
		case segZero:
			o.at = s.hi
			p.zeroing.claimed(o, s)
			return
		case segEarly:
			o.step = earlyWrite
			p.backend.WriteDest(o.token, s.lo, Data{Buf: o.buf[s.lo-o.off : s.hi-o.off]}, false)
			return
		case segRuns:
			if p.zeroRun(o, s) {
				return
			}
			o.plan.seg++
		}
	}
	p.planDone(o, nil)
}

// merge reads what the request does not cover of [s.lo, s.hi): the two edges, of which either may
// be empty, or in state Zero and need no read. When both are needed it is one read from the first
// byte to the last, the covered bytes between them included; should that fail, each edge is read
// alone, as the trouble may lie in bytes that nobody needs (I11). It is called again after each
// read, with o.at behind what has been read.
func (p *plans) merge(o *op, s *segment) {
	head, tail := s.edges(o.req)
	needHead := head > s.lo && p.core.state(p.core.geo.Region(s.lo)) == bitmap.Source
	needTail := tail < s.hi && p.core.state(p.core.geo.Region(s.hi-1)) == bitmap.Source
	if o.at == s.lo {
		clear(o.buf[:s.hi-s.lo])
	}
	switch {
	case needHead && needTail && !o.narrow && o.at == s.lo:
		p.mergeIn(o, s, s.lo, s.hi)
	case needHead && o.at < head:
		p.mergeIn(o, s, s.lo, head)
	case needTail && o.at < s.hi:
		p.mergeIn(o, s, tail, s.hi)
	default:
		p.mergeOut(o, s, head, tail)
	}
}

// edges gives the stretch of s that the request covers.
func (s *segment) edges(r *Request) (head, tail int64) {
	return max(s.lo, r.Off), min(s.hi, r.Off+r.Len)
}

func (p *plans) mergeIn(o *op, s *segment, lo, hi int64) {
	o.step, o.off, o.end = mergeRead, lo, hi
	p.source.read(o, lo, Data{Buf: o.buf[lo-s.lo : hi-s.lo]})
}

func (p *plans) mergeReadDone(o *op, err error) {
	s := &o.plan.segments[o.plan.seg]
	head, tail := s.edges(o.req)
	if err != nil {
		wide := o.off < head && o.end > tail
		switch {
		case wide && p.core.Class(err) != Away:
			o.narrow = true
			p.merge(o, s)
		case wide || !p.source.tryAgain(o, err):
			p.planDone(o, err)
		}
		return
	}
	o.at, o.tries = o.end, 0
	p.merge(o, s)
}

// mergeOut lays the request's bytes (zeros for WRITE_ZEROES) over what was read and writes all of
// it.
func (p *plans) mergeOut(o *op, s *segment, head, tail int64) {
	over := o.buf[head-s.lo : tail-s.lo]
	if o.req.Op != OpWrite {
		clear(over)
	} else if err := p.backend.Fetch(o.req, head-o.req.Off, over); err != nil {
		p.planDone(o, err)
		return
	}
	o.step = mergeWrite
	p.backend.WriteDest(o.token, s.lo, Data{Buf: o.buf[:s.hi-s.lo]}, false)
}

// copyPiece reads the next piece of a stretch that is larger than the buffer.
func (p *plans) copyPiece(o *op, s *segment) {
	o.step = copyRead
	o.end = min(s.hi, o.at+p.pool.bufSize)
	p.source.read(o, o.at, Data{Buf: o.buf[:o.end-o.at]})
}

func (p *plans) copyReadDone(o *op, err error) {
	if err != nil {
		if !p.source.tryAgain(o, err) {
			p.planDone(o, err)
		}
		return
	}
	o.step, o.tries = copyWrite, 0
	p.backend.WriteDest(o.token, o.at, Data{Buf: o.buf[:o.end-o.at]}, false)
}

func (p *plans) copyWriteDone(o *op, err error) {
	s := &o.plan.segments[o.plan.seg]
	if err != nil || o.end == s.hi {
		p.segmentDone(o, err)
		return
	}
	o.at = o.end
	p.copyPiece(o, s)
}

// zeroRun zeroes the next run of hydrated regions in [o.at, s.hi), or passes a discard of others
// down, whose bytes in the destination nobody reads; false: there is no such run. The states stand
// still meanwhile: H is final, and what is not H is in our claim.
func (p *plans) zeroRun(o *op, s *segment) bool {
	geo := p.core.geo
	_, end := geo.Touched(s.lo, s.hi-s.lo)
	for o.at < s.hi {
		st, stop := p.core.regions.Run(geo.Region(o.at), end)
		lo, hi := o.at, min(s.hi, geo.Start(stop))
		o.at = hi
		switch {
		case st == bitmap.Hydrated:
			p.zeroing.hydrated(o, lo, hi)
			return true
		case o.passdown:
			o.step = passDown
			p.backend.DiscardDest(o.token, lo, hi-lo)
			return true
		}
	}
	return false
}

func (p *plans) zeroWriteDone(o *op, err error) {
	if s := &o.plan.segments[o.plan.seg]; err == nil && s.kind == segRuns && p.zeroRun(o, s) {
		return
	}
	p.segmentDone(o, err)
}

// planDone is the end of a plan: the claim ends and, if all went well, marks; then the request is
// answered, or the background hydration goes on.
func (p *plans) planDone(o *op, err error) {
	if o.holds {
		marks := o.plan.marks[:o.plan.nrMarks]
		if err != nil {
			marks = nil
		}
		p.count(o, p.core.settle(&o.claim, marks))
		o.holds = false
	}
	if o.bg != nil {
		p.landed(o, err)
		return
	}
	r := o.req
	p.pool.freeOp(o)
	p.users.answer(r, err)
}

// count books the bytes that left state Source to what made them leave.
func (p *plans) count(o *op, g gain) {
	if o.bg != nil && o.bg.Kind == ZeroHole {
		g = gain{zero: g.hydrated}
	}
	add(&p.gains.discarded, g.zero)
	copied := g.hydrated
	if o.req != nil {
		copied = min(copied, int64(o.plan.edges)<<p.core.geo.shift)
	}
	add(&p.gains.copied, copied)
	add(&p.gains.written, g.hydrated-copied)
}
