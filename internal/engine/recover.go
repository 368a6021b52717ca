package engine

import (
	"errors"
	"fmt"

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
func (e *Engine) KeepDevice(keep bool) { e.ending.keep = keep }

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
	e.dev, err = ublk.Recover(e.control, r.Info.ID, ublk.Options{Private: def.Mark, Tokens: dataplane.QueueOps(def.QueueDepth), RecoverTime: e.fence.left()})
	if err != nil {
		return explain.Driver("recover the block device", err)
	}
	expected := *def
	expected.Size = e.dest.geometry.Size
	return expected.Fits(e.dev.Params().Size, e.dev.Info().Depth)
}

// MayReplace is the look before a daemon is replaced.
func (e *Engine) MayReplace(dir control.Dir) error {
	return preflight.MayReplace(dir, &e.start.Definition)
}

// stopDevice ends the service of the block device.
func (e *Engine) stopDevice() error {
	defer e.caution.end()
	if !e.ending.keep {
		return errors.Join(e.dev.Stop(drainLimit), e.ending.fault(6))
	}
	if err := e.dev.Leave(drainLimit); err != nil {
		// Requests are at work on a backend that does not answer. The device lives on as after a death; what
		// comes next here would take memory and files from under them.
		guard.Fatal(fmt.Errorf("leave %s to the next daemon: %w", e.Device(), err))
	}
	return nil
}

func (e *Engine) deleteDevice() error {
	if e.ending.keep {
		return nil
	}
	if e.ending.forced { // its users keep the number, and are not waited for
		return e.dev.DeleteLater(deleteLimit)
	}
	return errors.Join(e.dev.Delete(deleteLimit), e.ending.fault(9))
}
