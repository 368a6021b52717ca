package engine

import (
	"cmp"
	"context"
	"errors"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/udev"
)

// What udev's rules (packaging/udev) are told of a clone: a file for its block device and one for its destination, each
// called after the kernel's name for it, and one for its layer, with lines that a rule imports.
//
// The block device gets its stable name from it, /dev/ublk-clone/NAME, and neither it nor the layer is searched for file
// systems and the like before all is hydrated: that would read through to a source that may be slow, or away. The
// destination carries the same file systems as the clone, and loses the names that come from them, so that nobody mounts
// it in the clone's place while no daemon holds it (I7).

// nameForUdev comes before the device is there for others, so that the first event finds it. Without udev there is only
// the kernel's name. The destination is looked at again when a daemon closes it.
func (e *Engine) nameForUdev(context.Context) error {
	def := &e.start.Definition
	err := e.tellName()
	if e.dest.IsBlock() {
		err = errors.Join(err, udev.Tell(udev.DestUdevFile(control.DefaultDir(), def.Dest), udev.DestLines(def)))
	}
	if err != nil {
		e.Warn("udev was not told of the clone, which may have no name in /dev/ublk-clone: %v", err)
	}
	return nil
}

// tellName tells of the block device and of the layer over it. What a layer hides is never searched: the layer is.
func (e *Engine) tellName() error {
	dir, def := control.DefaultDir(), &e.start.Definition
	device, name := udev.UdevFile(dir, udev.KernelName(e.Device())), udev.NameLine(def)
	top := name
	if e.core.Complete() {
		top += "\nUBLK_CLONE_COMPLETE=1"
	}
	if def.DM == "" {
		return udev.Tell(device, top)
	}
	return errors.Join(udev.Tell(device, name), udev.Tell(udev.LayerUdevFile(dir, def.DM), top))
}

// whenHydrated is called once, when all is durably hydrated.
func (e *Engine) whenHydrated() {
	e.closeUse()
	err := e.tellName()
	if err == nil {
		err = udev.Announce(cmp.Or(e.start.Definition.LayerPath(), e.Device()))
	}
	if err != nil {
		e.log.Warn().Err(err).Msg("tell udev that the clone is complete")
	}
}

// unnameForUdev is the end of a clone. One whose device is left to the next daemon stays named.
func (e *Engine) unnameForUdev() error {
	if e.keep {
		return nil
	}
	return udev.Forget(control.DefaultDir(), &e.start.Definition)
}
