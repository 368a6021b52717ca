package uring

import (
	"bytes"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestStreamOpen: what no stream can be made of, and how many there can be.
func TestStreamOpen(t *testing.T) {
	l, _ := newTestLoop(t, LoopOptions{Tokens: 1, Streams: 1})
	file := newTestFile(t, openTestFile(t, t.TempDir(), 0))
	if _, err := l.OpenStream(file, nil, 1); err == nil {
		t.Error("a file is taken for a connection")
	}
	for range 2 {
		s := openTestStream(t, l, 1, answersAll)
		if _, err := l.OpenStream(s.file, s.wire, 1); err == nil {
			t.Error("a second stream on a loop that has one")
		}
		if _, err := l.OpenStream(s.file, s.wire, 0); err == nil {
			t.Error("a stream that may have no request")
		}
		must(t, s.Close())
		must(t, s.Close())
	}
	s := openTestStream(t, l, 1, func(f *fakeServer) { f.hold() })
	s.Read(0, 0, Memory(mapTestBuffer(t, 4096)))
	if err := s.Close(); err == nil {
		t.Error("closed with a read in line")
	}
	l.round()
	if err := s.Close(); err == nil {
		t.Error("closed with a request at the server")
	}
	s.Abort(errors.New("the end of the test"))
	l.settle(t)
}

// TestStreamOfConnection: a connection that Go's poller had, which has O_NONBLOCK, waits on the
// ring.
func TestStreamOfConnection(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	must(t, err)
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		peer, _ := conn.(*net.UnixConn).File()
		conn.Close()
		time.Sleep(300 * time.Millisecond) // longer than it takes to be told often that there is nothing yet
		answersAll(&fakeServer{t: t, conn: peer})
		peer.Close()
	}()
	conn, err := net.Dial("unix", listener.Addr().String())
	must(t, err)
	f, err := conn.(*net.UnixConn).File()
	must(t, err)
	must(t, conn.Close())
	defer f.Close()
	l, r := newTestLoop(t, LoopOptions{Tokens: 1, Streams: 1})
	file := newTestFile(t, f)
	must(t, unix.SetNonblock(file.fd, true))
	s, err := l.OpenStream(file, nbdWire, 1)
	must(t, err)
	b := mapTestBuffer(t, 4096)
	s.Read(0, 4096, Memory(b))
	if err := r.one(t, l); err != nil || !bytes.Equal(b, content(4096, 4096)) {
		t.Errorf("read: %v", err)
	}
}

// TestStreamDuplicate: the answer to a read that has ended does not answer the next one with its
// token.
func TestStreamDuplicate(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1, Streams: 1})
	s := openTestStream(t, l, 1, func(f *fakeServer) {
		first := f.take(1)[0]
		f.send(first.reply())
		f.take(1)
		f.send(first.reply())
		f.hold()
	})
	b := mapTestBuffer(t, 512)
	s.Read(0, 0, Memory(b))
	must(t, r.one(t, l))
	s.Read(0, 1<<20, Memory(b))
	wantLost(t, r.one(t, l), "is answered")
}

// TestStreamOfAnother: a server that answers what another server was asked.
func TestStreamOfAnother(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 2, Streams: 2})
	request := make(chan asked, 1)
	end := make(chan bool)
	s := openTestStream(t, l, 1, func(f *fakeServer) {
		a := f.take(1)[0]
		request <- a
		<-end
		f.send(a.reply())
		f.hold()
	})
	other := openTestStream(t, l, 1, func(f *fakeServer) {
		f.take(1)
		f.send((<-request).reply())
		f.hold()
	})
	b := mapTestBuffer(t, 1024)
	s.Read(0, 0, Memory(b[:512]))
	other.Read(1, 0, Memory(b[512:]))
	e := r.until(t, l, 1)[0]
	if wantLost(t, e.err, "not asked"); e.token != 1 {
		t.Fatalf("token %d has ended", e.token)
	}
	close(end)
	must(t, r.one(t, l))
}

// TestStreamKeepsMemory: while the kernel may write to the memory of a read, the read does not end,
// though the stream is lost and another of its entries ends.
func TestStreamKeepsMemory(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1, Streams: 1})
	s := openTestStream(t, l, 1, func(f *fakeServer) {
		f.send(f.take(1)[0].reply()[:100])
		f.hold()
	})
	s.Read(0, 0, Memory(mapTestBuffer(t, 4096)))
	for s.sending || s.filling == noToken || !s.receiving {
		l.Wake()
		l.round()
	}
	s.Abort(errors.New("it takes too long"))
	l.streamDone(s.id*streamKinds+streamLost, 0)
	if len(r.ends) != 0 {
		t.Fatal("the read has ended")
	}
	wantLost(t, r.one(t, l), "too long")
}

// TestStreamEntries: a message raises no signal, and leaves with Submit too. A loop is not idle
// before all of it has ended.
func TestStreamEntries(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1, Streams: 1})
	s := openTestStream(t, l, 1, answersAll)
	before := l.ring.sq.prepared
	s.Read(0, 0, Memory(mapTestBuffer(t, 4096)))
	l.Submit()
	if s.InFlight() != 1 {
		t.Error("Submit has sent nothing")
	}
	send := (*sqe)(unsafe.Pointer(&l.ring.sq.sqes[(before&l.ring.sq.mask)*l.ring.sq.stride]))
	if send.opcode != opSend || send.len != 28 || send.addr != address(s.out) || send.opFlags != unix.MSG_NOSIGNAL {
		t.Errorf("the message is %+v", send)
	}
	must(t, r.one(t, l))
	l.settle(t)
	idle := l.Idle()
	l.entries++
	if !idle || l.Idle() {
		t.Errorf("idle: %v, and with an entry of a stream: %v", idle, l.Idle())
	}
	l.entries--
}

// TestStreamsEndWithTheirLoop: those that are idle.
func TestStreamsEndWithTheirLoop(t *testing.T) {
	lockThread(t)
	l, err := NewLoop(&recorder{}, LoopOptions{Streams: 1})
	must(t, err)
	s := openTestStream(t, l, 1, func(f *fakeServer) { f.hold() })
	must(t, l.Close())
	if s.out != nil || s.head != nil {
		t.Error("the memory of a stream is there after the end of its loop")
	}
}

// TestNotBegun: what is issued again, and what not.
func TestNotBegun(t *testing.T) {
	for _, c := range []struct {
		res    int32
		times  uint16
		again  bool
		counts bool
	}{
		{0, 0, false, false}, {100, 0, false, false}, {-int32(unix.EIO), 0, false, false},
		{-int32(unix.EINTR), 1000, true, false},
		{-int32(unix.EAGAIN), 999, true, true}, {-int32(unix.EAGAIN), 1000, false, false},
		{-int32(unix.ECANCELED), 999, true, true}, {-int32(unix.ECANCELED), 1000, false, false},
	} {
		times := c.times
		if again := notBegun(c.res, &times); again != c.again || (times != c.times) != c.counts {
			t.Errorf("%+v: again %v, %d times", c, again, times)
		}
	}
}
