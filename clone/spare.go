package clone

// A destination that can discard but has no cheap way to write zeroes (dm-thin, many SATA SSDs)
// must be written in order to hold zeros, and then the zeros take space there. Core.SetSpareZeros
// makes the lane look first (I17):
//
//	1  read a piece of what is to become zero
//	2  if all of it is zero, the piece is done
//	3  if the piece is claimed, discard it and read it again, once
//	4  write zeros over what is still not zero
//
// Nobody believes a discard to leave zeros: step 3 reads what it has left. That what reads as zeros
// stays so must be known of the destination (blockdev.Device.SparesZeros): after a TRIM some disks
// return something else at each read. Step 3 is for claimed regions only, because nobody reads the
// destination there; readers of hydrated regions would see whatever the discard leaves until step 4
// has ended.
//
// What step 1 has read stays so until the mark. In regions that are not hydrated the whole
// procedure runs under their claim, and a claim excludes all writes, zeroings and discards of
// others (I3). In hydrated regions a WRITE that is in flight beside the DISCARD may be ordered
// after it. The zeros may be in the destination's volatile cache, but the mark becomes durable only
// after a flush of the destination (I4, step 2).
//
// Users may wait for the claim of such a piece, as they wait for one in which zeros are written. A
// piece is a copy buffer at most, and a region larger than a buffer stays claimed until all of its
// pieces are done.

// Some destinations keep zeros that were read only until a part of the unit is written in which
// they give up space: then the rest of it shows old bytes (dm-thin with skip_block_zeroing). There
// only what users have discarded is spared.

// Spare is what is spared.
type Spare uint32

// From nothing on, more and more.
const (
	SpareNothing   Spare = iota
	SpareDiscarded       // what users have discarded
	SpareAll
)

// zeroing makes stretches of the destination zero. Where zeros that are there already are spared,
// it looks first.
type zeroing struct {
	core    *Core
	backend Backend
}

// spares says whether what o makes zero is spared.
func (z *zeroing) spares(o *op) bool {
	discarded := o.bg != nil && o.bg.Kind == ZeroZero || o.bg == nil && o.req.Op == OpDiscard
	return z.core.spare() == SpareAll || discarded && z.core.spare() == SpareDiscarded
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

// claimed makes a segment zero in the destination that lies in the operation's own claim.
func (z *zeroing) claimed(o *op, s *segment) {
	buf := o.buf
	if o.zeros { // the segment's stretch of what was read early
		buf = o.buf[s.lo-o.off : s.hi-o.off]
	}
	if buf != nil && z.spares(o) {
		o.look = look{at: s.lo, end: s.hi, buf: buf, claimed: true}
		z.readPiece(o)
		return
	}
	o.step = zeroWrite
	z.backend.ZeroDest(o.token, s.lo, s.hi-s.lo, o.bg != nil && z.core.passdown.Load())
}

// hydrated makes [lo, hi), of hydrated regions, zero in the destination.
func (z *zeroing) hydrated(o *op, lo, hi int64) {
	if o.buf != nil && z.spares(o) && !o.req.NoUnmap {
		o.look = look{at: lo, end: hi, buf: o.buf}
		z.readPiece(o)
		return
	}
	o.step = zeroWrite
	z.backend.ZeroDest(o.token, lo, hi-lo, o.passdown || o.req.Op == OpWriteZeroes && !o.req.NoUnmap)
}

// readPiece begins the next piece.
func (z *zeroing) readPiece(o *op) {
	k := &o.look
	n := int64(len(k.buf))
	k.stop, k.discarded = k.end, false
	if k.end-k.at > n {
		k.stop = (k.at/n + 1) * n
	}
	z.readLook(o)
}

func (z *zeroing) readLook(o *op) {
	k := &o.look
	o.step = lookRead
	z.backend.ReadDest(o.token, k.at, Data{Buf: k.buf[:k.stop-k.at]})
}

// lookReadDone: what cannot be read is written. It says whether the zeroing is done.
func (z *zeroing) lookReadDone(o *op, err error) (done bool) {
	k := &o.look
	k.from = k.at
	switch {
	case err != nil:
		z.writeLook(o, k.stop)
	case k.claimed && !k.discarded && !allZeros(k.buf[:k.stop-k.at]):
		k.discarded = true
		o.step = lookDiscard
		z.backend.DiscardDest(o.token, k.at, k.stop-k.at)
	default:
		return z.writeNonzero(o)
	}
	return false
}

// writeNonzero writes zeros over the next chunks of the piece that are not zero, or goes on with
// the next piece; done: there is none.
func (z *zeroing) writeNonzero(o *op) (done bool) {
	k := &o.look
	for k.from < k.stop && k.chunkZero(k.from) {
		k.from = k.chunkEnd(k.from)
	}
	end := k.from
	for end < k.stop && !k.chunkZero(end) {
		end = k.chunkEnd(end)
	}
	if k.from < end {
		z.writeLook(o, end)
		return false
	}
	k.at = k.stop
	if k.at == k.end {
		return true
	}
	z.readPiece(o)
	return false
}

func (k *look) chunkZero(off int64) bool {
	return allZeros(k.buf[off-k.at : k.chunkEnd(off)-k.at])
}

func (k *look) chunkEnd(off int64) int64 { return min(k.stop, (off/lookChunk+1)*lookChunk) }

// writeLook writes zeros up to end.
func (z *zeroing) writeLook(o *op, end int64) {
	k := &o.look
	off := k.from
	k.from = end
	o.step = lookWrite
	z.backend.ZeroDest(o.token, off, end-off, false)
}

// lookWriteDone says whether the zeroing is done, badly if so is the write.
func (z *zeroing) lookWriteDone(o *op, err error) (done bool) { return err != nil || z.writeNonzero(o) }
