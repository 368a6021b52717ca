// Package guard keeps a daemon from ending halfway. A panic in a goroutine of its own would end the
// process in the runtime's way: with a trace on a standard error that may block, deferred calls
// that may hang, and an exit status that says nothing. Every goroutine of a daemon is started by Go
// or runs Wrap, or has Guard as its first deferred call (internal/tidy tests that).
package guard

import (
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// messageLimit is what a pipe takes whole when it takes anything (PIPE_BUF).
	messageLimit = 4096
	// messageTime is how long the message may take: standard error may lead to the very device that
	// is not served any more.
	messageTime = time.Second
)

// Fatal ends the process at once, with cause on standard error: by SIGKILL, so that neither
// deferred calls nor a core dump keep descriptors and locks. It does not return.
func Fatal(cause error) {
	message := fmt.Appendf(nil, "%s: fatal: %v\n", os.Args[0], cause)
	written := make(chan struct{})
	go func() { // not guarded: the process ends in any case
		defer close(written)
		writeIfReady(message[:min(len(message), messageLimit)])
	}()
	select {
	case <-written:
	case <-time.After(messageTime):
	}
	for { // a signal to oneself may be delivered after the call has returned
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
}

// writeIfReady writes to standard error if that takes it now.
func writeIfReady(message []byte) {
	ready := []unix.PollFd{{Fd: 2, Events: unix.POLLOUT}}
	if n, err := unix.Poll(ready, 0); err == nil && n == 1 {
		_, _ = unix.Write(2, message)
	}
}

// Go runs f in a goroutine of its own, whose panic ends the process by Fatal.
func Go(name string, f func()) { go Wrap(name, f)() }

// Wrap is f for a goroutine that others start, as those of a WaitGroup or a timer.
func Wrap(name string, f func()) func() {
	return func() {
		defer Guard(name, Fatal)
		f()
	}
}

// Guard is deferred by a goroutine that must not end by a panic, such as one that serves a device:
// it gives the panic, if there is one, to fatal.
func Guard(name string, fatal func(error)) {
	if v := recover(); v != nil {
		fatal(fmt.Errorf("%s: panic: %v\n%s", name, v, debug.Stack()))
	}
}
