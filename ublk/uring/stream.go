package uring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrLost ends the reads of a stream whose connection has ended, or whose server has sent what it
// must not. None of their bytes will come any more, so that they may be read again from elsewhere;
// what their memory holds means nothing.
var ErrLost = errors.New("the connection to the source is lost")

// Wire is the format of requests and replies. A reply is a head, and behind it, if the request was
// done, all of its bytes. Replies come in any order. Its methods allocate nothing.
type Wire interface {
	// Sizes are the lengths of a request and of a reply's head, in bytes.
	Sizes() (request, reply int)
	// Request puts a read of length bytes at off into b; the reply is to carry handle.
	Request(b []byte, handle uint64, off, length int64)
	// Reply looks at what has come of a head: either bytes are missing, or it is whole: then
	// failure, nil or a unix.Errno, says how the request has ended. err: it cannot be a head.
	Reply(b []byte) (handle uint64, failure error, missing int, err error)
}

// Stream is a loop's way to a server at the other end of a stream socket: reads are sent as
// requests, and the bytes of each reply go straight to where they belong. Its methods are called on
// the loop's thread; each read ends with Handler.EndIO.
//
//	Read -> waiting -> SEND, one at a time, with all that a round has brought
//	                              | server
//	EndIO <- the rest of its bytes <- a head -> which read?
//
// Requests are with the server up to a limit, others wait in order. One receive is under way at a
// time while there are some, and none otherwise: a stream without reads has nothing with the
// kernel, and does not notice that its server has gone.
//
// A read's bytes may belong to a registered buffer. READ_FIXED fills pages that ublk has registered
// from a unix socket, on 6.18 and 7.3: whole, a stretch of them, in short pieces of any size, and
// when the bytes come later than the receive, which waits by poll and takes no worker thread of the
// kernel's (TestRegisteredPagesFromSocket in package ublk; 6.12 registers nothing, and has plain
// READ). RECV with a registered buffer is EINVAL on 6.18; 7.3 knows it.
//
// When the connection ends, or the server sends anything but replies to what it was asked, the
// stream is lost, for good: it shuts the socket down, waits until the kernel has let go of all
// memory, and ends all of its reads with ErrLost. How long a reply may take is the caller's
// business, see Abort.
type Stream struct {
	backend *backend
	file    *File // of the socket
	id      uint32
	wire    Wire
	limit   int
	// inFlight are the requests that have left waiting and have no reply.
	inFlight int
	waiting  fifo
	lost     error // ErrLost and why, once it is
	sender
	receiver
}

// sender is the sending half of a stream.
type sender struct {
	out      []byte // limit requests
	unsent   Data   // what is left of out
	sending  bool   // an entry is with the kernel
	sendTry  uint16 // how often the kernel has given it up
	requests int    // length of one
}

// OpenStream makes a stream of a connected stream socket, on which the handshake is over: nothing
// of a reply has been read. With the server are at most limit requests at a time. The file remains
// the caller's; it may have O_NONBLOCK, with which the kernel waits for a socket's bytes as without
// it (io_rw_init_file, io_uring/rw.c, 6.12). A loop has LoopOptions.Streams of them.
func (b *backend) OpenStream(f *File, w Wire, limit int) (*Stream, error) {
	switch {
	case !f.socket:
		return nil, fmt.Errorf("open a stream on %s: it is no socket", f.Name())
	case limit < 1:
		return nil, fmt.Errorf("open a stream on %s: %d requests at a time are too few", f.Name(), limit)
	}
	id := 0
	for id < len(b.streams) && b.streams[id] != nil {
		id++
	}
	if id == len(b.streams) {
		return nil, fmt.Errorf("open a stream on %s: the loop has %d already", f.Name(), id)
	}
	request, reply := w.Sizes()
	s := &Stream{backend: b, file: f, id: uint32(id), wire: w, limit: limit}
	s.requests, s.filling = request, noToken
	var err error
	if s.out, err = MapBuffer(limit * request); err != nil {
		return nil, err
	}
	if s.head, err = MapBuffer(reply); err != nil {
		return nil, errors.Join(err, UnmapBuffer(s.out))
	}
	b.streams[id] = s
	return s, nil
}

// Close gives back the stream's memory and its place, not the file. Nothing is in flight on it.
func (s *Stream) Close() error {
	if !s.Idle() {
		return fmt.Errorf("close the stream on %s: %d requests are with the server, %d wait", s.file.Name(), s.inFlight, s.waiting.n)
	}
	if s.out == nil {
		return nil
	}
	s.backend.streams[s.id] = nil
	err := errors.Join(UnmapBuffer(s.out), UnmapBuffer(s.head))
	s.out, s.head = nil, nil
	return err
}

// Idle says that no read is under way, and nothing with the kernel.
func (s *Stream) Idle() bool {
	return s.inFlight == 0 && s.waiting.empty() && !s.sending && !s.receiving
}

// Lost is nil, or ErrLost and why the stream is lost.
func (s *Stream) Lost() error { return s.lost }

// InFlight is how many requests are with the server.
func (s *Stream) InFlight() int { return s.inFlight }

