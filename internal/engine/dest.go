package engine

import (
	"fmt"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/identity"
	"github.com/ublk-clone/ublk-clone/internal/neighbours"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// destSide is the clone's destination, and what is known and recorded of it.
type destSide struct {
	*shared
	*blockdev.Device
	geometry   blockdev.Geometry // of the clone
	noPassdown string            // why discards cannot be passed down
	records    records.Dir
	use        records.Use
	sample     identity.DestSample
	shorter    atomic.Pointer[error] // it is, since it was opened. The watcher looks
}

// open creates a destination file that is missing, with its space. beside are the devices of the clone that are open.
func (d *destSide) open(size int64, beside []*blockdev.Device) error {
	if err := neighbours.Refuse(&d.start, blockdev.Dest, d.Warn); err != nil {
		return err
	}
	dest, err := blockdev.Open(blockdev.Dest, d.start.Definition.Dest, blockdev.Options{
		Force: d.accepts(), Create: !d.start.Open, Size: size, Others: beside, DryRun: d.start.DryRun, Tolerate: d.tolerance(),
	})
	if err == nil {
		d.Device = dest
	}
	return err
}

// warnSparse is of a destination file that somebody has made, and may have meant so.
func (d *destSide) warnSparse() {
	if lacks := d.Sparse(); lacks > 0 {
		d.Warn("the destination %s is a sparse file: %s of it have no space yet, and a full file system fails writes. `fallocate -l %d %s` reserves it",
			d.Path(), text.Size(lacks), d.Size(), d.Path())
	}
}

// checkPassdown finds, as dm-clone does, whether the destination can discard whole regions; if not, it is
// no failure.
func (d *destSide) checkPassdown(s definition.Settings) {
	limit, region := d.MaxDiscard(), d.start.Definition.RegionSize
	switch {
	case limit == 0:
		d.noPassdown = "the destination cannot discard"
	case limit < region:
		d.noPassdown = fmt.Sprintf("the destination discards at most %s at a time, a region has %s", text.Size(limit), text.Size(region))
	}
	if s.DiscardPassdown && d.noPassdown != "" {
		d.Warn("discards are not passed down: %s", d.noPassdown)
	}
}

// passdown says whether discards are passed down: if that is wanted and possible.
func (d *destSide) passdown(s definition.Settings) bool {
	return s.DiscardPassdown && d.noPassdown == ""
}

// spares says which zeros are not written where the destination reads as zeros. If it keeps them only until a part of their
// unit is written, regions must be of whole units.
func (d *destSide) spares(s definition.Settings) clone.Spare {
	unit := d.DiscardUnit()
	switch zeros := d.SparesZeros(); {
	case !s.DiscardPassdown || zeros == blockdev.ZerosUnknown:
		return clone.SpareNothing
	case zeros == blockdev.ZerosSteady:
		return clone.SpareAll
	case unit > 0 && d.start.Definition.RegionSize%unit == 0:
		return clone.SpareDiscarded
	}
	return clone.SpareNothing
}

// lookShorter notices that the destination has lost its end, or has it again.
func (d *destSide) lookShorter() {
	if err := d.Shorter(); err == nil {
		d.shorter.Store(nil)
	} else if d.shorter.Swap(&err) == nil {
		d.happened.Add(control.EventDestError, err.Error())
	}
}
