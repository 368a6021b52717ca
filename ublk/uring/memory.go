package uring

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// MapBuffer returns length bytes of zeroed, page-aligned memory outside the Go heap, as I/O buffers
// have to be. All its pages are taken now, so that nothing has to wait for memory later. It is
// given back whole with UnmapBuffer, and not before the last I/O on it has completed.
func MapBuffer(length int) ([]byte, error) {
	return mapAnonymous(length, unix.PROT_READ|unix.PROT_WRITE, unix.MADV_POPULATE_WRITE)
}

// mapAnonymous maps memory and takes its pages in the way that populate says (since 5.14).
func mapAnonymous(length, prot, populate int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, length, prot, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err == nil {
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Madvise(b, populate)
		}
		if err != nil {
			_ = unix.Munmap(b)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("map buffer of %d bytes: %w", length, err)
	}
	return b, nil
}

// UnmapBuffer gives back what MapBuffer returned; nil is allowed.
func UnmapBuffer(b []byte) error {
	if b == nil {
		return nil
	}
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("unmap buffer of %d bytes: %w", len(b), err)
	}
	return nil
}

// zeroSize is the length of a written zeroing's pieces: large enough that an operation costs little
// beside the copy.
const zeroSize = 1 << 20

// Zeros is memory that reads as zeros and cannot be written, 1 MiB of it.
func Zeros() ([]byte, error) { return zeros() }

// zeros is zeroSize bytes that cannot be written, shared by all loops and mapped for the life of
// the process.
var zeros = sync.OnceValues(func() ([]byte, error) {
	return mapAnonymous(zeroSize, unix.PROT_READ, unix.MADV_POPULATE_READ)
})

// touchSignalStack has in memory what the runtime needs to interrupt the calling thread, which it
// does when it collects garbage: its first signal would be two page faults (TestNoPageFaults). The
// signal is the runtime's own, of which it expects more than it sends (runtime/signal_unix.go).
func touchSignalStack() error {
	if err := unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGURG); err != nil {
		return fmt.Errorf("signal the thread itself: %w", err)
	}
	return nil
}
