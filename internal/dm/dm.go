package dm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// pause is between two tries to remove a device that somebody has open.
const pause = 50 * time.Millisecond

// Prefix is what the UUID of a layer begins with; the clone's UUID follows.
const Prefix = "UBLK-CLONE-"

// Layer is how a layer was found.
type Layer struct {
	sys.DMDevice
	Clone metadata.UUID // of the clone whose layer it is; zero: of none
	table []sys.DMTarget
}

// Path is the layer's node, which is there without udev too.
func (l *Layer) Path() string { return fmt.Sprintf("/dev/dm-%d", sys.Minor(l.Dev)) }

// IsOf says whether the layer is that of a clone.
func (l *Layer) IsOf(cookie uint64) bool {
	return l.Clone != metadata.UUID{} && l.Clone.Cookie() == cookie
}

// Open opens device-mapper.
func Open() (*sys.DM, error) {
	dm, err := sys.OpenDM()
	if err == nil {
		return dm, nil
	}
	e := &exit.Error{Code: exit.Feature, Doing: "open device-mapper", Cause: err, Next: "`modprobe dm_mod` loads it."}
	if errors.Is(err, fs.ErrPermission) {
		e.Code, e.Next = exit.Denied, "Run it as root."
	}
	return nil, e
}

// IsBusy says that somebody has a device open exclusively.
func IsBusy(err error) bool { return errors.Is(err, syscall.EBUSY) }

// IsLate says that requests at work did not end within the limit of a suspension.
func IsLate(err error) bool { return errors.Is(err, syscall.ETIMEDOUT) }

// Error is of something that was tried with a layer.
func Error(doing, name string, err error) error {
	if err == nil {
		return nil
	}
	return &exit.Error{Code: exit.Other, Doing: doing + " the device-mapper device", Object: name, Cause: err}
}

// Find looks at a device-mapper device; nil: there is none of that name.
func Find(dm *sys.DM, name string) (*Layer, error) {
	found, err := dm.Status(name)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return nil, nil
	case err != nil:
		return nil, Error("look at", name, err)
	}
	l := &Layer{DMDevice: found, Clone: UUIDOf(found.UUID)}
	if !found.Live {
		return l, nil
	}
	if l.table, err = dm.Targets(found.Dev); err != nil {
		return nil, Error("look at", name, err)
	}
	return l, nil
}

// Named is Find, of which nothing more is needed.
func Named(name string) (l *Layer, err error) {
	err = with(func(dm *sys.DM) error { l, err = Find(dm, name); return err })
	return l, err
}

// UUIDOf is the clone's UUID in that of a layer, zero if it is none.
func UUIDOf(text string) (u metadata.UUID) {
	digits, ours := strings.CutPrefix(text, Prefix)
	if b, err := hex.DecodeString(strings.ReplaceAll(digits, "-", "")); ours && err == nil && len(b) == len(u) {
		copy(u[:], b)
	}
	return u
}

// Taken is the error of a name that is taken.
func Taken(name string, l *Layer) error {
	cause := errors.New("it exists already, and is not this clone's")
	if l.Clone != (metadata.UUID{}) {
		cause = fmt.Errorf("it exists already, of clone %s, which is finished or was given up", l.Clone)
	}
	return &exit.Error{Code: exit.Exists, Doing: "lay the device-mapper device", Object: name, Cause: cause,
		Next: "Nothing was changed. Use another name for --dm, or remove it with `dmsetup remove " + name + "` if it is not needed."}
}

// udevLimit is how long udev may take to make a link.
const udevLimit = 2 * time.Second

// linkTo is what a link in /dev/mapper says.
func linkTo(l *Layer) string { return "../" + filepath.Base(l.Path()) }

// RemoveLimit is how long whoever looks at a new device, as udev does, may keep it open.
const RemoveLimit = 2 * time.Second

// Remove removes a layer that nobody has open; exit code 5 if somebody has it longer than limit.
// Deferred, it goes when all have closed it.
func Remove(dm *sys.DM, l *Layer, deferred bool, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(pause) {
		err := dm.Remove(l.Name, deferred)
		if IsBusy(err) && time.Now().Before(deadline) {
			continue
		}
		switch {
		case IsBusy(err):
			return &exit.Error{Code: exit.Busy, Doing: "remove the device-mapper device", Object: l.Name, Cause: errors.New("somebody has it open"),
				Next: "End whoever uses it, then try again."}
		case err != nil && !errors.Is(err, syscall.ENXIO):
			return Error("remove", l.Name, err)
		}
		return unlink(l, deferred)
	}
}

// unlink removes a link that we have made, and udev has not. If the device was not to be there any
// more and is, another one has its number.
func unlink(l *Layer, mayBeThere bool) error {
	link := filepath.Join(definition.MapperDir, l.Name)
	to, err := os.Readlink(link)
	if err != nil || to != linkTo(l) {
		return nil
	}
	if _, err := os.Stat(link); err == nil && !mayBeThere {
		return nil
	}
	return file.Remove(link)
}

// UnlinkGone removes the link of a layer that is not there any more. Whoever removed that and was
// killed has left it; without udev nobody else looks.
func UnlinkGone(name string) error { return unlinkGone(definition.MapperDir, "/sys/block", name) }

func unlinkGone(dir, devices, name string) error {
	link := filepath.Join(dir, name)
	to, err := os.Readlink(link)
	node, ok := strings.CutPrefix(to, "../")
	if err != nil || !ok || !strings.HasPrefix(node, "dm-") {
		return nil
	}
	called, err := os.ReadFile(filepath.Join(devices, node, "dm", "name")) // its number may be another's by now
	if err == nil && strings.TrimSpace(string(called)) != name || errors.Is(err, fs.ErrNotExist) {
		return file.Remove(link)
	}
	return nil
}
