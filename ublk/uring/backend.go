package uring

import (
	"io"

	"golang.org/x/sys/unix"
)

// step says what an operation has asked of the kernel.
type step uint8

const (
	stepIdle step = iota
	stepRead
	stepWrite
	stepPunch     // zeros by unmapping
	stepZeroRange // zeros by the device or file system
	stepZeroWrite // zeros written, in pieces of zeroSize
	stepDiscard
	stepFlush
	stepRefused
)

// operation is one backend I/O, in the loop's table under its token. off and length are what is left to do;
// short results move them on.
type operation struct {
	step    step
	dsync   bool
	alone   bool // read: no one request with others
	file    *File
	buf     []byte // read, write: what is left
	off     int64
	length  int64
	nextOne uint32 // in a fifo
	given   uint16 // how often the kernel has given it up
	refused unix.Errno
}

// Read fills buf from off. A file that ends before is io.ErrUnexpectedEOF.
func (l *Loop) Read(token uint32, f *File, off int64, buf []byte) {
	l.start(token, operation{step: stepRead, file: f, off: off, buf: buf, length: int64(len(buf))})
}

// ReadAlone is Read, but the block layer makes no one request of it and others, which a bad sector that one of
// them covers would fail whole.
func (l *Loop) ReadAlone(token uint32, f *File, off int64, buf []byte) {
	l.start(token, operation{step: stepRead, file: f, off: off, buf: buf, length: int64(len(buf)), alone: true})
}

// Refuse ends with errno, without any file.
func (l *Loop) Refuse(token uint32, errno unix.Errno) {
	l.start(token, operation{step: stepRefused, refused: errno})
}

// Write writes the whole of buf at off; with dsync its data are durable when it ends.
func (l *Loop) Write(token uint32, f *File, off int64, buf []byte, dsync bool) {
	l.start(token, operation{step: stepWrite, file: f, off: off, buf: buf, length: int64(len(buf)), dsync: dsync})
}

// Zero makes length bytes at off read as zeros. With unmap their space may be given up; where there is no
// such way, and where zeroing is not offered at all, zeros are written.
func (l *Loop) Zero(token uint32, f *File, off, length int64, unmap bool) {
	l.start(token, operation{step: zeroStep(f, unmap), file: f, off: off, length: length})
}

// Discard tells the device that length bytes at off are not needed; what they read as afterwards is not
// defined. It is advice: where the device or kernel (block devices: before 6.12) does not take it, it ends
// well and nothing was done.
func (l *Loop) Discard(token uint32, f *File, off, length int64) {
	l.start(token, operation{step: stepDiscard, file: f, off: off, length: length})
}

// Flush makes everything durable whose write had completed before (fdatasync).
func (l *Loop) Flush(token uint32, f *File) {
	l.start(token, operation{step: stepFlush, file: f, length: 1})
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

// start begins an operation, or puts it in line.
func (l *Loop) start(token uint32, o operation) {
	op := &l.ops[token]
	if op.step != stepIdle {
		panic("backend I/O started on a token in use")
	}
	*op = o
	switch {
	case o.length == 0:
		l.done.push(l.ops, token)
	case l.inFlight == l.maxInFlight:
		l.waiting.push(l.ops, token)
	default:
		l.inFlight++
		l.issue(token, op)
	}
}

// issue prepares the entry for what is left of op.
func (l *Loop) issue(token uint32, op *operation) {
	user, fd := userBackend|uint64(token), op.file.fd
	switch op.step {
	case stepRead:
		l.keep(l.ring.ReadPriority(fd, op.off, op.buf, l.priority(op), user))
	case stepWrite:
		l.keep(l.ring.Write(fd, op.off, op.buf, writeFlags(op.dsync), user))
	case stepPunch:
		l.keep(l.ring.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.off, op.length, user))
	case stepZeroRange:
		l.keep(l.ring.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, op.off, op.length, user))
	case stepZeroWrite:
		l.keep(l.ring.Write(fd, op.off, zeroPiece(op.length), 0, user))
	case stepDiscard:
		l.issueDiscard(op, user)
	case stepFlush:
		l.keep(l.ring.Fdatasync(fd, user))
	}
}

