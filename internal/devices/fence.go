package devices

import (
	"cmp"
	"context"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// Fence is what a recovery waits for: the last requests of the dead daemon. The steps wait; any
// goroutine may ask for what.
type Fence struct {
	*Shared
	until    time.Time
	waitsFor atomic.Pointer[error] // nil: nothing is waited for
}

// fencePause is between two tries.
const fencePause = 20 * time.Millisecond

// waits is what the start waits for now.
func (f *Fence) waits() error {
	if err := f.waitsFor.Load(); err != nil {
		return *err
	}
	return nil
}

// Left is how long the recovery may wait yet.
func (f *Fence) Left() time.Duration {
	if f.until.IsZero() {
		f.until = time.Now().Add(cmp.Or(f.Wanted.Fence, control.FenceLimit))
	}
	return max(time.Until(f.until), fencePause)
}

// behind opens a device with its lock. In a recovery it waits for the lock: the dead daemon's
// description, and with it the lock, is there until the last request that went through it has
// ended, so that none of its writes can land after a write of ours (I7).
func (f *Fence) behind(open func(context.Context) error) func(context.Context) error {
	if !f.Wanted.Recover {
		return open
	}
	return func(ctx context.Context) error {
		defer f.waitsFor.Store(nil)
		timer := time.NewTimer(f.Left())
		defer timer.Stop()
		for {
			err := open(ctx)
			if exit.Code(err) != exit.Busy {
				return err
			}
			if f.waitsFor.Swap(&err) == nil {
				f.Log.Info().Err(err).Msg("waiting for the last requests of the dead daemon")
			}
			select {
			case <-ctx.Done():
				return err
			case <-timer.C:
				return &exit.Error{Code: exit.Timeout, Doing: "wait for the last requests of the dead daemon", Cause: err,
					Next: "Nothing is served until they have ended. End whoever else holds it; then `ublk-clone recover` again."}
			case <-time.After(fencePause):
			}
		}
	}
}
