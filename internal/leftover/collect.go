package leftover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/metadev"
	"github.com/ublk-clone/ublk-clone/internal/udev"
	"github.com/ublk-clone/ublk-clone/metadata"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// What daemons and commands that were killed have left, and nobody needs any more. It is removed by
// the next `add`, by `del` and `prune`, and before the daemon of a unit starts:
//
//	a device that was never started, or is stopped and not deleted: nobody can have it open
//	a live map that no clone needs, and bits without a map
//	a name in /dev/ublk-clone that leads nowhere, or to another's device
//
// Of a clone whose daemon is dead `del` and `prune` also remove the block device, the layer with
// its link, files that it had begun, and all that lies beside its definition, which goes last. An
// `add` of the same name does so too, or writes it anew. Only `prune` removes
//
//	files in /run/ublk-clone, and a private device over a destination, of a name without clone, which may be a name that
//	is just being added
//
// What might still be needed stays: a device with users, which waits for `recover`, and a live map
// that its metadata has need of, as the same `add` goes on from there.

// Dirs are what dead daemons have left, in the directories of a machine.
type Dirs struct {
	Dir     control.Dir
	Defined etc.Dir
}

// Collect removes devices, names and live maps.
func (l Dirs) Collect() error {
	return errors.Join(collectDevices(l.Dir), collectNames(l.Dir), collectMaps(l.Dir, livemap.Dir, func(livemap.Unused) bool { return false }))
}

// collectNames removes names in /dev/ublk-clone.
func collectNames(d control.Dir) error {
	if d != control.DefaultDir() {
		return nil
	}
	return udev.DevLinks().Collect(d)
}

// collectDevices removes the devices of dead daemons of ours that have no block device.
func collectDevices(d control.Dir) error {
	ids, err := ublk.List()
	if err != nil || len(ids) == 0 {
		return err
	}
	return ourDevices(d, func(control *ublk.Control, info ublk.Info) error {
		if !unstarted(info) {
			return nil
		}
		return (&Device{control, info}).remove()
	})
}

// unstarted says that a device has no block device, and no daemon that is about to start it.
func unstarted(info ublk.Info) bool { return info.State == ublk.StateDead && !info.ServerLives() }

// eachDevice calls visit for each device that the driver has.
func eachDevice(visit func(*ublk.Control, ublk.Info) error) (err error) {
	driver, err := ublk.OpenControl()
	if errors.Is(err, ublk.ErrNoDriver) {
		return nil
	}
	if err != nil {
		return explain.Driver("open the ublk driver", err)
	}
	defer func() { err = errors.Join(err, driver.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), control.DeadLimit)
	defer cancel()
	infos, err := driver.ListDevices(ctx)
	err = explain.Driver("list the ublk devices", err)
	for _, info := range infos {
		err = errors.Join(err, visit(driver, info))
	}
	return err
}

// ourDevices calls visit for each device that bears a cookie of ours. A daemon makes its cookie
// known before it adds a device, so the cookies are read after the devices.
func ourDevices(d control.Dir, visit func(*ublk.Control, ublk.Info) error) error {
	var cookies []uint64
	var once bool
	return eachDevice(func(control *ublk.Control, info ublk.Info) (err error) {
		if !once {
			cookies, err = ourCookies(d)
			once = true
		}
		if slices.Contains(cookies, info.Private) {
			err = errors.Join(err, visit(control, info))
		}
		return err
	})
}

// ourCookies are those by which devices are known as ours: of definitions, and of live maps.
func ourCookies(d control.Dir) (cookies []uint64, err error) {
	cookies, err = definedCookies(d)
	uuids, errMaps := livemap.List(livemap.Dir)
	for _, uuid := range uuids {
		cookies = append(cookies, metadata.UUID(uuid).Cookie())
	}
	return cookies, errors.Join(err, errMaps)
}

// definedCookies are those of definitions.
func definedCookies(d control.Dir) (cookies []uint64, err error) {
	names, err := d.Names()
	for _, name := range names {
		def, errLoad := d.Load(name)
		switch {
		case errLoad != nil && exit.Code(errLoad) != exit.NoClone: // else it has just ended
			err = errors.Join(err, errLoad)
		case errLoad == nil && def.Cookie != 0:
			cookies = append(cookies, def.Cookie)
		}
	}
	return cookies, err
}

