package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// keepDevice says whether taking down leaves the block device with its users waiting, for another daemon to
// recover: so it is at a planned restart, and when a recovery fails.
func (e *cloneEngine) keepDevice(keep bool) { e.keep = keep }

// takeOverDevice finds the device that a dead daemon has left. It is not touched before startDevice.
func (e *cloneEngine) takeOverDevice() (err error) {
	def := &e.start.Definition
	if def.Mark != e.mark() {
		return &exit.Error{Code: exit.Metadata, Doing: "recover", Object: def.Device, Cause: errors.New("these are not the metadata that its last daemon had"),
			Next: "Nothing was written. Bring the right ones back to " + def.Metadata + "."}
	}
	r := remains{control: e.control}
	if err := r.find(def); err != nil {
		return &exit.Error{Code: exit.Code(err), Doing: "recover", Object: def.Name, Cause: err, Next: "The same `ublk-clone add` goes on where it was."}
	}
	e.dev, err = ublk.Recover(e.control, r.info.ID, ublk.Options{Private: def.Mark, Tokens: queueOps(def.QueueDepth), RecoverTime: e.fenceTime()})
	if err != nil {
		return driverError("recover the block device", err)
	}
	expected := *def
	expected.Size = e.geometry.Size
	return expected.fits(e.dev.Params().Size, e.dev.Info().Depth)
}

// mayReplace is the look before a daemon is replaced.
func (e *cloneEngine) mayReplace(dir runDir) error { return dir.mayReplace(&e.start.Definition) }

// deviceID is the number of the block device that the last daemon had.
func (d *definition) deviceID() (id int, err error) {
	if _, err := fmt.Sscanf(d.Device, "/dev/ublkb%d", &id); err != nil {
		return 0, &exit.Error{Code: exit.NoClone, Doing: "recover", Object: d.Name, Cause: errors.New("its daemon never had a block device"),
			Next: "Use `ublk-clone add`."}
	}
	return id, nil
}

// stopDevice ends the service of the block device.
func (e *cloneEngine) stopDevice() error {
	defer e.endCaution()
	if !e.keep {
		return errors.Join(e.dev.Stop(drainLimit), e.faultIfFinished(6))
	}
	if err := e.dev.Leave(drainLimit); err != nil {
		// Requests are at work on a backend that does not answer. The device lives on as after a death; what
		// comes next here would take memory and files from under them.
		guard.Fatal(fmt.Errorf("leave %s to the next daemon: %w", e.device(), err))
	}
	return nil
}

func (e *cloneEngine) deleteDevice() error {
	if e.keep {
		return nil
	}
	if e.forced { // its users keep the number, and are not waited for
		return e.dev.DeleteLater(deleteLimit)
	}
	return errors.Join(e.dev.Delete(deleteLimit), e.faultIfFinished(9))
}

// fenceLimit is how long a recovery waits for the last traces of the dead daemon, if nobody says.
const fenceLimit = 60 * time.Second

// fencePause is between two tries.
const fencePause = 20 * time.Millisecond

// fence is what a recovery waits for, at most until end.
type fence struct {
	end    time.Time
	behind atomic.Pointer[error] // nil: nothing is waited for
}

// waits is what the start waits for now.
func (e *cloneEngine) waits() error {
	if err := e.fence.behind.Load(); err != nil {
		return *err
	}
	return nil
}

// fenceTime is how long the recovery may wait yet.
func (e *cloneEngine) fenceTime() time.Duration {
	if e.fence.end.IsZero() {
		e.fence.end = time.Now().Add(cmp.Or(e.start.Fence, fenceLimit))
	}
	return max(time.Until(e.fence.end), fencePause)
}

// behindFence opens a device with its lock. In a recovery it waits for the lock: the dead daemon's description, and
// with it the lock, is there until the last request that went through it has ended, so that none of its writes
// can land after a write of ours (I7).
func (e *cloneEngine) behindFence(open func(context.Context) error) func(context.Context) error {
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
