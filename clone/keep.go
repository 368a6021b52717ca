package clone

// keep is read-through: the bytes [off, end) that r has got from the source are written to the destination
// too, so that the next READ comes from there and no background copy is needed. They are copied to buffers of
// the lane, and r is answered without waiting for any of it. Regions covered in part, or larger than a buffer,
// are left; half of the lane's operations and buffers stay with users, and what is claimed or settled by then
// is left out, as for any copy in the background (I3, I8).
func (l *Lane) keep(r *Request, off, end int64) {
	first, stop := l.core.geo.Covered(off, end-off)
	n := uint64(l.bufSize) >> l.core.geo.shift
	for n > 0 && first < stop && len(l.freeOps) > len(l.ops)/2 && len(l.buffers) > l.nrBuffers/2 {
		next := min(stop, first+n)
		if !l.keepRegions(r, first, next) {
			return
		}
		first = next
	}
}

// keepRegions writes the regions [first, end), whose bytes r has got.
func (l *Lane) keepRegions(r *Request, first, end uint64) bool {
	o := l.newOp(r)
	l.takeBuffer(o)
	o.off, o.end = l.core.geo.Start(first), l.core.geo.End(end-1)
	if l.backend.Fetch(r, o.off-r.Off, o.buf[:o.end-o.off]) != nil {
		l.freeOp(o)
		return false
	}
	o.req = nil
	o.kept = Hydration{First: first, End: end, Done: dropped}
	o.bg = &o.kept
	l.land(o, first)
	return true
}

// dropped: nobody waits for what is kept. What could not be written stays in state Source.
func dropped(*Hydration, error) {}
