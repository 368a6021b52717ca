package uring

import "golang.org/x/sys/unix"

// Data are the bytes of a transfer: memory of this process, or a stretch of a buffer that a driver
// has put into the table of the loop's ring (LoopOptions.Slots), where nobody here can look at
// them. It is small, and has no pointer for the collector to be told of: each request hands one
// through eight calls.
type Data struct {
	at         uint64 // address of the memory, or the byte of the registered buffer
	length     int64
	slot       uint16
	registered bool
}

// Memory is b, which comes from MapBuffer.
func Memory(b []byte) Data { return Data{at: address(b), length: int64(len(b))} }

// Registered is length bytes of the buffer in slot from its byte at on.
func Registered(slot uint16, at, length int64) Data {
	return Data{registered: true, slot: slot, at: uint64(at), length: length}
}

// Len is the number of bytes.
func (d Data) Len() int64 { return d.length }

// Slice is the stretch of n bytes from byte at of d on.
func (d Data) Slice(at, n int64) Data {
	if at < 0 || n < 0 || at > d.length-n {
		panic("slice of a transfer's bytes out of range")
	}
	d.at, d.length = d.at+uint64(at), n
	return d
}

// backend is the backend I/O of a loop.
type backend struct {
	ring        *Ring
	handler     Handler
	ops         []operation // by token
	done        fifo        // ended without the kernel
	outstanding int         // with the kernel, or in line at a port or stream
	entries     int         // of streams, with the kernel
	// alonePriority is the I/O priority of what is read alone.
	alonePriority uint16
	streams       []*Stream // by id; nil: the place is free
	sequence      uint32    // of the last handle

	err error // the first failure of the ring: it ends the loop
}

// Err is why Run will end, or nil. Called on the loop's thread.
func (b *backend) Err() error { return b.err }

// Idle says that no backend I/O is outstanding. Called on the loop's thread.
func (b *backend) Idle() bool { return b.outstanding == 0 && b.entries == 0 && b.done.empty() }

// Outstanding is how many backend I/Os are with the kernel, or in line. Called on the loop's
// thread.
func (b *backend) Outstanding() int { return b.outstanding }

// keep remembers the first failure of the ring; Run ends with it.
func (b *backend) keep(err error) {
	if err != nil && b.err == nil {
		b.err = err
	}
}

// Port is a loop's way to a File: no more than a limit of I/Os there are with the kernel at a time,
// others wait in order. What the queue of a device cannot take is handed to worker threads by the
// kernel, 63 to 68 % of the requests to one with 5 places at depth 32: 35 thousand requests a
// second, 43 thousand with at most 10 in flight (6.18, one CPU of 1 GIPS). Its methods are called
// on the loop's thread; each I/O ends with Handler.EndIO.
type Port struct {
	backend  *backend
	file     *File
	fd       int // for entries: the file's, or what Ring.fix has answered
	limit    int
	inFlight int
	waiting  fifo
}

// Open makes a way to f with at most limit I/Os at a time; 0 is no limit. It needs no Close: it is
// let go of when nothing is in flight there.
func (b *backend) Open(f *File, limit int) *Port {
	if limit == 0 {
		limit = len(b.ops)
	}
	return &Port{backend: b, file: f, fd: f.fd, limit: limit}
}

// OpenFixed is Open of the one file that the loop's ring has registered from now on, for as long as
// there is the loop, or until LetGo: 0.4 % of the IOPS of writes at S=1. Where it cannot be, for
// want of memory or because there is one, it is Open. (The driver's commands would gain nothing
// that can be measured, and what is registered outlives its close: a device whose ublkcN it is
// cannot be deleted.)
func (b *backend) OpenFixed(f *File, limit int) *Port {
	p := b.Open(f, limit)
	if fd, err := b.ring.fix(f.fd); err == nil {
		p.fd = fd
	}
	return p
}

// LetGo lets the file go that OpenFixed has registered, so that it can be closed: no backend I/O is
// outstanding, and there is none on that port any more. OpenFixed may follow. Called on the loop's
// thread.
func (b *backend) LetGo() error { return b.ring.unfix() }

// GiveUp ends with errno what is in line, which the kernel has not been told of. It says how much
// is with the kernel. Called on the loop's thread, not from Handler.EndIO.
func (p *Port) GiveUp(errno unix.Errno) (withKernel int) {
	for !p.waiting.empty() {
		token := p.waiting.pop(p.backend.ops)
		p.backend.outstanding--
		p.backend.end(token, errno)
	}
	return p.inFlight
}

// File is what the port leads to.
func (p *Port) File() *File { return p.file }

// Read fills d from off. A file that ends before is io.ErrUnexpectedEOF.
func (p *Port) Read(token uint32, off int64, d Data) {
	p.take(token, stepRead, off, d.length).data = d
	p.start(token)
}

// ReadAlone is Read, but the block layer makes no one request of it and others, which a bad sector
// that one of them covers would fail whole.
func (p *Port) ReadAlone(token uint32, off int64, d Data) {
	op := p.take(token, stepRead, off, d.length)
	op.data, op.alone = d, true
	p.start(token)
}

// Write writes the whole of d at off; with dsync its data are durable when it ends.
func (p *Port) Write(token uint32, off int64, d Data, dsync bool) {
	op := p.take(token, stepWrite, off, d.length)
	op.data, op.dsync = d, dsync
	p.start(token)
}