// priority of a read. The block layer joins only what has the same (blk_rq_merge_ok, block/blk-merge.c, 6.12 and
// 7.3), and nothing else has the priority of what is read alone, but for that of every eighth loop.
func (l *Loop) priority(op *operation) uint16 {
	if op.alone {
		return l.alonePriority
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
func zeroPiece(length int64) []byte {
	b, _ := zeros()
	return b[:min(length, zeroSize)]
}

// issueDiscard: a block device has a command for it, a file gives up the space.
func (l *Loop) issueDiscard(op *operation, user uint64) {
	if op.file.block {
		l.keep(l.ring.BlockDiscard(op.file.fd, op.off, op.length, user))
		return
	}
	l.keep(l.ring.Fallocate(op.file.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.off, op.length, user))
}

// backendDone is the kernel's answer to issue. The operation goes on if there is something left, otherwise
// its place goes to the next in line.
func (l *Loop) backendDone(token uint32, res int32) {
	op := &l.ops[token]
	again, err := op.advance(res)
	if again {
		l.issue(token, op)
		return
	}
	l.inFlight--
	if !l.waiting.empty() {
		next := l.waiting.pop(l.ops)
		l.inFlight++
		l.issue(next, &l.ops[next])
	}
	l.end(token, err)
}

// advance takes the kernel's result. It says whether the operation is to be issued again, for its rest or in
// another way, or else how it has ended.
func (op *operation) advance(res int32) (again bool, err error) {
	if res < 0 {
		return op.failed(unix.Errno(-res))
	}
	switch op.step {
	case stepRead, stepWrite, stepZeroWrite:
		return op.moved(int64(res))
	}
	return false, nil
}

// moved counts n bytes of a transfer. A device or file that moves nothing would be asked for ever.
func (op *operation) moved(n int64) (again bool, err error) {
	op.off += n
	op.length -= n
	if op.step != stepZeroWrite {
		op.buf = op.buf[n:]
	}
	switch {
	case op.length == 0:
		return false, nil
	case n > 0:
		return true, nil
	case op.step == stepRead:
		return false, io.ErrUnexpectedEOF
	}
	return false, io.ErrShortWrite
}

// failed decides what an errno means: EINTR nothing, ECANCELED and EAGAIN that the kernel has not begun it
// (GivenUp), which is no error unless it happens for ever, "not supported" another way where there is one.
func (op *operation) failed(errno unix.Errno) (again bool, err error) {
	switch {
	case errno == unix.EINTR:
		return true, nil
	case errno == unix.EAGAIN && op.given < givenLimit:
		op.given++
		return true, nil
	case GivenUp(-int32(errno), int(op.given)):
		op.given++
		return true, nil
	}
	unsupported := errno == unix.EOPNOTSUPP
	switch {
	case op.step == stepDiscard && (unsupported || errno == unix.EINVAL):
		return false, nil
	case op.step == stepPunch && unsupported:
		op.file.noPunch.Store(true)
		op.step = zeroStep(op.file, false)
		return true, nil
	case op.step == stepZeroRange && unsupported:
		op.file.noZeroRange.Store(true)
		op.step = stepZeroWrite
		return true, nil
	}
	return false, errno
}

// end frees the token and tells the handler, in this order: the handler may use the token at once.
func (l *Loop) end(token uint32, err error) {
	l.ops[token] = operation{}
	l.handler.Complete(token, err)
}

// endDone ends the operations that needed no kernel, those that were there when it began: an operation of no
// length that starts another would keep the loop here.
func (l *Loop) endDone() {
	for n := l.done.n; n > 0; n-- {
		token := l.done.pop(l.ops)
		var err error
		if op := &l.ops[token]; op.step == stepRefused {
			err = op.refused
		}
		l.end(token, err)
	}
}

// fifo is a list of operations in order, linked through the table. An operation is in one at most.
type fifo struct {
	first, last uint32
	n           int
}

func (q *fifo) empty() bool { return q.n == 0 }

func (q *fifo) push(ops []operation, token uint32) {
	if q.n == 0 {
		q.first = token
	} else {
		ops[q.last].nextOne = token
	}
	q.last = token
	q.n++
}

func (q *fifo) pop(ops []operation) uint32 {
	token := q.first
	q.first = ops[token].nextOne
	q.n--
	return token
}