// Read fills d from off. It ends with nil, with the unix.Errno that the server has answered, or
// with ErrLost.
func (s *Stream) Read(token uint32, off int64, d Data) {
	b := s.backend
	op := b.free(token)
	op.stream, op.handle, op.off, op.length, op.data = s, 0, off, d.length, d
	if s.lost != nil || d.length == 0 {
		op.step = stepNoStream
		b.done.push(b.ops, token)
		return
	}
	op.step = stepStream
	s.waiting.push(b.ops, token)
	b.outstanding++
}

// Abort gives the connection up, for a reason that Lost will tell: a reply takes too long, or
// whatever else the caller knows. The reads end with ErrLost, in a later round.
func (s *Stream) Abort(why error) { s.lose(why) }

// lose notes why the stream is lost and ends the connection, and with it what is with the kernel.
// If that is nothing, a completion without effect has the loop look at the stream again.
func (s *Stream) lose(why error) {
	if s.lost != nil {
		return
	}
	s.lost = fmt.Errorf("%w: %w", ErrLost, why)
	_ = unix.Shutdown(s.file.fd, unix.SHUT_RDWR) // a socket that is closed already has ended everything too
	if !s.sending && !s.receiving {
		s.backend.keep(s.backend.ring.Nop(s.user(streamLost)))
	}
}

// giveBack ends all reads of a lost stream, once the kernel has none of their memory.
func (s *Stream) giveBack() {
	b := s.backend
	if s.sending || s.receiving {
		return
	}
	s.waiting, s.inFlight, s.filling = fifo{}, 0, noToken
	for token := range b.ops {
		if op := &b.ops[token]; op.step == stepStream && op.stream == s {
			b.outstanding--
			b.end(uint32(token), s.lost)
		}
	}
}

// What an entry of a stream is for.
const (
	streamSend = iota
	streamReceive
	streamLost
	streamKinds
)

// user is the user data of an entry.
func (s *Stream) user(kind uint32) uint64 { return userStream | uint64(s.id*streamKinds+kind) }

// streamDone hands a completion to its stream.
func (b *backend) streamDone(id uint32, res int32) {
	s := b.streams[id/streamKinds]
	if s == nil {
		return // the completion without effect, of a stream that is closed
	}
	switch id % streamKinds {
	case streamSend:
		s.sent(res)
	case streamReceive:
		s.received(res)
	}
	if s.lost != nil {
		s.giveBack()
	}
}

// sendAll begins what the streams have to send.
func (b *backend) sendAll() {
	for _, s := range b.streams {
		if s != nil && s.lost == nil {
			s.send()
		}
	}
}

// send puts the requests that wait into a message, as many as the server may have, unless there is
// one under way; and sees to it that somebody listens for the replies.
func (s *Stream) send() {
	if s.sending || s.waiting.empty() || s.inFlight == s.limit {
		return
	}
	b, n := s.backend, 0
	for ; !s.waiting.empty() && s.inFlight < s.limit; n++ {
		token := s.waiting.pop(b.ops)
		op := &b.ops[token]
		op.handle = b.newHandle(token)
		s.wire.Request(s.out[n*s.requests:][:s.requests], op.handle, op.off, op.length)
		s.inFlight++
	}
	s.unsent = Memory(s.out[:n*s.requests])
	s.issueSend()
	s.receive()
}

// newHandle is what a request of the token is known by to a server. 0 is none: a read has it that
// was not sent.
func (b *backend) newHandle(token uint32) uint64 {
	b.sequence = max(1, b.sequence+1)
	return uint64(b.sequence)<<32 | uint64(token)
}

func (s *Stream) issueSend() {
	s.sending = true
	s.backend.entries++
	s.backend.keep(s.backend.ring.Send(s.file.fd, s.unsent, s.user(streamSend)))
}

// sent is the kernel's answer to a message, of which it may have taken a part.
func (s *Stream) sent(res int32) {
	s.sending = false
	s.backend.entries--
	switch {
	case s.lost != nil:
		return
	case notBegun(res, &s.sendTry):
	case res < 0:
		s.lose(whyEnded("send requests", unix.Errno(-res)))
		return
	default:
		s.sendTry = 0
		s.unsent = s.unsent.Slice(int64(res), s.unsent.length-int64(res))
	}
	if s.unsent.length > 0 {
		s.issueSend()
	}
}

// whyEnded says why a connection has. A server that has closed is the common case, which shows in
// several ways.
func whyEnded(what string, errno unix.Errno) error {
	if errno == 0 || errno == unix.EPIPE || errno == unix.ECONNRESET {
		return errClosed
	}
	return fmt.Errorf("%s: %w", what, errno)
}

// notBegun says that an entry was interrupted or given up by the kernel (GivenUp), and is to be
// issued again. It counts how often in a row.
func notBegun(res int32, times *uint16) bool {
	switch errno := unix.Errno(-res); {
	case res >= 0:
		return false
	case errno == unix.EINTR:
		return true
	case errno == unix.EAGAIN && *times < givenLimit, GivenUp(res, int(*times)):
		*times++
		return true
	}
	return false
}
