package uring

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func contains(s, words string) bool { return strings.Contains(s, words) }

// TestStreamReads: more reads than the server may have at a time, of several sizes, each with its
// own bytes; the stream is idle afterwards, and reads again.
func TestStreamReads(t *testing.T) {
	const tokens, limit, size = 16, 4, 300 << 10
	l, r := newTestLoop(t, LoopOptions{Tokens: tokens, Streams: 1})
	s := openTestStream(t, l, limit, answersAll)
	b := mapTestBuffer(t, tokens*size)
	lengths := []int64{512, 4096, 65536, 65536 + 512, 128 << 10, size}
	for pass := range int64(3) {
		for token := range int64(tokens) {
			s.Read(uint32(token), pass<<30+token<<20, Memory(b[token*size:][:lengths[token%6]]))
		}
		if s.Idle() || l.Idle() {
			t.Error("idle with reads in line")
		}
		for _, e := range r.until(t, l, tokens) {
			if e.err != nil {
				t.Fatalf("token %d: %v", e.token, e.err)
			}
			token := int64(e.token)
			length := lengths[token%6]
			if !bytes.Equal(b[token*size:][:length], content(pass<<30+token<<20, length)) {
				t.Errorf("pass %d, token %d: other bytes than the server has", pass, token)
			}
		}
		l.settle(t)
		if s.InFlight() != 0 || !s.Idle() || s.Lost() != nil {
			t.Errorf("after all reads %d are in flight, lost: %v", s.InFlight(), s.Lost())
		}
	}
	must(t, s.Close())
}

// settle lets the last entries of streams end.
func (l *Loop) settle(t testing.TB) {
	t.Helper()
	for l.entries > 0 {
		l.round()
		must(t, l.err)
	}
}

// TestStreamLimit: no more requests than the limit are with the server, those of a round come as
// one message, and others follow as soon as there is an answer.
func TestStreamLimit(t *testing.T) {
	const tokens, limit = 10, 3
	l, r := newTestLoop(t, LoopOptions{Tokens: tokens, Streams: 1})
	s := openTestStream(t, l, limit, func(f *fakeServer) {
		b := make([]byte, 64<<10)
		n, err := f.conn.Read(b)
		if err != nil || n != limit*28 {
			f.t.Errorf("the first message has %d bytes, %v; want %d requests of 28", n, err, limit)
		}
		must(f.t, unix.SetNonblock(int(f.conn.Fd()), true))
		if n, err := unix.Read(int(f.conn.Fd()), b[n:]); err != unix.EAGAIN {
			f.t.Errorf("more than the limit: %d bytes, %v", n, err)
		}
	})
	b := mapTestBuffer(t, tokens*512)
	for token := range tokens {
		s.Read(uint32(token), 0, Memory(b[token*512:][:512]))
	}
	for _, e := range r.until(t, l, tokens) {
		wantLost(t, e.err, "closed")
	}
}

// TestStreamDisorder: a server that answers in any order, in pieces of any size, late, and some
// reads with an error.
func TestStreamDisorder(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { testStreamDisorder(t, seed) })
	}
}

func testStreamDisorder(t *testing.T, seed uint64) {
	const tokens, limit, size, reads = 24, 16, 96 << 10, 150
	l, r := newTestLoop(t, LoopOptions{Tokens: tokens, Streams: 1})
	s := openTestStream(t, l, limit, func(f *fakeServer) { disorder(f, rand.New(rand.NewPCG(seed, 2)), reads) })
	if seed == 0 {
		stop := storm(t)
		defer stop()
	}
	random := rand.New(rand.NewPCG(seed, 1))
	b := mapTestBuffer(t, tokens*size)
	var offs, lengths [tokens]int64
	begin := func(token uint32) {
		offs[token], lengths[token] = 512*random.Int64N(1<<20), 512*(1+random.Int64N(8))
		if random.IntN(4) == 0 {
			lengths[token] = 512 * (1 + random.Int64N(size/512))
		}
		s.Read(token, offs[token], Memory(b[int64(token)*size:][:lengths[token]]))
	}
	for token := range uint32(tokens) {
		begin(token)
	}
	for begun, ended := tokens, 0; ended < reads; {
		l.round()
		must(t, l.err)
		ends := r.ends
		r.ends = nil
		for _, e := range ends {
			ended++
			off, length := offs[e.token], lengths[e.token]
			if want := failureAt(off); e.err != want {
				t.Fatalf("%d bytes at %d: %v, want %v", length, off, e.err, want)
			}
			if e.err == nil && !bytes.Equal(b[int64(e.token)*size:][:length], content(off, length)) {
				t.Fatalf("%d bytes at %d are not the server's", length, off)
			}
			if begun < reads {
				begun++
				begin(e.token)
			}
		}
	}
	l.settle(t)
	must(t, s.Close())
}

// failureAt is what the server of that test answers.
func failureAt(off int64) error {
	if off%7 == 0 {
		return unix.EIO
	}
	return nil
}

