package leftover

import (
	"errors"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/metadev"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// switched says whether a finish has come so far that the layer of the clone leads to the
// destination.
func switched(d *definition.Definition) (bool, error) {
	dest, errStat := sys.StatPath(d.Dest)
	if d.DM == "" || errStat != nil || !dest.IsBlock() {
		return false, nil
	}
	mapper, err := dm.Open()
	if err != nil {
		return false, err
	}
	defer mapper.Close()
	l, err := dm.Find(mapper, d.DM)
	if err != nil || l == nil || !l.IsOf(d.Cookie) || !l.LeadsTo(dest.Rdev) {
		return false, err
	}
	return true, nil
}

// Finished says whether a clone whose daemon is dead is finished: its definition says so, or its
// layer leads to the destination.
func Finished(d *definition.Definition) (bool, error) {
	if d.Finished {
		return true, nil
	}
	return switched(d)
}

// FinishDead does what is left of a finish whose daemon was killed, 6 to 11 of
// internal/engine/finish.go; false: it had not come so far that there is nothing to serve any more.
func (l Dirs) FinishDead(def *definition.Definition, keepMetadata bool) (done bool, err error) {
	yes, err := Finished(def)
	if !yes || err != nil {
		return false, err
	}
	if _, err := l.Defined.Retire(def.Name); err != nil { // whoever began the finish may have been an older program
		return true, err
	}
	lock, err := l.Dir.Acquire(def.Name)
	if err != nil {
		return true, err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := RemoveDevice(def, Force); err != nil { // of the block device itself nobody is to be a user
		return true, err
	}
	err = removeMaps(def.Cookie)
	if !keepMetadata {
		err = errors.Join(err, metadev.EraseDead(def.Metadata, def.Cookie))
	}
	if err != nil {
		return true, err
	}
	return true, forget(l.Dir, def)
}

// removeMaps removes the live map of the clone with that cookie.
func removeMaps(cookie uint64) error {
	uuids, err := livemap.List(livemap.Dir)
	for _, uuid := range uuids {
		if metadata.UUID(uuid).Cookie() == cookie {
			err = errors.Join(err, livemap.RemoveFiles(livemap.Dir, uuid))
		}
	}
	return err
}
