package ublk

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/ublk/uring"
)

// bounceDepth is how many requests the test's queue has at a time.
const bounceDepth = 8

// answering says when a scripted target answers a request.
type answering int

const (
	atOnce   answering = iota // within Request
	inDrain                   // in the next Drain
	byIO                      // when a backend I/O ends
	firstIO                   // the first one when a backend I/O ends, the others within Request
	refusing                  // likewise, with an error
)

// scripted is a target that answers as it is told, and notes in which order it got its requests.
type scripted struct {
	q     *Queue
	how   answering
	got   []uint16
	held  []uint16 // not answered yet
	ended int
}

func (s *scripted) Request(tag uint16, d Desc) {
	s.got = append(s.got, tag)
	first := len(s.got) == 1
	switch {
	case s.how == atOnce, s.how == firstIO && !first:
		s.answer(tag, nil)
	case s.how == refusing && !first:
		s.answer(tag, unix.EIO)
	default:
		s.held = append(s.held, tag)
	}
}

func (s *scripted) EndIO(token uint32, err error) { s.answer(uint16(token), err) }

func (s *scripted) Drain() {
	if s.how == inDrain {
		held := s.held
		s.held = nil
		for _, tag := range held {
			s.answer(tag, nil)
		}
	}
}

func (s *scripted) answer(tag uint16, err error) {
	s.ended++
	s.q.Commit(tag, err)
}

// newBounceQueue makes a queue of a device whose driver could register none of the requests' pages:
// all of them need the only bounce buffer. The driver is a file, for the copies; nothing is
// submitted to it.
func newBounceQueue(t *testing.T, how answering) (*events, *scripted) {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	requests, err := os.Create(filepath.Join(t.TempDir(), "requests"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { requests.Close() })
	if err := requests.Truncate(ioBufStart + (bounceDepth+1)<<tagOffset); err != nil {
		t.Fatal(err)
	}
	info := Info{Queues: 1, Depth: bounceDepth, MaxIO: 4096, Features: Features{AutoBufReg: true, UserCopy: true}}
	q := &Queue{dev: &kernelDevice{info: info, charFD: int(requests.Fd())}, orders: new(orders), owners: make([]owner, bounceDepth), descriptors: descriptors{descs: make([]ioDesc, bounceDepth)}}
	if err := q.buffers.make(q.dev, q.index); err != nil {
		t.Fatal(err)
	}
	if q.loop, err = uring.NewLoop((*events)(q), uring.LoopOptions{Commands: bounceDepth}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.loop.Close(); err != nil {
			t.Error(err)
		}
		if err := q.buffers.free(); err != nil {
			t.Error(err)
		}
	})
	s := &scripted{q: q, how: how}
	q.target = s
	return (*events)(q), s
}

// arrive brings a request of 4096 bytes on tag.
func (e *events) arrive(tag uint16, op uint8) {
	e.descs[tag] = ioDesc{opFlags: uint32(op) | flagNeedRegBuf, nrSectors: 8}
	e.Command(uint32(tag), 0)
}

// TestBounceServesAllThatWait: when the driver could register several requests at once nowhere,
// every one of them is served without another request to come, however the target answers, and the
// first one first.
func TestBounceServesAllThatWait(t *testing.T) {
	for name, how := range map[string]answering{
		"at once": atOnce, "in Drain": inDrain, "by a backend I/O": byIO, "the first by a backend I/O": firstIO, "with an error": refusing,
	} {
		for _, op := range []uint8{OpRead, OpWrite} {
			t.Run(name, func(t *testing.T) {
				e, s := newBounceQueue(t, how)
				for tag := range uint16(bounceDepth) {
					e.arrive(tag, op)
				}
				e.Drain() // the round in which they came
				for len(s.held) > 0 && how != inDrain {
					tag := s.held[0]
					s.held = s.held[1:]
					e.EndIO(uint32(tag), nil)
					e.Drain() // the round in which the I/O ended
				}
				if s.ended != bounceDepth {
					t.Errorf("%d of %d requests are answered, and nothing more would happen", s.ended, bounceDepth)
				}
				if !slices.IsSorted(s.got) {
					t.Errorf("served in the order %v", s.got)
				}
			})
		}
	}
}

// TestBounceIsFair: a request that comes when the buffer has just been let go of stands behind
// those that wait.
func TestBounceIsFair(t *testing.T) {
	e, s := newBounceQueue(t, byIO)
	for tag := range uint16(3) {
		e.arrive(tag, OpWrite)
	}
	e.Drain()
	e.EndIO(0, nil)
	e.arrive(3, OpWrite) // in the same round, before the queue has looked at who waits
	for range 3 {
		e.Drain()
		e.EndIO(uint32(s.got[len(s.got)-1]), nil)
	}
	e.Drain()
	if want := []uint16{0, 1, 2, 3}; !slices.Equal(s.got, want) {
		t.Errorf("served in the order %v, expected %v", s.got, want)
	}
}

// TestBounceWhileLeaving: those in line are requests that the queue has taken on. It serves them
// before it rests.
func TestBounceWhileLeaving(t *testing.T) {
	e, s := newBounceQueue(t, firstIO)
	for tag := range uint16(bounceDepth) {
		e.arrive(tag, OpRead)
	}
	e.orders.leaving.Store(true)
	e.Drain()
	e.EndIO(0, nil)
	e.Drain()
	if s.ended != bounceDepth || e.rest != answered {
		t.Errorf("%d of %d requests are answered, rest %v", s.ended, bounceDepth, e.rest)
	}
}

// TestBounceMovesBytes: a WRITE's bytes are in the buffer when the target has it, a READ's are with
// the request when it is answered.
func TestBounceMovesBytes(t *testing.T) {
	e, s := newBounceQueue(t, byIO)
	q := s.q
	want := bytes.Repeat([]byte{7}, 4096)
	if _, err := unix.Pwrite(q.dev.charFD, want, ioBufStart+1<<tagOffset); err != nil {
		t.Fatal(err)
	}
	e.arrive(0, OpRead)
	e.arrive(1, OpWrite)
	copy(q.buffers.bounce, want[:512])
	e.EndIO(0, nil)
	got := make([]byte, 512)
	if _, err := unix.Pread(q.dev.charFD, got, ioBufStart); err != nil || !bytes.Equal(got, want[:512]) {
		t.Errorf("the READ got %x, %v", got[:8], err)
	}
	clear(q.buffers.bounce)
	e.Drain()
	if !bytes.Equal(q.buffers.bounce, want) {
		t.Errorf("the WRITE has %x in the buffer", q.buffers.bounce[:8])
	}
}
