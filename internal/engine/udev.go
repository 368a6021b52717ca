package engine

import (
	"cmp"
	"context"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/udev"
)

// nameForUdev comes before the device is there for others, so that the first event finds it.
// Without udev there is only the kernel's name.
func (e *Engine) nameForUdev(context.Context) error {
	err := udev.Name(control.DefaultDir(), &e.Wanted.Definition, e.device.path(), e.Dest.IsBlock(), e.lanes.core.Complete())
	if err != nil {
		e.Warn("udev was not told of the clone, which may have no name in /dev/ublk-clone: %v", err)
	}
	return nil
}

// whenHydrated is called once, when all is durably hydrated.
func (e *Engine) whenHydrated() {
	e.session.closeUse()
	e.handover.tellDue()
	err := udev.NameDevice(control.DefaultDir(), &e.Wanted.Definition, e.device.path(), e.lanes.core.Complete())
	if err == nil {
		err = udev.Announce(cmp.Or(e.Wanted.Definition.LayerPath(), e.device.path()))
	}
	if err != nil {
		e.Log.Warn().Err(err).Msg("tell udev that the clone is complete")
	}
}

// unnameForUdev is the end of a clone. One whose device is left to the next daemon stays named.
func (e *Engine) unnameForUdev() error {
	if e.Ending.Keep {
		return nil
	}
	return udev.Forget(control.DefaultDir(), &e.Wanted.Definition)
}
