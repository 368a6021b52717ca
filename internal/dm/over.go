package dm

import (
	"errors"
	"os"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// Over is what a daemon lays over its block device, leads elsewhere and lifts again: the layer of
// the name in the definition. If that has no name, there is no layer, and Open, Close, Lay, Lift
// and Warnings do nothing.
type Over struct {
	def      *definition.Definition
	recovers bool // the block device has users, and a dead daemon may have left the layer
	warn     func(format string, args ...any)
	anew     bool    // the table that the layer has does not count
	kernel   *sys.DM // nil: it is not open
	base     Base
}

// Base is the block device under a layer.
type Base struct {
	Device string
	Size   int64
	Clone  metadata.UUID
}

// NewOver is of a clone that is started. warn is told of what keeps nobody from serving.
func NewOver(st *definition.Start, warn func(format string, args ...any)) *Over {
	return &Over{def: &st.Definition, recovers: st.Recover, warn: warn}
}

// Open opens device-mapper and looks at the name, before anything else is touched: it is to be
// free, or in a recovery the clone's own. A table that a `finish` has loaded and not used keeps the
// destination open, and is given up.
func (o *Over) Open() (err error) {
	if o.def.DM == "" {
		return nil
	}
	if o.kernel, err = Open(); err != nil {
		return err
	}
	l, err := o.Find()
	switch {
	case err != nil || l == nil:
	case !o.recovers:
		err = Taken(o.def.DM, l)
	case l.IsOf(o.def.Cookie) && l.Inactive:
		err = Error("clear", o.def.DM, o.kernel.Clear(o.def.DM))
	}
	if err != nil {
		return errors.Join(err, o.Close())
	}
	return nil
}

func (o *Over) Close() error {
	if o.kernel == nil {
		return nil
	}
	return o.kernel.Close()
}

// Find looks at the layer; nil: there is none.
func (o *Over) Find() (*Layer, error) { return Find(o.kernel, o.def.DM) }

// Anew has Lay lead a layer that is there to the block device, wherever it leads.
func (o *Over) Anew() { o.anew = true }

// IsOurs says whether l, which may be nil, is this clone's.
func (o *Over) IsOurs(l *Layer) bool { return l != nil && l.IsOf(o.base.Clone.Cookie()) }

// Lay makes the layer, or lets the one go on that a dead daemon has left: if it was suspended, its
// users have waited for this.
func (o *Over) Lay(base Base) error {
	o.base = base
	name := o.def.DM
	if name == "" {
		return nil
	}
	l, err := o.Find()
	if err != nil {
		return err
	}
	ours := o.IsOurs(l)
	switch {
	case l == nil:
		if _, err := o.kernel.Create(name, Prefix+base.Clone.String()); err != nil {
			return Error("make", name, err)
		}
	case !ours && o.recovers: // the block device has users, whatever stands there by now
		o.warn("%v", Taken(name, l))
		return nil
	case !ours:
		return Taken(name, l)
	}
	if l == nil || !l.Live || o.anew {
		err = o.loadBase()
	}
	if err == nil {
		err = o.Resume()
	}
	if err != nil && !ours {
		err = errors.Join(err, Error("remove", name, o.kernel.Remove(name, false)))
	}
	if err != nil {
		return err
	}
	return o.link()
}

// link sees to it that the layer has its name in /dev/mapper: udev's rules make that, where there
// are any.
func (o *Over) link() error {
	l, err := o.Find()
	if err != nil || l == nil {
		return err
	}
	link := o.def.LayerPath()
	leads := func() bool {
		st, err := sys.StatPath(link)
		return err == nil && st.IsBlock() && st.Rdev == l.Dev
	}
	if _, err := os.Stat("/run/udev/control"); err == nil {
		for deadline := time.Now().Add(udevLimit); !leads() && time.Now().Before(deadline); time.Sleep(pause) {
			continue
		}
	}
	if leads() {
		return nil
	}
	err = file.Remove(link)
	if err == nil {
		err = os.Symlink(linkTo(l), link)
	}
	if err != nil {
		o.warn("%s is there, and has no link: %v", l.Path(), err)
	}
	return nil
}

// Lift takes the layer away, as long as the block device is under it. With force its users get
// errors, and it goes when they have closed it.
func (o *Over) Lift(limit time.Duration, force bool) error {
	if o.def.DM == "" {
		return nil
	}
	l, err := o.Find()
	if err != nil || !o.IsOurs(l) {
		return err
	}
	return Remove(o.kernel, l, force, limit)
}

// Cut keeps the users of a layer that goes when they have closed it from the destination. The block
// device is gone from under it.
func (o *Over) Cut() error {
	if o.def.DM == "" {
		return nil
	}
	l, err := o.Find()
	if err != nil || !o.IsOurs(l) || !l.IsMixed() {
		return err
	}
	return Cut(o.kernel, l)
}

// Warnings are of a layer that is not as it should be.
func (o *Over) Warnings() []string {
	name := o.def.DM
	if name == "" {
		return nil
	}
	l, err := o.Find()
	switch {
	case err != nil:
		return []string{err.Error()}
	case l == nil:
		return []string{"the device-mapper device " + name + " was removed; `ublk-clone restart " + o.def.Name + "` lays it again"}
	case l.Suspended:
		return []string{"the device-mapper device " + name + " is suspended by somebody else: its users wait"}
	}
	return nil
}

// Suspend waits for the requests at work, at most until limit, and keeps others waiting.
func (o *Over) Suspend(limit time.Duration) error { return o.kernel.Suspend(o.def.DM, limit) }

// Resume lets the layer go on, with its inactive table if it has one.
func (o *Over) Resume() error { return Error("resume", o.def.DM, o.kernel.Resume(o.def.DM, false)) }

// Load gives the layer an inactive table that leads to the block device of that path and number.
func (o *Over) Load(path string, number uint64) error {
	return o.loaded(path, o.kernel.Load(o.def.DM, Linear(o.base.Size, number)))
}

// LoadDirect gives the layer an inactive table that leads to dest in the direct extents, and to the
// block device of the clone elsewhere.
func (o *Over) LoadDirect(dest uint64, direct []Extent) error {
	st, err := sys.StatPath(o.base.Device)
	if err == nil {
		err = o.kernel.Load(o.def.DM, Mixed(o.base.Size, st.Rdev, dest, direct))
	}
	return Error("load a table with direct extents into", o.def.DM, err)
}

// Clear gives up an inactive table.
func (o *Over) Clear() error { return Error("clear", o.def.DM, o.kernel.Clear(o.def.DM)) }

// loadBase gives the layer an inactive table that leads to the block device of the clone.
func (o *Over) loadBase() error {
	st, err := sys.StatPath(o.base.Device)
	if err != nil {
		return o.loaded(o.base.Device, err)
	}
	return o.Load(o.base.Device, st.Rdev)
}

func (o *Over) loaded(path string, err error) error {
	return Error("load a table that leads to "+path+" into", o.def.DM, err)
}

// LeadBack gives up an inactive table. A live one that leads to the block device of that number is
// there only if its resume has failed half-way: it is exchanged for one that leads to the clone's,
// whose requests are held.
func (o *Over) LeadBack(number uint64) error {
	if err := o.kernel.Clear(o.def.DM); err != nil {
		return Error("clear", o.def.DM, err)
	}
	l, err := o.Find()
	if err != nil || l == nil || !l.LeadsTo(number) {
		return err
	}
	if err = o.loadBase(); err == nil {
		err = o.Resume()
	}
	return err
}
