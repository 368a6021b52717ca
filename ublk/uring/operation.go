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
	stepStream   // a stream's read, in line or with the server
	stepNoStream // a stream's read of nothing, or after its end
)

// operation is one backend I/O, in the loop's table under its token. off and length are what is
// left to do; short results move them on.
type operation struct {
	step    step
	dsync   bool
	alone   bool // read: no one request with others
	wait    bool // discard: the device cannot take it without a wait
	port    *Port
	data    Data // read, write: what is left
	off     int64
	length  int64
	nextOne uint32 // in a fifo
	given   uint16 // how often the kernel has given it up
	refused unix.Errno
	stream  *Stream
	handle  uint64 // stream: that of the request, 0 in line
}

// advance takes the kernel's result. It says whether the operation is to be issued again, for its
// rest or in another way, or else how it has ended.
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
		op.data = op.data.Slice(n, op.length)
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

// failed decides what an errno means: EINTR nothing, ECANCELED and EAGAIN that the kernel has not
// begun it (GivenUp), which is no error unless it happens for ever, "not supported" another way
// where there is one.
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
	case op.step == stepDiscard && unsupported && !op.wait:
		// io_uring tries without waiting first, which a device such as dm-thin does not take
		// (submit_bio_noacct, block/blk-core.c, 6.12 and 7.3), and does not try again for this
		// errno.
		op.wait = true
		return true, nil
	case op.step == stepDiscard && (unsupported || errno == unix.EINVAL):
		return false, nil
	case op.step == stepPunch && unsupported:
		op.port.file.noPunch.Store(true)
		op.step = zeroStep(op.port.file, false)
		return true, nil
	case op.step == stepZeroRange && unsupported:
		op.port.file.noZeroRange.Store(true)
		op.step = stepZeroWrite
		return true, nil
	}
	return false, errno
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
