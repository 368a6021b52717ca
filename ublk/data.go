package ublk

import (
	"cmp"
	"fmt"
	"io"

	"github.com/ublk-clone/ublk-clone/ublk/uring"
	"golang.org/x/sys/unix"
)

// How the bytes of requests come to a queue:
//
//	copied      between the request and the tag's buffer, by the driver, before the request comes and at its commit
//	            (every kernel)
//	registered  the request's own pages are in the ring's table, in the slot that is the tag's number, while the
//	            target has it (UBLK_F_AUTO_BUF_REG, 6.16): backend I/O goes straight to and from them. Whoever has to
//	            look at them has the driver copy (UBLK_F_USER_COPY).
//	bounced     of a device that registers: for this request the driver had no memory for the entry of the table
//	            (UBLK_IO_F_NEED_REG_BUF). It is copied to the queue's only bounce buffer and from there, for one
//	            request at a time; others wait.

// ZeroCopy says whether the device's requests are registered.
func (i Info) ZeroCopy() bool { return i.Features.AutoBufReg && i.Features.UserCopy }

// buffers is the memory of a queue for the bytes of requests.
type buffers struct {
	registers bool // as Info.ZeroCopy says

	tags []byte // copied: a request's largest size for each tag

	bounce  []byte // registered: the largest size, once
	bounced int    // the tag that has it, noTag if none
	waiting []uint16
}

const noTag = -1

func (q *Queue) makeBuffers() (err error) {
	info := &q.dev.info
	q.buffers.registers, q.buffers.bounced = info.ZeroCopy(), noTag
	if q.buffers.registers {
		q.buffers.waiting = make([]uint16, 0, info.Depth)
		q.buffers.bounce, err = uring.MapBuffer(info.MaxIO)
	} else {
		q.buffers.tags, err = uring.MapBuffer(info.Depth * info.MaxIO)
	}
	if err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	return nil
}

func (q *Queue) freeBuffers() error {
	if q.buffers.bounce != nil {
		return uring.UnmapBuffer(q.buffers.bounce)
	}
	return uring.UnmapBuffer(q.buffers.tags)
}

// slots is how many places the ring's table needs.
func (q *Queue) slots() int {
	if q.buffers.registers {
		return cmp.Or(q.dev.opts.table, q.dev.info.Depth)
	}
	return 0
}

// place tells the driver where the bytes of tag's next request belong: in its buffer, each time the same, or in its
// slot of the table.
func (q *Queue) place(tag uint16) (inEntry, inCommand uint64) {
	if q.buffers.registers {
		return uint64(tag) | autoBufFallback<<16, 0
	}
	return 0, addressOf(q.tagBuffer(tag))
}

func (q *Queue) tagBuffer(tag uint16) []byte {
	size := q.dev.info.MaxIO
	return q.buffers.tags[int(tag)*size : (int(tag)+1)*size]
}

// memory is where tag's bytes can be looked at; nil: they are registered.
func (q *Queue) memory(tag uint16) []byte {
	switch {
	case !q.buffers.registers:
		return q.tagBuffer(tag)
	case q.buffers.bounced == int(tag):
		return q.buffers.bounce
	}
	return nil
}

// Data are the bytes of tag's request, while the target has it, for backend I/O: a WRITE's are in it, a READ's are to
// be there at Commit. Empty for other operations.
func (q *Queue) Data(tag uint16) uring.Data {
	d := q.desc(tag)
	switch m := q.memory(tag); {
	case !d.hasData():
		return uring.Data{}
	case m != nil:
		return uring.Memory(m[:d.Length()])
	}
	return uring.Registered(tag, 0, d.Length())
}

// Fetch copies bytes of a WRITE from its byte at on to dst.
func (q *Queue) Fetch(tag uint16, at int64, dst []byte) error {
	if m := q.memory(tag); m != nil {
		copy(dst, m[at:])
		return nil
	}
	return q.userCopy(unix.Pread, tag, at, dst)
}

// Store copies src to the bytes of a READ from its byte at on.
func (q *Queue) Store(tag uint16, at int64, src []byte) error {
	if m := q.memory(tag); m != nil {
		copy(m[at:], src)
		return nil
	}
	return q.userCopy(unix.Pwrite, tag, at, src)
}

// Clear zeroes n bytes of a READ from its byte at on.
func (q *Queue) Clear(tag uint16, at, n int64) error {
	if m := q.memory(tag); m != nil {
		clear(m[at : at+n])
		return nil
	}
	zeros, err := uring.Zeros()
	for err == nil && n > 0 {
		part := zeros[:min(n, int64(len(zeros)))]
		err = q.userCopy(unix.Pwrite, tag, at, part)
		at, n = at+int64(len(part)), n-int64(len(part))
	}
	return err
}

// userCopy has the driver copy all of b, which must be in memory, from or to tag's request. It waits for nothing.
// The place of a request in ublkcN is given by UBLK_IO_BUF_OFF, UBLK_TAG_OFF, UBLK_QID_OFF (ublk_cmd.h).
func (q *Queue) userCopy(transfer func(fd int, b []byte, off int64) (int, error), tag uint16, at int64, b []byte) error {
	place := ioBufStart + int64(q.index)<<queueOffset + int64(tag)<<tagOffset + at
	for len(b) > 0 {
		n, err := transfer(q.dev.charFD, b, place)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("queue %d tag %d: copy %d bytes of the request: %w", q.index, tag, len(b), err)
		case n == 0:
			return fmt.Errorf("queue %d tag %d: copy %d bytes of the request: %w", q.index, tag, len(b), io.ErrUnexpectedEOF)
		}
		b, place = b[n:], place+int64(n)
	}
	return nil
}

// needsBounce says whether the driver has failed to register the request's pages.
func (q *Queue) needsBounce(d Desc) bool {
	if !q.buffers.registers || !d.hasData() {
		return false
	}
	return d.Flags&flagNeedRegBuf != 0 || q.dev.opts.bounce
}

// bounceIsFree says whether a request may have the bounce buffer now. Those that wait for it come first.
func (q *Queue) bounceIsFree() bool { return q.buffers.bounced == noTag && len(q.buffers.waiting) == 0 }

// serveBounced gives the bounce buffer to tag, with the bytes of a WRITE, and the request to the target.
func (q *Queue) serveBounced(tag uint16, d Desc) {
	if d.Op == OpWrite {
		if err := q.Fetch(tag, 0, q.buffers.bounce[:d.Length()]); err != nil {
			q.Commit(tag, err)
			return
		}
	}
	q.buffers.bounced = int(tag)
	q.target.Request(tag, d)
}

// leaveBounce brings the bytes of a READ to the request, if tag has the bounce buffer, and lets go of it.
func (q *Queue) leaveBounce(tag uint16, err error) error {
	if q.buffers.bounced != int(tag) {
		return err
	}
	q.buffers.bounced = noTag
	if d := q.desc(tag); err == nil && d.Op == OpRead {
		err = q.Store(tag, 0, q.buffers.bounce[:d.Length()])
	}
	return err
}

// nextBounce serves the next request in line, if the bounce buffer is free, and says whether it did.
func (q *Queue) nextBounce() bool {
	if q.buffers.bounced != noTag || len(q.buffers.waiting) == 0 {
		return false
	}
	tag := q.buffers.waiting[0]
	q.buffers.waiting = append(q.buffers.waiting[:0], q.buffers.waiting[1:]...)
	q.serveBounced(tag, q.desc(tag))
	return true
}
