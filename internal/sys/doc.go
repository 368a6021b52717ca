// Package sys holds the system calls and the unsafe code that the packages of
// the command and the daemon need: opening and locking, whole reads and writes,
// sizes of block devices, holes and reserved space of files, mappings,
// device-mapper, mount namespaces, and the settings of the process.
//
// It decides nothing. Most functions are one call to the kernel, repeated when a
// signal interrupts it (EINTR; the Go runtime signals its own threads) and, for
// reads and writes, until the whole length is done. Errors are the bare errno
// wrapped as "verb: %w", so that callers test them with errors.Is against
// syscall.EBUSY and its like; the caller adds the object.
//
// Descriptors are passed as int. The caller keeps the *os.File reachable over
// the call.
package sys

import (
	"errors"
	"fmt"
	"syscall"
)

// retry calls f again while a signal interrupts it.
func retry(f func() error) error {
	for {
		err := f()
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// wrap puts the verb in front of an errno and keeps nil nil.
func wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", verb, err)
}
