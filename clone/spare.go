package clone

// A destination that can discard but has no cheap way to write zeroes (dm-thin, many SATA SSDs) must be written in
// order to hold zeros, and then the zeros take space there. Core.SetSpareZeros makes the lane look first (I17):
//
//	1  read a piece of what is to become zero
//	2  if all of it is zero, the piece is done
//	3  if the piece is claimed, discard it and read it again, once
//	4  write zeros over what is still not zero
//
// Nobody believes a discard to leave zeros: step 3 reads what it has left. That what reads as zeros stays so must be known of
// the destination (blockdev.Device.SparesZeros): after a TRIM some disks return something else at each read. Step 3 is for claimed regions only, because nobody reads
// the destination there; readers of hydrated regions would see whatever the discard leaves until step 4 has ended.
//
// What step 1 has read stays so until the mark. In regions that are not hydrated the whole procedure runs under
// their claim, and a claim excludes all writes, zeroings and discards of others (I3). In hydrated regions a WRITE that
// is in flight beside the DISCARD may be ordered after it. The zeros may be in the destination's volatile cache, but
// the mark becomes durable only after a flush of the destination (I4, step 2).
//
// Users may wait for the claim of such a piece, as they wait for one in which zeros are written. A piece is a copy
// buffer at most, and a region larger than a buffer stays claimed until all of its pieces are done.

// Some destinations keep zeros that were read only until a part of the unit is written in which they give up space: then
// the rest of it shows old bytes (dm-thin with skip_block_zeroing). There only what users have discarded is spared.

// Spare is what is spared.
type Spare uint32

// From nothing on, more and more.
const (
	SpareNothing   Spare = iota
	SpareDiscarded       // what users have discarded
	SpareAll
)

// spares says whether what o makes zero is spared.
func (l *Lane) spares(o *op) bool {
	discarded := o.bg != nil && o.bg.Kind == ZeroZero || o.bg == nil && o.req.Op == OpDiscard
	return l.core.spare() == SpareAll || discarded && l.core.spare() == SpareDiscarded
}

// look is a zeroing of the destination that reads it first. It goes from at to end, piece by piece.
type look struct {
	at, end   int64 // bytes: what is left
	stop      int64 // end of the piece
	from      int64 // in the piece: where the search for what is not zero goes on
	buf       []byte
	claimed   bool // nobody reads the destination there
	discarded bool // the piece has been
}

// lookChunk is the unit in which zeros are written over what is not zero, in bytes.
const lookChunk = 64 << 10

// looks says whether r, of the regions [first, end), will look at the destination, for which it needs a buffer.
func (l *Lane) looks(r *Request, first, end uint64) bool {
	spared := l.core.spare() == SpareAll && r.Op == OpWriteZeroes || l.core.spare() != SpareNothing && r.Op == OpDiscard
	if !spared || r.NoUnmap {
		return false
	}
	_, any := l.core.regions.NextHydrated(first, end)
	return any
}

// pieceEnd is the end of the regions that are looked at together from region on: pieces end at multiples of the buffer
// size, so that a discard of one covers whole blocks of the destination where it can.
func (l *Lane) pieceEnd(region uint64) uint64 {
	end := (l.core.geo.Start(region)/l.bufSize + 1) * l.bufSize
	return max(region+1, l.core.geo.Region(end))
}

// zeroClaimed makes a segment zero in the destination that lies in the operation's own claim.
func (l *Lane) zeroClaimed(o *op, s *segment) {
	buf := o.buf
	if o.zeros { // the segment's stretch of what was read early
		buf = o.buf[s.lo-o.off : s.hi-o.off]
	}
	if buf != nil && l.spares(o) {
		o.look = look{at: s.lo, end: s.hi, buf: buf, claimed: true}
		l.lookOn(o)
		return
	}
	o.step = zeroWrite
	l.backend.ZeroDest(o.token, s.lo, s.hi-s.lo, o.bg != nil && l.core.passdown.Load())
}

// zeroHydrated makes [lo, hi), of hydrated regions, zero in the destination.
func (l *Lane) zeroHydrated(o *op, lo, hi int64) {
	if o.buf != nil && l.spares(o) && !o.req.NoUnmap {
		o.look = look{at: lo, end: hi, buf: o.buf}
		l.lookOn(o)
		return
	}
	o.step = zeroWrite
	l.backend.ZeroDest(o.token, lo, hi-lo, o.passdown || o.req.Op == OpWriteZeroes && !o.req.NoUnmap)
}

// lookOn begins the next piece, or ends the zeroing.
func (l *Lane) lookOn(o *op) {
	k := &o.look
	if k.at == k.end {
		l.zeroWriteDone(o, nil)
		return
	}
	n := int64(len(k.buf))
	k.stop, k.discarded = k.end, false
	if k.end-k.at > n {
		k.stop = (k.at/n + 1) * n
	}
	l.readLook(o)
}

func (l *Lane) readLook(o *op) {
	k := &o.look
	o.step = lookRead
	l.backend.ReadDest(o.token, k.at, Data{Buf: k.buf[:k.stop-k.at]})
}

// lookReadDone: what cannot be read is written.
func (l *Lane) lookReadDone(o *op, err error) {
	k := &o.look
	k.from = k.at
	switch {
	case err != nil:
		l.writeLook(o, k.stop)
	case k.claimed && !k.discarded && !allZeros(k.buf[:k.stop-k.at]):
		k.discarded = true
		o.step = lookDiscard
		l.backend.DiscardDest(o.token, k.at, k.stop-k.at)
	default:
		l.writeNonzero(o)
	}
}

// writeNonzero writes zeros over the next chunks of the piece that are not zero, or goes on with the next piece.
func (l *Lane) writeNonzero(o *op) {
	k := &o.look
	for k.from < k.stop && l.chunkZero(k, k.from) {
		k.from = k.chunkEnd(k.from)
	}
	end := k.from
	for end < k.stop && !l.chunkZero(k, end) {
		end = k.chunkEnd(end)
	}
	if k.from < end {
		l.writeLook(o, end)
		return
	}
	k.at = k.stop
	l.lookOn(o)
}

func (l *Lane) chunkZero(k *look, off int64) bool {
	return allZeros(k.buf[off-k.at : k.chunkEnd(off)-k.at])
}

func (k *look) chunkEnd(off int64) int64 { return min(k.stop, (off/lookChunk+1)*lookChunk) }

// writeLook writes zeros up to end.
func (l *Lane) writeLook(o *op, end int64) {
	k := &o.look
	off := k.from
	k.from = end
	o.step = lookWrite
	l.backend.ZeroDest(o.token, off, end-off, false)
}

func (l *Lane) lookWriteDone(o *op, err error) {
	if err != nil {
		l.zeroWriteDone(o, err)
		return
	}
	l.writeNonzero(o)
}
