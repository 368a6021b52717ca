package clone

import "github.com/ublk-clone/ublk-clone/bitmap"

// reads are READs. They take no lock and wait for nobody.
type reads struct {
	core       *Core
	backend    Backend
	pool       *pool
	source     *source
	users      *users
	background *background // what a READ got goes there
}

// read hands out a READ in parts, one for each run of regions in one state, at most readParts at a
// time (I2). It takes no lock and waits for nobody: source bytes never change, and H is final.
func (rd *reads) read(r *Request) {
	if r.pending == 0 {
		r.cursor = r.Off
	}
	rd.readOn(r)
}

// readOn hands out further parts; what is in state Zero is done here and now.
func (rd *reads) readOn(r *Request) {
	end := r.Off + r.Len
	for r.err == nil && r.cursor < end && r.pending < readParts {
		st, stop := rd.core.run(r.cursor, end)
		if st == bitmap.Zero {
			r.err = rd.backend.Clear(r, r.cursor-r.Off, stop-r.cursor)
		} else if !rd.readPart(r, stop) {
			return
		}
		r.cursor = stop
	}
	if r.pending == 0 {
		rd.users.end(r, r.err)
	}
}

// readPart starts the part [r.cursor, stop). Without a free operation it answers false: parts in
// flight will go on with the rest when they end, and a request that has none is in the starved
// list.
func (rd *reads) readPart(r *Request, stop int64) bool {
	if r.pending > 0 && len(rd.pool.freeOps) == 0 {
		return false
	}
	o := rd.pool.newOp(r)
	if o == nil {
		return false
	}
	o.off, o.end = r.cursor, stop
	if rd.readRun(o) {
		r.pending++
	} else {
		rd.pool.freeOp(o)
	}
	return true
}

// readRun reads the next run of a part, or answers that nothing is left to wait for. Mostly the
// part is one run; it falls apart when regions were hydrated since it was cut.
func (rd *reads) readRun(o *op) bool {
	r := o.req
	for o.off < o.end && r.err == nil {
		st, stop := rd.core.run(o.off, o.end)
		o.step, o.at, o.fromSource = readRun, stop, st == bitmap.Source
		data := Data{Request: r, At: o.off - r.Off, Len: stop - o.off}
		switch st {
		case bitmap.Source:
			if rd.keeps(o.off, stop) && rd.pool.takeBuffer(o, stop-o.off) {
				data = Data{Buf: o.buf[:stop-o.off]}
			}
			rd.source.read(o, o.off, data)
			return true
		case bitmap.Hydrated:
			rd.backend.ReadDest(o.token, o.off, data)
			return true
		}
		r.err = rd.backend.Clear(r, data.At, data.Len)
		o.off = stop
	}
	return false
}

// readRunDone: a failed read of the source looks at the map again before it counts, as the bytes
// may be in the destination by now (I11), and is tried again.
func (rd *reads) readRunDone(o *op, err error) {
	r := o.req
	if err == nil && o.buf != nil {
		if err := rd.keep(o); r.err == nil { // another part may have failed before
			r.err = err
		}
	}
	rd.pool.freeBuffer(o)
	switch {
	case err == nil:
		o.off, o.tries = o.at, 0
	case r.err != nil || o.fromSource && rd.core.left(o.off, o.at):
	case o.fromSource && rd.source.tryAgain(o, err):
		return
	default:
		r.err = err
	}
	rd.readRunOn(o)
}

// readRunOn goes on with a part, or with the READ when the part is done.
func (rd *reads) readRunOn(o *op) {
	r := o.req
	if rd.readRun(o) {
		return
	}
	rd.pool.freeOp(o)
	r.pending--
	rd.readOn(r)
}
