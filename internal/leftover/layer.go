package leftover

import (
	"errors"
	"io/fs"
	"slices"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// liftDead removes the layers of a clone whose daemon is dead: what lies over its block device, one
// that got no table, and the link of one that is gone. With force from under their users, who get
// errors when the block device is gone.
func liftDead(def *definition.Definition, names []string, force bool) error {
	return eachLayer(def, names, func(mapper *sys.DM, l *dm.Layer) (err error) {
		if force && l.Suspended { // else its users would wait for ever
			err = errors.Join(mapper.Clear(l.Name), mapper.Resume(l.Name, false))
		}
		return errors.Join(err, dm.Remove(mapper, l, force, dm.RemoveLimit))
	})
}

// cutDead keeps the users of layers that go when they have closed them from the destination, to
// which direct extents lead. The block device is gone.
func cutDead(def *definition.Definition, names []string) error {
	return eachLayer(def, names, func(mapper *sys.DM, l *dm.Layer) error {
		if !l.IsMixed() {
			return nil
		}
		return dm.Cut(mapper, l)
	})
}

// layersOf are the names that layers of a clone may have.
func layersOf(def *definition.Definition) ([]string, error) {
	var names []string
	over, err := blockdev.MappedOver(def.Device)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, m := range over {
		names = append(names, m.Name)
	}
	if def.DM != "" && !slices.Contains(names, def.DM) {
		names = append(names, def.DM)
	}
	return names, err
}

// eachLayer calls do for the layers of these names that are the clone's and lead to its block
// device, at least in part.
func eachLayer(def *definition.Definition, names []string, do func(*sys.DM, *dm.Layer) error) error {
	if len(names) == 0 {
		return nil
	}
	mapper, err := dm.Open()
	if err != nil {
		return err
	}
	defer mapper.Close()
	for _, name := range names {
		l, errFind := dm.Find(mapper, name)
		switch {
		case errFind != nil:
		case l == nil:
			errFind = dm.UnlinkGone(name)
		case l.IsOf(def.Cookie) && !handedOver(def, l):
			errFind = do(mapper, l)
		}
		err = errors.Join(err, errFind)
	}
	return err
}

// handedOver says that a layer leads to the destination.
func handedOver(def *definition.Definition, l *dm.Layer) bool {
	st, err := sys.StatPath(def.Device)
	return l.Live && !l.IsMixed() && (err != nil || !l.LeadsTo(st.Rdev))
}
