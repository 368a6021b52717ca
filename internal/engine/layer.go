package engine

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// The layer is a device-mapper device over the block device, which `add --dm` lays: users have that open, and `finish`
// leads it to the destination while they do.
//
//	/dev/mapper/DMNAME  linear  -->  /dev/ublkbN      until finish
//	                            -->  the destination  from then on
//
// It is known as the clone's by its UUID, which has the clone's. It outlives the daemon, as the block device does. All is
// done by ioctls (sys.DM): programs such as dmsetup may lie on the clone, and could not be read while it is suspended.

// openLayer opens device-mapper and looks at the name, before anything else is touched: it is to be free, or in a recovery
// the clone's own. A table that a `finish` has loaded and not used keeps the destination open, and is given up.
func (e *Engine) openLayer(context.Context) (err error) {
	def := &e.start.Definition
	if def.DM == "" {
		return nil
	}
	if e.mapper, err = dm.Open(); err != nil {
		return err
	}
	l, err := dm.Find(e.mapper, def.DM)
	switch {
	case err != nil || l == nil:
	case !e.start.Recover:
		err = dm.Taken(def.DM, l)
	case l.IsOf(def.Mark) && l.Inactive:
		err = dm.Error("clear", def.DM, e.mapper.Clear(def.DM))
	}
	if err != nil {
		return errors.Join(err, e.closeLayer())
	}
	return nil
}

func (e *Engine) closeLayer() error {
	if e.mapper == nil {
		return nil
	}
	return e.mapper.Close()
}

// layLayer makes the layer, or lets the one go on that a dead daemon has left: if it was suspended, its users have waited
// for this.
func (e *Engine) layLayer(context.Context) error {
	name := e.start.Definition.DM
	if name == "" {
		return nil
	}
	l, err := dm.Find(e.mapper, name)
	if err != nil {
		return err
	}
	ours := l != nil && l.IsOf(e.Mark())
	switch {
	case l == nil:
		if _, err := e.mapper.Create(name, dm.Prefix+e.meta.store.Superblock().UUID.String()); err != nil {
			return dm.Error("make", name, err)
		}
	case !ours && e.start.Recover: // the block device has users, whatever stands there by now
		e.Warn("%v", dm.Taken(name, l))
		return nil
	case !ours:
		return dm.Taken(name, l)
	}
	if l == nil || !l.Live {
		err = e.loadLayer()
	}
	if err == nil {
		err = dm.Error("resume", name, e.mapper.Resume(name))
	}
	if err != nil && !ours {
		err = errors.Join(err, dm.Error("remove", name, e.mapper.Remove(name, false)))
	}
	if err != nil {
		return err
	}
	return e.linkLayer()
}

// loadLayer gives the layer an inactive table that leads to the block device.
func (e *Engine) loadLayer() error {
	st, err := sys.StatPath(e.Device())
	if err == nil {
		err = e.mapper.Load(e.start.Definition.DM, dm.Linear(e.dest.geometry.Size, st.Rdev))
	}
	return dm.Error("load a table that leads to "+e.Device()+" into", e.start.Definition.DM, err)
}

// linkLayer sees to it that the layer has its name in /dev/mapper: udev's rules make that, where there are any.
func (e *Engine) linkLayer() error {
	l, err := dm.Find(e.mapper, e.start.Definition.DM)
	if err != nil || l == nil {
		return err
	}
	link := e.start.Definition.LayerPath()
	leads := func() bool {
		st, err := sys.StatPath(link)
		return err == nil && st.IsBlock() && st.Rdev == l.Dev
	}
	if _, err := os.Stat("/run/udev/control"); err == nil {
		for deadline := time.Now().Add(dm.UdevLimit); !leads() && time.Now().Before(deadline); time.Sleep(control.HolderPause) {
			continue
		}
	}
	if leads() {
		return nil
	}
	err = file.Remove(link)
	if err == nil {
		err = os.Symlink(dm.LinkTo(l), link)
	}
	if err != nil {
		e.Warn("%s is there, and has no link: %v", l.Path(), err)
	}
	return nil
}

// liftLayer takes the layer away, as long as the block device is under it. With force its users get errors, and it
// goes when they have closed it.
func (e *Engine) liftLayer(limit time.Duration, force bool) error {
	name := e.start.Definition.DM
	if name == "" || e.end.keep || e.handedOver {
		return nil
	}
	l, err := dm.Find(e.mapper, name)
	if err != nil || l == nil || !l.IsOf(e.Mark()) {
		return err
	}
	return dm.Remove(e.mapper, l, force, limit)
}

// lookAtLayer warns of a layer that is not as it should be.
func (e *Engine) lookAtLayer(st *control.Status) {
	name := e.start.Definition.DM
	if name == "" {
		return
	}
	l, err := dm.Find(e.mapper, name)
	switch {
	case err != nil:
		st.Warnings = append(st.Warnings, err.Error())
	case l == nil:
		st.Warnings = append(st.Warnings, "the device-mapper device "+name+" was removed; `ublk-clone restart "+st.Name+"` lays it again")
	case l.Suspended:
		st.Warnings = append(st.Warnings, "the device-mapper device "+name+" is suspended by somebody else: its users wait")
	}
}
