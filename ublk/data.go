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

// buffers is the memory of a queue for the bytes of requests, and the way to those that are
// registered.
type buffers struct {
	dev       *kernelDevice
	queue     int
	registers bool // as Info.ZeroCopy says

	tags []byte // copied: a request's largest size for each tag

	bounce  []byte // registered: the largest size, once
	bounced int    // the tag that has it, noTag if none
	waiting []uint16
}

const noTag = -1

func (b *buffers) make(dev *kernelDevice, queue int) (err error) {
	info := &dev.info
	b.dev, b.queue, b.registers, b.bounced = dev, queue, info.ZeroCopy(), noTag
	if b.registers {
		b.waiting = make([]uint16, 0, info.Depth)
		b.bounce, err = uring.MapBuffer(info.MaxIO)
	} else {
		b.tags, err = uring.MapBuffer(info.Depth * info.MaxIO)
	}
	if err != nil {
		return fmt.Errorf("queue %d: %w", b.queue, err)
	}
	return nil
}

func (b *buffers) free() error {
	if b.bounce != nil {
		return uring.UnmapBuffer(b.bounce)
	}
	return uring.UnmapBuffer(b.tags)
}

// slots is how many places the ring's table needs.
func (b *buffers) slots() int {
	if b.registers {
		return cmp.Or(b.dev.opts.table, b.dev.info.Depth)
	}
	return 0
}

// place tells the driver where the bytes of tag's next request belong: in its buffer, each time the
// same, or in its slot of the table.
func (b *buffers) place(tag uint16) (inEntry, inCommand uint64) {
	if b.registers {
		return uint64(tag) | autoBufFallback<<16, 0
	}
	return 0, addressOf(b.tagBuffer(tag))
}

func (b *buffers) tagBuffer(tag uint16) []byte {
	size := b.dev.info.MaxIO
	return b.tags[int(tag)*size : (int(tag)+1)*size]
}

// memory is where tag's bytes can be looked at; nil: they are registered.
func (b *buffers) memory(tag uint16) []byte {
	switch {
	case !b.registers:
		return b.tagBuffer(tag)
	case b.bounced == int(tag):
		return b.bounce
	}
	return nil
}

// Data are the bytes of tag's request, while the target has it, for backend I/O: a WRITE's are in
// it, a READ's are to be there at Commit. Empty for other operations.
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
func (b *buffers) Fetch(tag uint16, at int64, dst []byte) error {
	if m := b.memory(tag); m != nil {
		copy(dst, m[at:])
		return nil
	}
	return b.userCopy(unix.Pread, tag, at, dst)
}

// Store copies src to the bytes of a READ from its byte at on.
func (b *buffers) Store(tag uint16, at int64, src []byte) error {
	if m := b.memory(tag); m != nil {
		copy(m[at:], src)
		return nil
	}
	return b.userCopy(unix.Pwrite, tag, at, src)
}

// Clear zeroes n bytes of a READ from its byte at on.
func (b *buffers) Clear(tag uint16, at, n int64) error {
	if m := b.memory(tag); m != nil {
		clear(m[at : at+n])
		return nil
	}
	zeros, err := uring.Zeros()
	for err == nil && n > 0 {
		part := zeros[:min(n, int64(len(zeros)))]
		err = b.userCopy(unix.Pwrite, tag, at, part)
		at, n = at+int64(len(part)), n-int64(len(part))
	}
	return err
}

// userCopy has the driver copy all of p, which must be in memory, from or to tag's request. It
// waits for nothing. The place of a request in ublkcN is given by UBLK_IO_BUF_OFF, UBLK_TAG_OFF,
// UBLK_QID_OFF (ublk_cmd.h).
func (b *buffers) userCopy(transfer func(fd int, b []byte, off int64) (int, error), tag uint16, at int64, p []byte) error {
	place := ioBufStart + int64(b.queue)<<queueOffset + int64(tag)<<tagOffset + at
	for len(p) > 0 {
		n, err := transfer(b.dev.charFD, p, place)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("queue %d tag %d: copy %d bytes of the request: %w", b.queue, tag, len(p), err)
		case n == 0:
			return fmt.Errorf("queue %d tag %d: copy %d bytes of the request: %w", b.queue, tag, len(p), io.ErrUnexpectedEOF)
		}
		p, place = p[n:], place+int64(n)
	}
	return nil
}

// needsBounce says whether the driver has failed to register the request's pages.
func (b *buffers) needsBounce(d Desc) bool {
	if !b.registers || !d.hasData() {
		return false
	}
	return d.Flags&flagNeedRegBuf != 0 || b.dev.opts.bounce
}

// bounceIsFree says whether a request may have the bounce buffer now. Those that wait for it come
// first.
func (b *buffers) bounceIsFree() bool { return b.bounced == noTag && len(b.waiting) == 0 }

// serveBounced gives the bounce buffer to tag, with the bytes of a WRITE, and the request to the
// target.
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

// leaveBounce brings the bytes of a READ to the request, if tag has the bounce buffer, and lets go
// of it.
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

// nextBounce serves the next request in line, if the bounce buffer is free, and says whether it
// did.
func (q *Queue) nextBounce() bool {
	if q.buffers.bounced != noTag || len(q.buffers.waiting) == 0 {
		return false
	}
	tag := q.buffers.waiting[0]
	q.buffers.waiting = append(q.buffers.waiting[:0], q.buffers.waiting[1:]...)
	q.serveBounced(tag, q.desc(tag))
	return true
}
