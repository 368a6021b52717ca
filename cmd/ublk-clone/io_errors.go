package main

import (
	"errors"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
)

// sideError is an I/O that failed, with the side that it went to.
type sideError struct {
	side blockdev.Role
	err  error
}

func (e *sideError) Error() string { return "the " + e.side.String() + ": " + e.err.Error() }

func (e *sideError) Unwrap() error { return e.err }

// sideOf says which side has failed; ok is false for what is no error of a device.
func sideOf(err error) (side blockdev.Role, ok bool) {
	var e *sideError
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.side, true
}

// Errors by what they say about other I/O. All others are of the bytes at hand: of a bad sector, mostly.
var (
	awayErrors = []syscall.Errno{
		syscall.ENODEV, syscall.ENXIO, syscall.ENOMEDIUM, syscall.ESHUTDOWN, syscall.ESTALE, // gone
		syscall.ENOLINK, syscall.ETIMEDOUT, syscall.EAGAIN, // no path to it, or no answer
		syscall.ENOTCONN, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EPIPE,
	}
	fullErrors = []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT}
)

// isAwayErrno says that the whole device does not answer, and isFullErrno that it has no space left.
func isAwayErrno(errno syscall.Errno) bool { return slices.Contains(awayErrors, errno) }

func isFullErrno(errno syscall.Errno) bool { return slices.Contains(fullErrors, errno) }

// forUser is what a user of the block device gets to know of an error: EIO, as the errnos of our devices would
// speak of the wrong one; but a full destination is what one can do something about.
func forUser(err error) error {
	if err == nil { // before errno is there, which is on the heap
		return nil
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && isFullErrno(errno) {
		return syscall.ENOSPC
	}
	return syscall.EIO
}

// failedIO counts the requests of users that one side has failed.
type failedIO struct {
	Side     string    `json:"side"` // source, destination
	Requests int64     `json:"requests"`
	Offset   int64     `json:"last_offset"` // of the last of them, bytes
	Error    string    `json:"last_error"`
	Time     time.Time `json:"last_time"`
}

// failures are those of both sides. Any thread may add one.
type failures struct {
	mu    sync.Mutex // a leaf
	sides [blockdev.Dest + 1]failedIO
}

func (f *failures) add(side blockdev.Role, off int64, err error, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.sides[side]
	*s = failedIO{Side: side.String(), Requests: s.Requests + 1, Offset: off, Error: err.Error(), Time: now.UTC()}
}

// list gives the sides that have failed.
func (f *failures) list() (out []failedIO) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sides {
		if s.Requests > 0 {
			out = append(out, s)
		}
	}
	return out
}
