package dataplane

import (
	"errors"
	"slices"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
)

// SideError is an I/O that failed, with the side that it went to.
type SideError struct {
	Side blockdev.Role
	Err  error
}

func (e *SideError) Error() string { return "the " + e.Side.String() + ": " + e.Err.Error() }

func (e *SideError) Unwrap() error { return e.Err }

// SideOf says which side has failed; ok is false for what is no error of a device.
func SideOf(err error) (side blockdev.Role, ok bool) {
	var e *SideError
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.Side, true
}

// Errors by what they say about other I/O. All others are of the bytes at hand: of a bad sector,
// mostly.
var (
	awayErrors = []syscall.Errno{
		syscall.ENODEV, syscall.ENXIO, syscall.ENOMEDIUM, syscall.ESHUTDOWN, syscall.ESTALE, // gone
		syscall.ENOLINK, syscall.ETIMEDOUT, syscall.EAGAIN, // no path to it, or no answer
		syscall.ENOTCONN, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EPIPE,
	}
	fullErrors = []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT}
)

// IsAwayErrno says that the whole device does not answer, and IsFullErrno that it has no space
// left.
func IsAwayErrno(errno syscall.Errno) bool { return slices.Contains(awayErrors, errno) }

func IsFullErrno(errno syscall.Errno) bool { return slices.Contains(fullErrors, errno) }

// ForUser is what a user of the block device gets to know of an error: EIO, as the errnos of our
// devices would speak of the wrong one; but a full destination is what one can do something about.
func ForUser(err error) error {
	if err == nil { // before errno is there, which is on the heap
		return nil
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && IsFullErrno(errno) {
		return syscall.ENOSPC
	}
	return syscall.EIO
}
