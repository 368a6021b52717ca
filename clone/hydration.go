package clone

import (
	"bytes"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// Hydration is one background hydration, preallocated by the hydrator: the regions [First, End), all in the
// state that Kind says when it began. A copy of more than one region must fit a copy buffer. Regions that
// others claim or settle meanwhile are left out (I8).
type Hydration struct {
	First, End uint64
	Kind       HydrationKind
	Alone      bool // the source is read alone, as Backend.ReadSource has it
	// Done is called once, on the lane's thread. An error is that of the first I/O that failed; the
	// regions that it left unhydrated can be told from the map.
	Done func(*Hydration, error)
}

// HydrationKind is where the bytes of a Hydration come from.
type HydrationKind uint8

const (
	CopySource HydrationKind = iota // regions in state Source are copied
	ZeroHole                        // the same, but they are a hole of the source: zeros are written
	ZeroZero                        // regions in state Zero: zeros are written
)

// CopyRegions is how many regions one Hydration may copy, at least 1.
func (l *Lane) CopyRegions() uint64 { return max(1, uint64(l.bufSize)>>l.core.geo.shift) }

// Hydrate starts h, or answers false when the lane has no operation or buffer free.
func (l *Lane) Hydrate(h *Hydration) bool {
	h.check(l)
	n := len(l.freeOps)
	buffered := h.Kind == CopySource || l.core.spare() != SpareNothing
	if n == 0 || buffered && len(l.buffers) == 0 {
		return false
	}
	o := l.freeOps[n-1]
	l.freeOps = l.freeOps[:n-1]
	o.bg = h
	if buffered {
		l.takeBuffer(o)
	}
	if h.Kind != CopySource {
		l.land(o, h.First)
		return true
	}
	o.off = l.core.geo.Start(h.First)
	o.end = min(l.core.geo.Start(h.End), o.off+l.bufSize)
	o.step = earlyRead
	l.readSource(o, o.off, Data{Buf: o.buf[:o.end-o.off]})
	return true
}

// earlyReadDone: the read held no claim, so no user waited for it (I8); now the regions that are still
// the source's are claimed, for their write only.
func (l *Lane) earlyReadDone(o *op, err error) {
	if err != nil {
		l.hydrationDone(o, err)
		return
	}
	l.land(o, o.bg.First)
}

// land claims the next stretch from region on and writes it.
func (l *Lane) land(o *op, region uint64) {
	if err := l.core.memory.take(span{first: o.bg.First, end: o.bg.End}); err != nil {
		l.hydrationDone(o, err)
		return
	}
	st, end := bitmap.Source, o.bg.End
	if o.bg.Kind == ZeroZero {
		st = bitmap.Zero
	}
	switch {
	case o.bg.Kind == CopySource && l.core.leastZeros > 0:
		o.zeros, end = l.sameStretch(o, region)
	case o.bg.Kind != CopySource && o.buf != nil:
		end = min(end, l.pieceEnd(region))
	}
	switch l.core.claimBackground(&o.claim, st, region, end) {
	case claimed:
		o.holds = true
		l.planLanding(o)
		l.nextSegment(o)
	case full:
		l.hydrationDone(o, ErrCommitFirst)
	case refused:
		l.hydrationDone(o, ErrReadOnly)
	case released:
		l.land(o, region)
	default:
		if end < o.bg.End {
			l.land(o, end)
			return
		}
		l.hydrationDone(o, nil)
	}
}

// sameStretch is where the regions from first on, of what was read early, end to be all zeros, for at least leastZeros bytes,
// or to be anything else. It looks at each region once or twice, and mostly only at its first bytes. A region that is larger
// than the buffer is data.
func (l *Lane) sameStretch(o *op, first uint64) (zeros bool, end uint64) {
	geo, read := l.core.geo, o.off+l.bufSize
	run := first // where the zeros begin that region ends
	for region := first; region < o.bg.End; region++ {
		lo, hi := geo.Start(region), geo.End(region)
		if hi <= read && allZeros(o.buf[lo-o.off:hi-o.off]) {
			continue
		}
		if lo-geo.Start(run) >= l.core.leastZeros {
			return l.zerosFrom(first, run, region)
		}
		run = region + 1
	}
	if run < o.bg.End && geo.Start(o.bg.End)-geo.Start(run) >= l.core.leastZeros {
		return l.zerosFrom(first, run, o.bg.End)
	}
	return false, o.bg.End
}

// zerosFrom: regions [run, end) are zeros; what is before them comes first.
func (l *Lane) zerosFrom(first, run, end uint64) (zeros bool, stop uint64) {
	if run > first {
		return false, run
	}
	return true, end
}

// allZeros compares b with itself, one byte further on: as fast as memory is.
func allZeros(b []byte) bool { return b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:]) }

// planLanding: zeros, or what was read early, and of a region larger than the buffer also the rest,
// which is the exception to I8.
func (l *Lane) planLanding(o *op) {
	lo, hi := l.core.geo.Start(o.claim.first), l.core.geo.Start(o.claim.end)
	o.plan = plan{}
	if o.bg.Kind != CopySource || o.zeros {
		o.plan.work(segZero, lo, hi)
	} else {
		o.plan.work(segEarly, lo, min(hi, o.off+l.bufSize))
		o.plan.work(segCopy, o.off+l.bufSize, hi)
	}
	o.plan.mark(mark{bitmap.PlaneHydrated, o.claim.first, o.claim.end})
}

// landed is the end of one stretch's plan.
func (l *Lane) landed(o *op, err error) {
	if err != nil {
		l.hydrationDone(o, err)
		return
	}
	l.land(o, o.claim.end)
}

func (l *Lane) hydrationDone(o *op, err error) {
	h, done := o.bg, o.bg.Done // h may lie in o
	l.freeOp(o)
	done(h, err)
}
