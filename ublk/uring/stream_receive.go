package uring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// receiver is the receiving half of a stream: what comes next is a reply's head, or the bytes of the
// read whose head has come. (To have the next head follow the bytes in one chain of entries,
// IOSQE_IO_LINK, saves a system call for each reply, but nothing that could be measured, and if the
// chain were ever parted, the two would take each other's bytes.)
type receiver struct {
	head       []byte
	got        int    // bytes of it that have come
	filling    uint32 // the read whose bytes come next, noToken if a head comes
	receiving  bool   // an entry is with the kernel
	receiveTry uint16 // how often in a row the kernel has given it up
}

// noToken is no token.
const noToken = ^uint32(0)

var errClosed = errors.New("the server has closed the connection")

// receive asks for what comes next, unless that has been done.
func (s *Stream) receive() {
	if s.receiving || s.lost != nil || s.inFlight == 0 {
		return
	}
	b := s.backend
	s.receiving = true
	b.entries++
	if s.filling == noToken {
		b.keep(b.ring.Read(s.file.fd, 0, Memory(s.head[s.got:]), 0, s.user(streamReceive)))
		return
	}
	b.keep(b.ring.Read(s.file.fd, 0, b.ops[s.filling].data, 0, s.user(streamReceive)))
}

// received is the kernel's answer to that.
func (s *Stream) received(res int32) {
	s.receiving = false
	s.backend.entries--
	switch {
	case s.lost != nil:
		return
	case notBegun(res, &s.receiveTry):
	case res <= 0:
		s.lose(whyEnded("receive replies", unix.Errno(-res)))
	case s.filling == noToken:
		s.receiveTry = 0
		s.headCame(int(res))
	default:
		s.receiveTry = 0
		s.bytesCame(int64(res))
	}
	s.receive()
}

// headCame looks at what there is of a head after n bytes more.
func (s *Stream) headCame(n int) {
	s.got += n
	handle, failure, missing, err := s.wire.Reply(s.head[:s.got])
	switch {
	case err != nil:
		s.lose(err)
	case missing == 0:
		s.got = 0
		s.answered(handle, failure)
	}
}

// answered finds the read that a whole head is about. The handle of a read that has ended is not
// used again for 2^32 reads of the loop.
func (s *Stream) answered(handle uint64, failure error) {
	b, token := s.backend, uint32(handle)
	if int(token) >= len(b.ops) {
		s.lose(fmt.Errorf("a reply to %#x, which was not asked", handle))
		return
	}
	op := &b.ops[token]
	if op.step != stepStream || op.stream != s || op.handle != handle || handle == 0 {
		s.lose(fmt.Errorf("a reply to %#x, which was not asked or is answered", handle))
		return
	}
	if failure != nil {
		s.end(token, failure)
		return
	}
	s.filling = token
}

// bytesCame counts n bytes more of a read.
func (s *Stream) bytesCame(n int64) {
	op := &s.backend.ops[s.filling]
	op.data = op.data.Slice(n, op.data.length-n)
	if op.data.length == 0 {
		token := s.filling
		s.filling = noToken
		s.end(token, nil)
	}
}

// end ends a read that was with the server.
func (s *Stream) end(token uint32, err error) {
	s.inFlight--
	s.backend.outstanding--
	s.backend.end(token, err)
}
