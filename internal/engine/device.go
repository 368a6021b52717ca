package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// blockDevice is the clone's block device: a new one, or one that a dead daemon has left. The
// daemon's goroutine makes it, starts it and takes it down.
type blockDevice struct {
	*devices.Devices
	control      *ublk.Control
	*ublk.Device // nil: it is not added yet
}

// Limits of what a stop waits for.
const (
	drainLimit    = 60 * time.Second // requests in flight on slow backends
	deleteLimit   = 10 * time.Second // the last user of ublkbN and ublkcN to let go
	teardownLimit = 2 * drainLimit   // of one undo step
)

// openDriver comes before the map is read, which may take long.
func (b *blockDevice) openDriver(context.Context) (err error) {
	b.control, err = ublk.OpenControl()
	return explain.Driver("open the ublk driver", err)
}

// add makes the device, which tells how many queues the driver allows. Nothing is served before
// startDevice.
func (b *blockDevice) add(context.Context) (err error) {
	if b.Wanted.Recover {
		return b.takeOver()
	}
	b.Device, err = ublk.Create(b.control, b.options())
	return explain.Driver("add the block device", err)
}

// options are those of a new device.
func (b *blockDevice) options() ublk.Options {
	def, geo := &b.Wanted.Definition, &b.Dest.Geometry
	hint := max(int(min(def.RegionSize, maxHint)), geo.PhysicalBlock)
	// Memory of users goes to the backends as it is, unless it is copied.
	dma, copied := geo.DMAAlignment, def.Copied
	if dma >= os.Getpagesize() {
		dma, copied = 0, true
	}
	return ublk.Options{
		ID: ublk.AnyID, Queues: def.Queues, Depth: def.QueueDepth, Private: b.Cookie(), Recoverable: true, Copy: copied,
		Tokens: dataplane.QueueOps(def.QueueDepth),
		Params: ublk.Params{
			Size: geo.Size, LogicalBlockSize: geo.LogicalBlock, PhysicalBlockSize: geo.PhysicalBlock, IOMin: hint, IOOpt: hint,
			MaxIO: footprint.MaxIO, DMAAlignment: dma,
			// Passdown or not: a discard of a part of a region does nothing, so nobody is to be
			// told that it might (dm-clone shows the destination's granularity and ignores such
			// discards).
			DiscardGranularity: def.RegionSize, MaxDiscard: clone.MaxSpan, MaxWriteZeroes: clone.MaxSpan,
			VolatileCache: true, FUA: true,
		},
	}
}

// maxHint bounds io_min and io_opt, in bytes: the page cache reads ahead twice io_opt.
const maxHint = 512 << 10

// takeOver finds the device that a dead daemon has left. It is not touched before startDevice.
func (b *blockDevice) takeOver() (err error) {
	def := &b.Wanted.Definition
	if def.Cookie != b.Cookie() {
		return &exit.Error{Code: exit.Metadata, Doing: "recover", Object: def.Device, Cause: errors.New("this is not the metadata that its last daemon had"),
			Next: "Nothing was written. Bring the right metadata back to " + def.Metadata + "."}
	}
	r := leftover.Device{Control: b.control}
	if err := r.Find(def); err != nil {
		return &exit.Error{Code: exit.Code(err), Doing: "recover", Object: def.Name, Cause: err, Next: "The same `ublk-clone add` goes on where it was."}
	}
	b.Device, err = ublk.Recover(b.control, r.Info.ID, ublk.Options{Private: def.Cookie, Tokens: dataplane.QueueOps(def.QueueDepth), RecoverTime: b.Fence.Left()})
	if err != nil {
		return explain.Driver("recover the block device", err)
	}
	expected := *def
	expected.Size = b.Dest.Geometry.Size
	return expected.Fits(b.Params().Size, b.Info().Depth)
}

// path is the path of the block device, empty before it is added.
func (b *blockDevice) path() string {
	if b.Device == nil {
		return ""
	}
	return b.BlockPath()
}

// stop ends the service of the block device.
func (b *blockDevice) stop() error {
	if !b.Ending.Keep {
		return errors.Join(b.Stop(drainLimit), b.Ending.Fault(6))
	}
	if err := b.Leave(drainLimit); err != nil {
		// Requests are at work on a backend that does not answer. The device lives on as after a
		// death; what comes next here would take memory and files from under them.
		guard.Fatal(fmt.Errorf("leave %s to the next daemon: %w", b.path(), err))
	}
	return nil
}

func (b *blockDevice) delete() error {
	if b.Ending.Keep {
		return nil
	}
	if b.Ending.Forced { // its users keep the number, and are not waited for
		return b.DeleteLater(deleteLimit)
	}
	return errors.Join(b.Delete(deleteLimit), b.Ending.Fault(9))
}