// Zero makes length bytes at off read as zeros. With unmap their space may be given up; where there
// is no such way, and where zeroing is not offered at all, zeros are written.
func (p *Port) Zero(token uint32, off, length int64, unmap bool) {
	p.take(token, zeroStep(p.file, unmap), off, length)
	p.start(token)
}

// Discard tells the device that length bytes at off are not needed; what they read as afterwards is
// not defined. It is advice: where the device or kernel (block devices: before 6.12) does not take
// it, it ends well and nothing was done.
func (p *Port) Discard(token uint32, off, length int64) {
	p.take(token, stepDiscard, off, length)
	p.start(token)
}

// Flush makes everything durable whose write had completed before (fdatasync).
func (p *Port) Flush(token uint32) {
	p.take(token, stepFlush, 0, 1)
	p.start(token)
}

// Refuse ends with errno, without any file.
func (b *backend) Refuse(token uint32, errno unix.Errno) {
	op := b.free(token)
	op.step, op.refused = stepRefused, errno
	b.done.push(b.ops, token)
}

// zeroStep is the best way to zero f that is not known to fail.
func zeroStep(f *File, unmap bool) step {
	switch {
	case unmap && !f.noPunch.Load():
		return stepPunch
	case !f.noZeroRange.Load():
		return stepZeroRange
	}
	return stepZeroWrite
}

// free is the operation of a token, which nothing is under way with.
func (b *backend) free(token uint32) *operation {
	op := &b.ops[token]
	if op.step != stepIdle {
		panic("backend I/O started on a token in use")
	}
	return op
}

// take makes an operation of a token, without data.
func (p *Port) take(token uint32, st step, off, length int64) *operation {
	op := p.backend.free(token)
	op.step, op.dsync, op.alone, op.wait, op.given = st, false, false, false, 0
	op.port, op.off, op.length = p, off, length
	return op
}

// start begins an operation, or puts it in line.
func (p *Port) start(token uint32) {
	b := p.backend
	switch op := &b.ops[token]; {
	case op.length == 0:
		b.done.push(b.ops, token)
	case p.inFlight == p.limit:
		p.waiting.push(b.ops, token)
		b.outstanding++
	default:
		p.inFlight++
		b.outstanding++
		b.issue(token, op)
	}
}

// issue prepares the entry for what is left of op.
func (b *backend) issue(token uint32, op *operation) {
	user, fd := userBackend|uint64(token), op.port.fd
	switch op.step {
	case stepRead:
		b.keep(b.ring.Read(fd, op.off, op.data, b.priority(op), user))
	case stepWrite:
		b.keep(b.ring.Write(fd, op.off, op.data, writeFlags(op.dsync), user))
	case stepPunch:
		b.keep(b.ring.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.off, op.length, user))
	case stepZeroRange:
		b.keep(b.ring.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, op.off, op.length, user))
	case stepZeroWrite:
		b.keep(b.ring.Write(fd, op.off, zeroPiece(op.length), 0, user))
	case stepDiscard:
		b.issueDiscard(op, user)
	case stepFlush:
		b.keep(b.ring.Fdatasync(fd, user))
	}
}

// priority of a read. The block layer joins only what has the same (blk_rq_merge_ok,
// block/blk-merge.c, 6.12 and 7.3), and nothing else has the priority of what is read alone, but
// for that of every eighth loop.
func (b *backend) priority(op *operation) uint16 {
	if op.alone {
		return b.alonePriority
	}
	return 0
}

func writeFlags(dsync bool) uint32 {
	if dsync {
		return unix.RWF_DSYNC
	}
	return 0
}

// zeroPiece is the next piece of a written zeroing. NewLoop has made the buffer.
func zeroPiece(length int64) Data {
	b, _ := zeros()
	return Memory(b[:min(length, zeroSize)])
}

// issueDiscard: a block device has a command for it, a file gives up the space.
func (b *backend) issueDiscard(op *operation, user uint64) {
	fd := op.port.fd
	if op.port.file.block {
		b.keep(b.ring.BlockDiscard(fd, op.off, op.length, op.wait, user))
		return
	}
	b.keep(b.ring.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.off, op.length, user))
}

// backendDone is the kernel's answer to issue. The operation goes on if there is something left,
// otherwise its place goes to the next in line.
func (b *backend) backendDone(token uint32, res int32) {
	op := &b.ops[token]
	again, err := op.advance(res)
	if again {
		b.issue(token, op)
		return
	}
	b.outstanding--
	if p := op.port; p.waiting.empty() {
		p.inFlight--
	} else {
		next := p.waiting.pop(b.ops)
		b.issue(next, &b.ops[next])
	}
	b.end(token, err)
}

// end frees the token and tells the handler, in this order: the handler may use the token at once.
func (b *backend) end(token uint32, err error) {
	b.ops[token].step = stepIdle
	b.handler.EndIO(token, err)
}

// endDone ends the operations that needed no kernel, those that were there when it began: an
// operation of no length that starts another would keep the loop here.
func (b *backend) endDone() {
	for n := b.done.n; n > 0; n-- {
		token := b.done.pop(b.ops)
		var err error
		switch op := &b.ops[token]; op.step {
		case stepRefused:
			err = op.refused
		case stepNoStream:
			err = op.stream.lost
		}
		b.end(token, err)
	}
}
