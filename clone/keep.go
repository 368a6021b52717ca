package clone

// Read-through: what a READ takes from the source goes to a copy buffer of the lane, from there to
// the request, and after that to the destination, so that the next READ comes from there and no
// background copy is needed. The READ is answered without waiting for that. Half of the lane's
// operations and buffers stay with users; what is claimed or settled by then is left out, as for
// any copy in the background (I3, I8).

// keeps says whether the bytes [off, end), which are about to be read from the source, are to be
// kept: whole regions are among them, and there are a buffer that holds all of it and an operation
// for the write.
func (rd *reads) keeps(off, end int64) bool {
	if !rd.core.readThrough.Load() || end-off > rd.pool.bufSize || !rd.pool.plenty(end-off) {
		return false
	}
	first, stop := rd.core.geo.Covered(off, end-off)
	return first < stop
}

// keep gives what o has read to its request, and the whole regions of it, with the buffer, to an
// operation of their own. Without one free by now they are not kept.
func (rd *reads) keep(o *op) error {
	if err := rd.backend.Store(o.req, o.off-o.req.Off, o.buf[:o.at-o.off]); err != nil {
		return err
	}
	k := rd.pool.take()
	if k == nil {
		return nil
	}
	first, stop := rd.core.geo.Covered(o.off, o.at-o.off)
	k.off, k.end = rd.core.geo.Start(first), rd.core.geo.End(stop-1)
	k.buf, o.buf = o.buf, nil
	if k.off > o.off { // direct I/O of the destination wants it at a page
		copy(k.buf, k.buf[k.off-o.off:k.end-o.off])
	}
	k.kept = Hydration{First: first, End: stop, Done: dropped}
	k.bg = &k.kept
	rd.background.land(k, first)
	return nil
}

// dropped: nobody waits for what is kept. What could not be written stays in state Source.
func dropped(*Hydration, error) {}
