//go:build device

package ublk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/nbd"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
	"golang.org/x/sys/unix"
)

// socketCase is what the server at the other end of a stream does, and where the bytes of requests
// are.
type socketCase struct {
	copied bool  // the driver copies requests; otherwise it registers their pages, where it can
	pieces bool  // replies come in odd pieces with pauses between: each receive is short
	late   bool  // each reply comes long after its request
	stored int64 // so many bytes at the beginning of a request are stored, and come not from the socket
}

// TestRegisteredPagesFromSocket: READ_FIXED fills pages of requests that the driver has registered
// from a unix stream socket: whole, in pieces of any size, a stretch of a request, and when the
// bytes come later than the read, which waits without a worker thread of the kernel's. A peer that
// closes fails the request. The same holds where the bytes are copied, as before 6.16.
func TestRegisteredPagesFromSocket(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	for name, c := range map[string]socketCase{
		"at once":           {},
		"in pieces":         {pieces: true},
		"late":              {late: true},
		"late, in pieces":   {late: true, pieces: true},
		"a stretch":         {pieces: true, stored: 512},
		"copied":            {copied: true, late: true},
		"copied, in pieces": {copied: true, pieces: true},
	} {
		t.Run(name, func(t *testing.T) { testFromSocket(t, c) })
	}
}

// fromSocket serves READs by reads of a stream.
type fromSocket struct {
	socketCase
	q      *Queue
	stream *uring.Stream
	sample []byte        // what is stored
	thread *atomic.Int32 // the queue's
}

func (s *fromSocket) Request(tag uint16, d Desc) {
	s.thread.Store(int32(unix.Gettid()))
	if d.Op != OpRead {
		s.q.Commit(tag, nil)
		return
	}
	if s.stored > 0 {
		if err := s.q.Store(tag, 0, s.sample[:s.stored]); err != nil {
			s.q.Commit(tag, err)
			return
		}
	}
	s.stream.Read(uint32(tag), d.Offset()+s.stored, s.q.Data(tag).Slice(s.stored, d.Length()-s.stored))
}

func (s *fromSocket) EndIO(token uint32, err error) {
	if errors.Is(err, uring.ErrLost) {
		err = unix.EIO
	}
	s.q.Commit(uint16(token), err)
}

func (s *fromSocket) Drain() {}

func testFromSocket(t *testing.T, c socketCase) {
	const size, length = 4 * mib, 256 << 10
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, peer := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "peer")
	defer ours.Close()
	defer peer.Close()
	file, err := uring.NewFile(ours)
	must(t, err)
	disk := make([]byte, size)
	for at := 0; at < size; at += 4096 {
		pattern(disk[at:at+4096], at)
	}
	served := make(chan error, 1)
	var cut atomic.Bool // the server closes in the middle of the next reply
	go func() { served <- c.serve(peer, disk, &cut) }()
	o := testOptions(1)
	o.Copy, o.Tokens, o.Streams, o.Params.Size = c.copied, o.Depth, 1, size
	s := fromSocket{socketCase: c, sample: pattern(make([]byte, 4096), 77), thread: &atomic.Int32{}}
	d := startDevice(t, o, func(q *Queue) Target {
		stream, err := q.Loop().OpenStream(file, nbd.Wire{}, o.Depth)
		if err != nil {
			t.Error(err)
			return nil
		}
		own := s
		own.q, own.stream = q, stream
		return &own
	})
	t.Logf("the driver registers requests: %v", d.Info().ZeroCopy())
	f, b := openBlock(t, d), alignedBuffer(t, length)
	for i, length := range []int64{1024, 4096, 3 * 512, 128 << 10, length} {
		off := int64(i) * 600 << 10
		_, err := f.ReadAt(b[:length], off)
		must(t, err)
		want := bytes.Clone(disk[off : off+length])
		copy(want, s.sample[:c.stored])
		if !bytes.Equal(b[:length], want) {
			t.Errorf("%d bytes are not those that were sent", length)
		}
		if w := workersOf(t, int(s.thread.Load())); w != 0 {
			t.Errorf("%d bytes: the kernel has %d worker threads for the queue", length, w)
		}
	}
	cut.Store(true)
	if n, err := f.ReadAt(b[:4096], size-4096); err == nil {
		t.Errorf("a read whose reply was cut is answered, with %d bytes", n)
	}
	if err := <-served; !errors.Is(err, errCut) {
		t.Errorf("the server has ended with %v", err)
	}
}

// errCut ends the server in the middle of a reply.
var errCut = errors.New("cut")

// serve is the server. It closes in the middle of a reply when it is told so.
func (c socketCase) serve(peer *os.File, disk []byte, cut *atomic.Bool) error {
	random := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, nbd.RequestSize)
	for {
		if _, err := io.ReadFull(peer, b); err != nil {
			return err
		}
		off, length := binary.BigEndian.Uint64(b[16:]), uint64(binary.BigEndian.Uint32(b[24:]))
		reply := append([]byte{0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0}, b[8:16]...)
		reply = append(reply, disk[off:off+length]...)
		if cut.Load() {
			_, err := peer.Write(reply[:16+700])
			return errors.Join(err, peer.Close(), errCut)
		}
		if c.late {
			time.Sleep(20 * time.Millisecond)
		}
		if err := c.send(random, peer, reply); err != nil {
			return err
		}
	}
}

// send sends b in the way of the case.
func (c socketCase) send(random *rand.Rand, peer *os.File, b []byte) error {
	for len(b) > 0 {
		n := len(b)
		if c.pieces {
			n = min(1+random.IntN(len(b)/4+300), n)
			time.Sleep(2 * time.Millisecond)
		}
		if _, err := peer.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// workersOf is how many threads the kernel has made for entries of a thread that would block
// (create_io_worker, io_uring/io-wq.c: they are named after it).
func workersOf(t *testing.T, thread int) (n int) {
	t.Helper()
	names, err := filepath.Glob("/proc/self/task/*/comm")
	must(t, err)
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(comm)) == fmt.Sprintf("iou-wrk-%d", thread) {
			n++
		}
	}
	return n
}
