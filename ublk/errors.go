package ublk

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoDriver is wrapped when /dev/ublk-control does not exist: the module ublk_drv is not
	// loaded, or the kernel was built without it.
	ErrNoDriver = errors.New("ublk driver not available")
	// ErrClosed is returned by commands of a Control that was closed, or whose ring has failed.
	ErrClosed = errors.New("ublk control closed")
	// ErrNotSupported is what every FeatureError is.
	ErrNotSupported = errors.New("not supported by this kernel's ublk driver")
	// ErrParams is wrapped by what Params.Validate returns.
	ErrParams = errors.New("invalid device parameters")
	// ErrState is returned by a Device's method that does not fit its state, such as a second
	// Start.
	ErrState = errors.New("device is in the wrong state")
	// ErrForeign is wrapped by Recover for a device whose Private is not the one expected: it is
	// somebody else's.
	ErrForeign = errors.New("device belongs to somebody else")
	// ErrServed is wrapped by Recover and by the Start after it for a device that a living process
	// serves.
	ErrServed = errors.New("device has a living server")
	// ErrUnrecoverable is wrapped by Recover for a device that no new server can take over: made
	// without Options.Recoverable, stopped, or made to be served in a way that this package does
	// not know.
	ErrUnrecoverable = errors.New("device cannot be recovered")
)

// FeatureError says that the driver lacks something; errors.Is(err, ErrNotSupported).
type FeatureError struct {
	Name  string // as the kernel's header calls it
	Since string // first kernel version that has it
}

func (e *FeatureError) Error() string {
	return fmt.Sprintf("ublk feature %s not supported (requires Linux %s)", e.Name, e.Since)
}

// Is makes a FeatureError an ErrNotSupported.
func (e *FeatureError) Is(target error) bool { return target == ErrNotSupported }

// CommandError is a control command that the driver refused.
type CommandError struct {
	Command string
	Device  int // -1: none yet
	Errno   unix.Errno
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("ublk command %s%s: %v", e.Command, onDevice(e.Device), e.Errno)
}

func (e *CommandError) Unwrap() error { return e.Errno }

// TimeoutError is a control command that did not return in time, or did not succeed in time. In the
// first case the kernel was asked to give it up and may still be at it.
type TimeoutError struct {
	Command string
	Device  int // -1: none yet
	After   time.Duration
	Waited  string // what for, if that is known
	cause   error  // the context's, or the driver's last answer
}

func (e *TimeoutError) Error() string {
	if e.Waited != "" {
		return fmt.Sprintf("ublk command %s%s: waited %v for %s", e.Command, onDevice(e.Device), e.After.Round(time.Millisecond), e.Waited)
	}
	return fmt.Sprintf("ublk command %s%s: no answer after %v", e.Command, onDevice(e.Device), e.After.Round(time.Millisecond))
}

// Timeout makes os.IsTimeout true.
func (e *TimeoutError) Timeout() bool { return true }

func (e *TimeoutError) Unwrap() error { return e.cause }

func onDevice(id int) string {
	if id < 0 {
		return ""
	}
	return fmt.Sprintf(" on device %d", id)
}
