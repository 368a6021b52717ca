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

// liftDead removes the layers of a clone whose daemon is dead: what lies over its block device, and
// one that got no table. With force from under their users, who get errors when the block device is
// gone.
func liftDead(def *definition.Definition, force bool) error {
	names, err := layersOf(def)
	if err != nil || len(names) == 0 {
		return err
	}
	dm, err := dm.Open()
	if err != nil {
		return err
	}
	defer dm.Close()
	for _, name := range names {
		err = errors.Join(err, liftNamed(dm, def, name, force))
	}
	return err
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

func liftNamed(mapper *sys.DM, def *definition.Definition, name string, force bool) error {
	l, err := dm.Find(mapper, name)
	if err != nil || l == nil || !l.IsOf(def.Mark) {
		return err
	}
	if st, err := sys.StatPath(def.Device); l.Live && (err != nil || !l.LeadsTo(st.Rdev)) {
		return nil // it leads to the destination
	}
	if force && l.Suspended { // else its users would wait for ever
		err = errors.Join(mapper.Clear(name), mapper.Resume(name, false))
	}
	return errors.Join(err, dm.Remove(mapper, l, force, dm.RemoveLimit))
}
