package clone

import (
	"bytes"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// Hydration is one background hydration, preallocated by the hydrator: the regions [First, End),
// all in the state that Kind says when it began. A copy of more than one region must fit a copy
// buffer. Regions that others claim or settle meanwhile are left out (I8).
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

// background carries out Hydrations, and writes what READs have got.
type background struct {
	core   *Core
	pool   *pool
	source *source
	plans  *plans
}

// copyRegions is how many regions one Hydration may copy, at least 1.
func (b *background) copyRegions() uint64 { return max(1, uint64(b.pool.bufSize)>>b.core.geo.shift) }

// start starts h, or answers false when the lane has no operation or buffer free.
func (b *background) start(h *Hydration) bool {
	h.check(b)
	buffered := h.Kind == CopySource || b.core.spare() != SpareNothing
	o := b.pool.take()
	if o == nil {
		return false
	}
	if buffered && !b.pool.takeBuffer(o, b.pool.bufSize) {
		b.pool.freeOp(o)
		return false
	}
	o.bg = h
	if h.Kind != CopySource {
		b.land(o, h.First)
		return true
	}
	o.off = b.core.geo.Start(h.First)
	o.end = min(b.core.geo.Start(h.End), o.off+b.pool.bufSize)
	o.step = earlyRead
	b.source.read(o, o.off, Data{Buf: o.buf[:o.end-o.off]})
	return true
}

// earlyReadDone: the read held no claim, so no user waited for it (I8); now the regions that are
// still the source's are claimed, for their write only.
func (b *background) earlyReadDone(o *op, err error) {
	if err != nil {
		b.hydrationDone(o, err)
		return
	}
	b.land(o, o.bg.First)
}

// land claims the next stretch from region on and writes it.
func (b *background) land(o *op, region uint64) {
	if err := b.core.memory.take(span{first: o.bg.First, end: o.bg.End}); err != nil {
		b.hydrationDone(o, err)
		return
	}
	st, end := bitmap.Source, o.bg.End
	if o.bg.Kind == ZeroZero {
		st = bitmap.Zero
	}
	switch {
	case o.bg.Kind == CopySource && b.core.leastZeros > 0:
		o.zeros, end = b.sameStretch(o, region)
	case o.bg.Kind != CopySource && o.buf != nil:
		end = min(end, b.pieceEnd(region))
	}
	switch b.core.claimBackground(&o.claim, st, region, end) {
	case claimed:
		o.holds = true
		b.planLanding(o)
		b.plans.nextSegment(o)
	case full:
		b.hydrationDone(o, ErrCommitFirst)
	case refused:
		b.hydrationDone(o, ErrReadOnly)
	case released:
		b.land(o, region)
	default:
		if end < o.bg.End {
			b.land(o, end)
			return
		}
		b.hydrationDone(o, nil)
	}
}

// pieceEnd is the end of the regions that are looked at together from region on: pieces end at
// multiples of the buffer size, so that a discard of one covers whole blocks of the destination
// where it can.
func (b *background) pieceEnd(region uint64) uint64 {
	end := (b.core.geo.Start(region)/b.pool.bufSize + 1) * b.pool.bufSize
	return max(region+1, b.core.geo.Region(end))
}

// sameStretch is where the regions from first on, of what was read early, end to be all zeros, for
// at least leastZeros bytes, or to be anything else. It looks at each region once or twice, and
// mostly only at its first bytes. A region that is larger than the buffer is data.
func (b *background) sameStretch(o *op, first uint64) (zeros bool, end uint64) {
	geo, read := b.core.geo, o.off+b.pool.bufSize
	run := first // where the zeros begin that region ends
	for region := first; region < o.bg.End; region++ {
		lo, hi := geo.Start(region), geo.End(region)
		if hi <= read && allZeros(o.buf[lo-o.off:hi-o.off]) {
			continue
		}
		if lo-geo.Start(run) >= b.core.leastZeros {
			return zerosFrom(first, run, region)
		}
		run = region + 1
	}
	if run < o.bg.End && geo.Start(o.bg.End)-geo.Start(run) >= b.core.leastZeros {
		return zerosFrom(first, run, o.bg.End)
	}
	return false, o.bg.End
}

// zerosFrom: regions [run, end) are zeros; what is before them comes first.
func zerosFrom(first, run, end uint64) (zeros bool, stop uint64) {
	if run > first {
		return false, run
	}
	return true, end
}

// allZeros compares b with itself, one byte further on: as fast as memory is.
func allZeros(b []byte) bool { return b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:]) }

// planLanding: zeros, or what was read early, and of a region larger than the buffer also the rest,
// which is the exception to I8.
func (b *background) planLanding(o *op) {
	lo, hi := b.core.geo.Start(o.claim.first), b.core.geo.Start(o.claim.end)
	o.plan = plan{}
	if o.bg.Kind != CopySource || o.zeros {
		o.plan.work(segZero, lo, hi)
	} else {
		o.plan.work(segEarly, lo, min(hi, o.off+b.pool.bufSize))
		o.plan.work(segCopy, o.off+b.pool.bufSize, hi)
	}
	o.plan.mark(mark{bitmap.PlaneHydrated, o.claim.first, o.claim.end})
}

// landed is the end of one stretch's plan.
func (b *background) landed(o *op, err error) {
	if err != nil {
		b.hydrationDone(o, err)
		return
	}
	b.land(o, o.claim.end)
}

func (b *background) hydrationDone(o *op, err error) {
	h, done := o.bg, o.bg.Done // h may lie in o
	b.pool.freeOp(o)
	done(h, err)
}
