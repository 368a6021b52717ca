package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/preflight"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// KeepDevice says whether taking down leaves the block device with its users waiting, for another daemon to
// recover: so it is at a planned restart, and when a recovery fails.
func (e *Engine) KeepDevice(keep bool) { e.keep = keep }

// takeOverDevice finds the device that a dead daemon has left. It is not touched before startDevice.
func (e *Engine) takeOverDevice() (err error) {
	def := &e.start.Definition
	if def.Mark != e.Mark() {
		return &exit.Error{Code: exit.Metadata, Doing: "recover", Object: def.Device, Cause: errors.New("these are not the metadata that its last daemon had"),
			Next: "Nothing was written. Bring the right ones back to " + def.Metadata + "."}
	}
	r := leftover.Device{Control: e.control}
	if err := r.Find(def); err != nil {
		return &exit.Error{Code: exit.Code(err), Doing: "recover", Object: def.Name, Cause: err, Next: "The same `ublk-clone add` goes on where it was."}
	}
	e.dev, err = ublk.Recover(e.control, r.Info.ID, ublk.Options{Private: def.Mark, Tokens: dataplane.QueueOps(def.QueueDepth), RecoverTime: e.fenceTime()})
	if err != nil {
		return explain.Driver("recover the block device", err)
	}
	expected := *def
	expected.Size = e.geometry.Size
	return expected.Fits(e.dev.Params().Size, e.dev.Info().Depth)
}

// MayReplace is the look before a daemon is replaced.
func (e *Engine) MayReplace(dir control.Dir) error {
	return preflight.MayReplace(dir, &e.start.Definition)
}

// stopDevice ends the service of the block device.
func (e *Engine) stopDevice() error {
	defer e.endCaution()
	if !e.keep {
		return errors.Join(e.dev.Stop(drainLimit), e.faultIfFinished(6))
	}
	if err := e.dev.Leave(drainLimit); err != nil {
		// Requests are at work on a backend that does not answer. The device lives on as after a death; what
		// comes next here would take memory and files from under them.
		guard.Fatal(fmt.Errorf("leave %s to the next daemon: %w", e.Device(), err))
	}
	return nil
}

func (e *Engine) deleteDevice() error {
	if e.keep {
		return nil
	}
	if e.forced { // its users keep the number, and are not waited for
		return e.dev.DeleteLater(deleteLimit)
	}
	return errors.Join(e.dev.Delete(deleteLimit), e.faultIfFinished(9))
}

// fencePause is between two tries.
const fencePause = 20 * time.Millisecond

// fence is what a recovery waits for, at most until end.
type fence struct {
	end    time.Time
	behind atomic.Pointer[error] // nil: nothing is waited for
}

// Waits is what the start waits for now.
func (e *Engine) Waits() error {
	if err := e.fence.behind.Load(); err != nil {
		return *err
	}
	return nil
}

// fenceTime is how long the recovery may wait yet.
func (e *Engine) fenceTime() time.Duration {
	if e.fence.end.IsZero() {
		e.fence.end = time.Now().Add(cmp.Or(e.start.Fence, control.FenceLimit))
	}
	return max(time.Until(e.fence.end), fencePause)
}

// behindFence opens a device with its lock. In a recovery it waits for the lock: the dead daemon's description, and
// with it the lock, is there until the last request that went through it has ended, so that none of its writes
// can land after a write of ours (I7).
func (e *Engine) behindFence(open func(context.Context) error) func(context.Context) error {
	if !e.start.Recover {
		return open
	}
	return func(ctx context.Context) error {
		defer e.fence.behind.Store(nil)
		timer := time.NewTimer(e.fenceTime())
		defer timer.Stop()
		for {
			err := open(ctx)
			if exit.Code(err) != exit.Busy {
				return err
			}
			if e.fence.behind.Swap(&err) == nil {
				e.log.Info().Err(err).Msg("waiting for the last requests of the dead daemon")
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