// disorder answers reads requests, any of those that it has.
func disorder(f *fakeServer, random *rand.Rand, reads int) {
	requests := make(chan asked, reads)
	go func() {
		defer close(requests)
		for a, ok := f.next(); ok; a, ok = f.next() {
			requests <- a
		}
	}()
	var have []asked
	for range reads {
		for len(have) == 0 || len(requests) > 0 {
			a, ok := <-requests
			if !ok {
				f.t.Error("the client has closed too early")
				return
			}
			have = append(have, a)
		}
		i := random.IntN(len(have))
		a := have[i]
		have = append(have[:i], have[i+1:]...)
		reply := a.reply()
		if failureAt(a.off) != nil {
			reply = head(a.handle, unix.EIO)
		}
		if !f.sendInPieces(random, reply) {
			f.t.Error("the client has closed")
			return
		}
	}
	f.hold()
}

// TestStreamCut: the connection ends after any number of bytes. Reads that were answered whole have
// ended well, all others are lost, whatever was sent of them; another stream reads them.
func TestStreamCut(t *testing.T) {
	for _, reads := range []int{cutLimit, cutLimit + 2} {
		for replies := range cutLimit {
			for _, cut := range []int{0, 1, 3, 4, 8, 15, 16, 17, 100, 16 + cutLength - 1} {
				name := fmt.Sprintf("%d reads, %d replies and %d bytes", reads, replies, cut)
				t.Run(name, func(t *testing.T) { testStreamCut(t, reads, replies, cut) })
			}
		}
	}
}

const cutLimit, cutLength = 3, 512

func testStreamCut(t *testing.T, reads, replies, cut int) {
	l, r := newTestLoop(t, LoopOptions{Tokens: reads, Streams: 2})
	s := openTestStream(t, l, cutLimit, func(f *fakeServer) {
		var all []byte
		for _, a := range f.take(cutLimit) {
			all = append(all, a.reply()...)
		}
		f.send(all[:replies*(16+cutLength)+cut])
	})
	b := mapTestBuffer(t, reads*cutLength)
	for token := range reads {
		s.Read(uint32(token), int64(token)<<20, Memory(b[token*cutLength:][:cutLength]))
	}
	other := openTestStream(t, l, cutLimit, answersAll)
	lost := 0
	for _, e := range r.until(t, l, reads) {
		if e.err != nil {
			wantLost(t, e.err, "closed")
			other.Read(e.token, int64(e.token)<<20, Memory(b[int(e.token)*cutLength:][:cutLength]))
			lost++
		}
	}
	// Requests in line that meet the end may come before answers that have not been looked at.
	if lost < reads-replies || lost > reads-replies && reads == cutLimit {
		t.Errorf("%d reads are lost", lost)
	}
	if !s.Idle() || !errors.Is(s.Lost(), ErrLost) {
		t.Errorf("idle %v, lost %v", s.Idle(), s.Lost())
	}
	for _, e := range r.until(t, l, lost) {
		must(t, e.err)
	}
	for token := range reads {
		if !bytes.Equal(b[token*cutLength:][:cutLength], content(int64(token)<<20, cutLength)) {
			t.Errorf("read %d has other bytes than the server", token)
		}
	}
}

