package engine

import (
	"cmp"
	"context"
	"errors"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/internal/udev"
)

// nameForUdev comes before the device is there for others, so that the first event finds it.
func (e *Engine) nameForUdev(context.Context) error {
	err := udev.Name(control.DefaultDir(), &e.Wanted.Definition, e.device.path(), e.Dest.IsBlock(), e.lanes.core.Complete())
	if err != nil {
		e.Warn("udev was not told of the clone, which may have no name in /dev/ublk-clone: %v", err)
	}
	return nil
}

// whenHydrated is called once, when all is durably hydrated.
func (e *Engine) whenHydrated() {
	e.session.lastRecord()
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
	err := udev.Forget(control.DefaultDir(), &e.Wanted.Definition)
	if e.Ending.HandedOver { // the layer is one that a later clone of the name goes before
		err = errors.Join(err, udev.Announce(e.Wanted.Definition.LayerPath()))
	}
	return err
}

// topPath is what users are to open: the layer, unless it is somebody else's or gone.
func (e *Engine) topPath() string {
	if e.Wanted.Definition.DM == "" {
		return e.device.path()
	}
	if l, err := e.layer.Find(); err != nil || !e.layer.IsOurs(l) {
		return e.device.path()
	}
	return e.Wanted.Definition.LayerPath()
}

// nameTop sees to it that what users are to open has its name in /dev/ublk-clone. That they can do
// without: a clone in a container whose /dev is read-only has none.
func (e *Engine) nameTop() error {
	device := e.device.path()
	top := e.topPath()
	st, err := sys.StatPath(top)
	if err == nil {
		e.top, err = udev.DevLinks().Give(e.Wanted.Definition.Name, top, st.Rdev, device, top)
	}
	if err != nil {
		e.top = top
		e.Warn("use the clone as %s, as it has no name in /dev/ublk-clone: %v", top, err)
	}
	return nil
}
