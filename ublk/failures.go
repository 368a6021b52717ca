package ublk

import (
	"context"
	"errors"
	"sync"
)

// failures are what goes wrong in the queues of a device, on their threads. A queue that fails
// before the device is live ends its Start; from then on that is fatal.
type failures struct {
	mu     sync.Mutex // guards all; a leaf
	live   bool       // Start has returned: from here on a queue that fails is fatal
	failed error
	cancel context.CancelCauseFunc // ends START_DEV
	errs   []error                 // of giving back
}

// begin is told how a Start is ended.
func (f *failures) begin(cancel context.CancelCauseFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancel = cancel
}

// goLive makes the failure of a queue fatal from now on; one that came before is returned.
func (f *failures) goLive() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.live = f.failed == nil
	return f.failed
}

// add is called by a queue whose ring has failed.
func (f *failures) add(err error) (fatal bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = err
	f.cancel(err)
	return f.live
}

// first is that of a queue, nil if there is none.
func (f *failures) first() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// keep remembers an error of giving something back.
func (f *failures) keep(err error) {
	if err != nil {
		f.mu.Lock()
		f.errs = append(f.errs, err)
		f.mu.Unlock()
	}
}

// ofGivingBack are those that keep has got.
func (f *failures) ofGivingBack() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.errs...)
}