// TestStreamLies: what a server must not send loses the stream, in words, and every read is given
// back once.
func TestStreamLies(t *testing.T) {
	for _, c := range []struct {
		name  string
		lie   func(a []asked) []byte
		words string
	}{
		{"garbage", func([]asked) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") }, "48545450"},
		{"garbage, and nothing else", func([]asked) []byte { return []byte("no") }, "6e6f"},
		{"a structured reply", func([]asked) []byte { return []byte{0x66, 0x8e, 0x33, 0xef} }, "structured"},
		{"no request's handle", func([]asked) []byte { return head(1<<40|1, 0) }, "not asked"},
		{"no token's handle", func(a []asked) []byte { return head(a[0].handle|0xffff, 0) }, "not asked"},
		{"the handle of one in line", func([]asked) []byte { return head(0, 0) }, "not asked"},
		{"an answer twice", func(a []asked) []byte { return append(a[0].reply(), a[0].reply()...) }, "is answered"},
		{"an error twice", func(a []asked) []byte { return append(head(a[1].handle, 5), head(a[1].handle, 5)...) }, "is answered"},
		{"a long answer", func(a []asked) []byte { return append(a[0].reply(), 1, 2, 3, 4) }, "01020304"},
		{"shutting down", func(a []asked) []byte { return head(a[0].handle, unix.ESHUTDOWN) }, "shutting down"},
	} {
		t.Run(c.name, func(t *testing.T) {
			const reads, limit = 4, 3
			l, r := newTestLoop(t, LoopOptions{Tokens: reads, Streams: 1})
			s := openTestStream(t, l, limit, func(f *fakeServer) {
				f.send(c.lie(f.take(limit)))
				f.hold()
			})
			b := mapTestBuffer(t, reads*512)
			for token := int64(reads - 1); token >= 0; token-- { // token 0 is in line
				s.Read(uint32(token), token<<20, Memory(b[token*512:][:512]))
			}
			last := r.until(t, l, reads)[reads-1]
			wantLost(t, last.err, c.words)
			if !s.Idle() || !l.Idle() || s.Lost() != last.err {
				t.Errorf("idle: %v, %v; lost: %v", s.Idle(), l.Idle(), s.Lost())
			}
			s.Read(0, 0, Memory(b[:512]))
			if len(r.ends) != 0 {
				t.Error("a read of a lost stream has ended within the call")
			}
			wantLost(t, r.one(t, l), c.words)
			must(t, s.Close())
		})
	}
}

// TestStreamAbort: a server that says nothing, or nothing more, is given up by the caller, whatever
// the stream has with the kernel at that time.
func TestStreamAbort(t *testing.T) {
	silent := func(f *fakeServer) { f.hold() }
	halfway := func(f *fakeServer) {
		f.send(f.take(2)[1].reply()[:100])
		f.hold()
	}
	for _, c := range []struct {
		name   string
		script func(*fakeServer)
		rounds bool
	}{{"silent", silent, true}, {"before anything was sent", silent, false}, {"halfway", halfway, true}} {
		t.Run(c.name, func(t *testing.T) {
			l, r := newTestLoop(t, LoopOptions{Tokens: 3, Streams: 1})
			s := openTestStream(t, l, 2, c.script)
			b := mapTestBuffer(t, 3*512)
			for token := range 3 {
				s.Read(uint32(token), 0, Memory(b[token*512:][:512]))
			}
			for limit := time.Now().Add(30 * time.Millisecond); c.rounds && time.Now().Before(limit); {
				l.Wake()
				l.round()
			}
			if c.rounds {
				before := l.ring.sq.prepared
				if l.sendAll(); l.entries != 1 || l.ring.sq.prepared != before {
					t.Errorf("%d entries are with the kernel, want the one that waits for replies", l.entries)
				}
			}
			s.Abort(errors.New("it takes too long"))
			if l.sendAll(); !c.rounds && l.entries != 0 {
				t.Error("requests are sent after the end")
			}
			s.Abort(errors.New("once is enough"))
			if len(r.ends) != 0 {
				t.Errorf("ended within the call: %v", r.ends)
			}
			for _, e := range r.until(t, l, 3) {
				wantLost(t, e.err, "too long")
			}
			must(t, s.Close())
		})
	}
}

// TestStreamFromHandler: the handler reads again, gives up and closes from within EndIO.
func TestStreamFromHandler(t *testing.T) {
	l, _ := newTestLoop(t, LoopOptions{Tokens: 2, Streams: 1})
	s := openTestStream(t, l, 1, answersAll)
	b := mapTestBuffer(t, 1024)
	ends := 0
	l.handler = endIO(func(token uint32, err error) {
		if ends++; ends < 10 {
			must(t, err)
			s.Read(token, int64(ends)*512, Memory(b[:512]))
			return
		}
		s.Abort(errors.New("enough"))
		l.Stop()
	})
	s.Read(0, 0, Memory(b[:512]))
	must(t, l.Run())
	if ends != 10 || !bytes.Equal(b[:512], content(9*512, 512)) {
		t.Errorf("%d reads ended", ends)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// endIO is a handler that is a function.
type endIO func(token uint32, err error)

func (e endIO) EndIO(token uint32, err error) { e(token, err) }
func (e endIO) Drain()                        {}

// TestStreamNothingToRead: a read of no bytes ends, and asks for nothing.
func TestStreamNothingToRead(t *testing.T) {
	l, r := newTestLoop(t, LoopOptions{Tokens: 1, Streams: 1})
	s := openTestStream(t, l, 1, func(f *fakeServer) { f.hold() })
	s.Read(0, 0, Memory(nil))
	if len(r.ends) != 0 {
		t.Error("ended within the call")
	}
	must(t, r.one(t, l))
}

// TestStreamShortSends: a socket that takes a few requests at a time.
func TestStreamShortSends(t *testing.T) {
	const tokens = 600
	l, r := newTestLoop(t, LoopOptions{Tokens: tokens, Streams: 1})
	s := openTestStream(t, l, tokens, func(f *fakeServer) {
		for _, a := range f.take(tokens) {
			f.send(a.reply())
		}
	})
	must(t, unix.SetsockoptInt(s.file.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1))
	b := mapTestBuffer(t, tokens*512)
	for token := range int64(tokens) {
		s.Read(uint32(token), token*512, Memory(b[token*512:][:512]))
	}
	for _, e := range r.until(t, l, tokens) {
		must(t, e.err)
	}
	if !bytes.Equal(b, content(0, tokens*512)) {
		t.Error("other bytes than the server has")
	}
}
