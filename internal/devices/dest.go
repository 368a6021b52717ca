package devices

import (
	"fmt"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/identity"
	"github.com/ublk-clone/ublk-clone/internal/neighbours"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// DestSide is the clone's destination, and what is known and recorded of it. The steps open it and
// set its fields; the watcher looks whether it has become shorter, which any goroutine may ask.
type DestSide struct {
	*Shared
	*blockdev.Device
	Geometry   blockdev.Geometry // of the clone
	NoPassdown string            // why discards cannot be passed down
	Records    records.Dir
	Record     records.Kept
	Sample     identity.DestSample
	shorter    atomic.Pointer[error] // it is, since it was opened
	under      *dm.Under             // through which it is reached, nil: it is opened itself
}

// open creates a destination file that is missing, with its space. beside are the devices of the
// clone that are open.
func (d *DestSide) open(size int64, beside []*blockdev.Device) error {
	if err := neighbours.Refuse(&d.Wanted, blockdev.Dest, d.Warn); err != nil {
		return err
	}
	dest, err := blockdev.Open(blockdev.Dest, d.Wanted.Definition.Dest, blockdev.Options{
		Force: d.accepts(), Create: !d.Wanted.Open, Size: size, Others: beside, DryRun: d.Wanted.DryRun, Tolerate: d.tolerance(),
		Way: d.way(),
	})
	if err == nil {
		d.Device = dest
	}
	return err
}

// warnSparse is of a destination file that somebody has made, and may have meant so.
func (d *DestSide) warnSparse() {
	if lacks := d.Sparse(); lacks > 0 {
		d.Warn("the destination %s is a sparse file: %s of it has no space yet, and a full file system fails writes. `fallocate -l %d %s` reserves it",
			d.Path(), text.Size(lacks), d.Size(), d.Path())
	}
}

// CheckPassdown finds, as dm-clone does, whether the destination can discard whole regions; if not,
// it is no failure.
func (d *DestSide) CheckPassdown(s definition.Settings) {
	limit, region := d.MaxDiscard(), d.Wanted.Definition.RegionSize
	switch {
	case limit == 0:
		d.NoPassdown = "the destination cannot discard"
	case limit < region:
		d.NoPassdown = fmt.Sprintf("the destination discards at most %s at a time, a region has %s", text.Size(limit), text.Size(region))
	}
	if s.DiscardPassdown && d.NoPassdown != "" {
		d.Warn("discards are not passed down: %s", d.NoPassdown)
	}
}

// Passdown says whether discards are passed down: if that is wanted and possible.
func (d *DestSide) Passdown(s definition.Settings) bool {
	return s.DiscardPassdown && d.NoPassdown == ""
}

// LookShorter notices that the destination has lost its end, or has it again.
func (d *DestSide) LookShorter() {
	if err := d.Shorter(); err == nil {
		d.shorter.Store(nil)
	} else if d.shorter.Swap(&err) == nil {
		d.Happened.Add(control.EventDestError, err.Error())
	}
}

// CutShort says that the destination had lost its end when it was last looked at, nil if it had
// not.
func (d *DestSide) CutShort() error {
	if err := d.shorter.Load(); err != nil {
		return *err
	}
	return nil
}