// collectMaps removes from a directory the live maps that nobody has in use, of which no clone and
// no device is left, and which their metadata does not need, and those that also says of. What lay
// beside a map goes too, whether there is any map or not.
func collectMaps(d control.Dir, maps string, also func(livemap.Unused) bool) error {
	if paths, err := filepath.Glob(filepath.Join(maps, "*")); len(paths) == 0 {
		return err
	}
	defined, err := definedCookies(d)
	if err != nil {
		return err
	}
	_, boot, err := host.Identities()
	if err != nil {
		return err
	}
	var served []uint64
	err = eachDevice(func(_ *ublk.Control, info ublk.Info) error { served = append(served, info.Private); return nil })
	if err != nil {
		return err
	}
	return livemap.Collect(maps, func(m livemap.Unused) bool {
		cookie := metadata.UUID(m.UUID).Cookie()
		if slices.Contains(defined, cookie) || slices.Contains(served, cookie) {
			return false
		}
		return also(m) || needless(m, boot)
	})
}

// needless says that it is certain that the metadata does not ask for this map (takeLive), now or
// when it comes back. The map is in nobody's use.
func needless(m livemap.Unused, boot metadata.UUID) bool {
	switch {
	case m.Map == nil: // of another version, which may know what to do with it
		return false
	case m.Identity().Boot != boot, m.Life() == livemap.LifeMade, m.Life() == livemap.LifeEnded:
		return true
	}
	sb, err := metadev.Peek(m.Metadata())
	return err == nil && sb.UUID == m.UUID && superseded(&sb, m.Identity().Session)
}

// superseded says that metadata is past the end of a session.
func superseded(sb *metadata.Superblock, session uint64) bool {
	return sb.Session > session || sb.Session == session && sb.Clean
}

// AbandonedMaps are the live maps of which there is no clone and no device.
func AbandonedMaps(d control.Dir) (uuids [][16]byte, err error) {
	all, err := livemap.List(livemap.Dir)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	cookies, err := definedCookies(d)
	err = errors.Join(err, eachDevice(func(_ *ublk.Control, info ublk.Info) error { cookies = append(cookies, info.Private); return nil }))
	return slices.DeleteFunc(all, func(uuid [16]byte) bool { return slices.Contains(cookies, metadata.UUID(uuid).Cookie()) }), err
}

// GiveUpMaps removes such maps for `prune --force`, also those that metadata has need of, and says
// which.
func (l Dirs) GiveUpMaps(abandoned [][16]byte) (lost []string, err error) {
	err = collectMaps(l.Dir, livemap.Dir, func(m livemap.Unused) bool {
		if !slices.Contains(abandoned, m.UUID) {
			return false
		}
		where := "of a version that this program does not know"
		if m.Map != nil {
			where = m.Metadata()
		}
		lost = append(lost, fmt.Sprintf("%s, of the metadata %s (%s)", m.Path, metadata.UUID(m.UUID), where))
		return true
	})
	return lost, err
}

// StrayUnders removes the private devices over destinations (dm.Under) of names that have no clone.
func StrayUnders(d control.Dir) (err error) {
	for _, name := range LeftUnders(d, "/sys") {
		lock, errLock := d.Acquire(name)
		if errLock != nil { // it is just being added
			continue
		}
		if !defined(d, name) {
			err = errors.Join(err, dm.NewUnder(&definition.Definition{Name: name, DM: name}).Remove())
		}
		err = errors.Join(err, lock.Release())
	}
	return err
}

// LeftUnders are the names without a clone of which there are such devices, by the sysfs that is
// mounted at directory.
func LeftUnders(d control.Dir, dir string) []string {
	return slices.DeleteFunc(dm.Unders(dir), func(name string) bool { return defined(d, name) })
}

// StrayFiles removes what is in the directory of names that have no clone, which is what a daemon
// leaves that was killed before it had written its definition, or behind its removal.
func StrayFiles(d control.Dir) (err error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	names := udev.Names(d)
	for _, e := range entries {
		if name, ok := strayName(e.Name()); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		err = errors.Join(err, forgetStray(d, name))
	}
	return err
}

// forgetStray removes the files of a name, unless there is a clone or just about to be one.
func forgetStray(d control.Dir, name string) (err error) {
	if !definition.IsName(name) || defined(d, name) {
		return nil
	}
	lock, errLock := d.Acquire(name)
	if errLock != nil { // it is just being added
		return nil
	}
	if !defined(d, name) {
		err = forget(d, &definition.Definition{Name: name})
	}
	return errors.Join(err, lock.Release())
}

// strayName is the name of the clone that a file in the directory is of.
func strayName(base string) (name string, ok bool) {
	for _, suffix := range []string{".lock", ".log", ".sock", ".json.new", ".begun", ".try", ".try.new"} {
		if name, ok := strings.CutSuffix(base, suffix); ok {
			return name, true
		}
	}
	return "", false
}

// defined says whether there is a definition of that name, readable or not.
func defined(d control.Dir, name string) bool {
	_, err := os.Lstat(d.DefinitionPath(name))
	return err == nil
}
