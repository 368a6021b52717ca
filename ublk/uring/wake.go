package uring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// waker brings a loop out of its wait. A read of the eventfd is always in the ring; rung says that
// the eventfd was written and that the loop has not seen it, so that many wake-ups cost one write.
//
// No wake-up is lost: who posts work and then finds rung set knows that the loop will still clear
// it, and the loop looks for work after it cleared it.
type waker struct {
	rung    atomic.Bool
	event   *os.File
	fd      int
	counter []byte // the read's buffer: one page, of which 8 bytes are used
}

// one is what a wake-up writes.
var one = binary.NativeEndian.AppendUint64(nil, 1)

func newWaker() (*waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	counter, err := MapBuffer(os.Getpagesize())
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &waker{event: os.NewFile(uintptr(fd), "eventfd"), fd: fd, counter: counter}, nil
}

// ring writes the eventfd unless it is rung already. After close it does nothing.
func (w *waker) ring() {
	if w.rung.Swap(true) {
		return
	}
	if _, err := w.event.Write(one); err != nil && !errors.Is(err, os.ErrClosed) {
		panic(fmt.Sprintf("write eventfd: %v", err)) // the counter cannot overflow, so the descriptor is not ours any more
	}
}

// arm puts the read into the ring.
func (w *waker) arm(r *Ring) error {
	return r.Read(w.fd, 0, Memory(w.counter[:8]), 0, userWake)
}

func (w *waker) close() error {
	return errors.Join(w.event.Close(), UnmapBuffer(w.counter))
}
