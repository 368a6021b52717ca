package dm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// UnderPrefix is what the UUID of a private device over a destination begins with; the clone's name
// follows.
const UnderPrefix = Prefix + "DEST-"

// Under is the private device over the whole destination of a clone with a layer:
//
//	/dev/mapper/DMNAME  --some extents-->  the destination  <--  NAME-dest  <--  the daemon
//	                    --the others---->  /dev/ublkbN      <---------------------'
//
// device-mapper claims a block device for all its own devices together, and for nobody else. So the
// daemon, which wants the destination locked, and the layer, which leads there, can both use it if
// the daemon goes through a device of device-mapper's, too. The exclusive open of that one is then
// what the open of the destination is elsewhere (I7): it is given back when the last request that
// went through it has ended. The destination itself stays claimed as long as the device is there,
// also while no daemon lives.
//
// It is known by its UUID, which has the name of the clone: whoever holds the lock of that name may
// lay and remove it. It is there from before the destination is opened until after it is closed,
// and as long as that the clone has a definition, by which whoever cleans up finds it.
type Under struct{ def *definition.Definition }

// NewUnder is of a clone; nil if that has no layer.
func NewUnder(def *definition.Definition) *Under {
	if def.DM == "" {
		return nil
	}
	return &Under{def}
}

// name is the device's.
func (u *Under) name() string { return u.def.UnderName() }

func (u *Under) uuid() string { return UnderPrefix + u.def.Name }

// Find looks at the device; nil: there is none. Somebody else's of its name is an error.
func (u *Under) Find() (l *Layer, err error) {
	err = with(func(kernel *sys.DM) error { l, err = u.find(kernel); return err })
	return l, err
}

func (u *Under) find(kernel *sys.DM) (*Layer, error) {
	l, err := Find(kernel, u.name())
	if err == nil && l != nil && l.UUID != u.uuid() {
		return nil, &exit.Error{Code: exit.Exists, Doing: "lay the device-mapper device", Object: u.name(), Cause: errors.New("it exists already, and is not this clone's"),
			Next: "Nothing was changed. The clone needs a device of this name over its destination: use another name for the clone, or remove it with `dmsetup remove " + u.name() + "` if it is not needed."}
	}
	return l, err
}

// Lay makes the device over the whole of the block device dest, of that many bytes, or takes the one
// that a daemon of this clone has left there. One that leads elsewhere is removed, if nobody has it
// open. An error of IsBusy: somebody else has dest.
func (u *Under) Lay(dest uint64, size int64) (l *Layer, err error) {
	err = with(func(kernel *sys.DM) error { l, err = u.lay(kernel, dest, size); return err })
	return l, err
}

func (u *Under) lay(kernel *sys.DM, dest uint64, size int64) (*Layer, error) {
	l, err := u.find(kernel)
	if err == nil && l != nil && !(l.LeadsTo(dest) && l.Size() == size) {
		err, l = Remove(kernel, l, false, RemoveLimit), nil
	}
	if err != nil {
		return nil, err
	}
	made := l == nil
	if made {
		if _, err = kernel.Create(u.name(), u.uuid()); err == nil {
			err = kernel.Load(u.name(), Linear(size, dest))
		}
	}
	if err == nil {
		err = kernel.Resume(u.name(), true)
	}
	if err == nil {
		return u.find(kernel)
	}
	if made {
		_ = kernel.Remove(u.name(), false) // the first error tells
	}
	return nil, Error("lay over the destination", u.name(), err)
}

// Remove removes the device, if it is there and the clone's. Who looks at it, as udev does, keeps it
// for a moment, and if that is longer it goes when they have closed it.
func (u *Under) Remove() error {
	if u == nil {
		return nil
	}
	return with(func(kernel *sys.DM) error {
		l, err := Find(kernel, u.name())
		if err != nil || l == nil || l.UUID != u.uuid() {
			return err
		}
		if err = Remove(kernel, l, false, RemoveLimit); exit.Code(err) == exit.Busy {
			err = Remove(kernel, l, true, 0)
		}
		return err
	})
}

// with does something with device-mapper open.
func with(do func(*sys.DM) error) error {
	kernel, err := Open()
	if err != nil {
		return err
	}
	return errors.Join(do(kernel), kernel.Close())
}

// Unders are the names of the clones whose private devices are there, as sysfs, which is mounted at
// directory, has them. It opens nothing else.
func Unders(dir string) (clones []string) {
	found, _ := filepath.Glob(filepath.Join(dir, "block/dm-*/dm/uuid"))
	for _, path := range found {
		text, err := os.ReadFile(path)
		if name, ours := strings.CutPrefix(strings.TrimSpace(string(text)), UnderPrefix); err == nil && ours && definition.IsName(name) {
			clones = append(clones, name)
		}
	}
	return clones
}

// cutLimit is for the requests at work when a layer is led nowhere.
const cutLimit = 5 * time.Second

// Cut leads a layer nowhere: its users get errors, and reach neither the clone nor the destination
// any more. It is for one whose block device has gone from under it; requests at work there have
// ended with errors.
func Cut(kernel *sys.DM, l *Layer) error {
	err := kernel.Load(l.Name, failing(l.Size()))
	if err == nil {
		err = kernel.Suspend(l.Name, cutLimit)
	}
	if err != nil {
		return Error("lead nowhere", l.Name, fmt.Errorf("%w: its users still reach the destination", err))
	}
	return Error("lead nowhere", l.Name, kernel.Resume(l.Name, false))
}
