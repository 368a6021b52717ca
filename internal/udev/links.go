package udev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Links are the names by which users know clones, whatever their devices are called: a directory, which
// is definition.NameDir but in tests, with a link for each clone. It leads to the layer, where there
// is one, and to the block device otherwise. Our rules have udev make it. Where udev does not run,
// or has no such rules, the daemon makes it, and whoever removes what a clone has left removes it.
//
// A link that we make leads to the block device by the kernel's name, and to the layer by its name
// in /dev/mapper: the number of a layer that somebody removes may be another device's soon. What is
// there and cannot be ours is left alone.
type Links struct {
	Dir   string
	rules []string                              // where udev looks for rules: of those of the same name the first counts
	udev  string                                // its control socket
	leads func(path string, number uint64) bool // to the block device of that number
}

// DevLinks are those of this machine.
func DevLinks() Links {
	return Links{
		Dir: definition.NameDir, udev: "/run/udev/control", leads: leads,
		rules: []string{"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"},
	}
}

func leads(path string, number uint64) bool {
	st, err := sys.StatPath(path)
	return err == nil && st.IsBlock() && st.Rdev == number
}

// nameRules are the rules that make the links.
const nameRules = "59-ublk-clone.rules"

// Limits of the wait for udev: until it is asked to look at the devices again, and from there on.
const (
	udevFirst = time.Second
	udevAgain = 2 * time.Second
	udevPause = 10 * time.Millisecond
)

func (l Links) path(name string) string { return filepath.Join(l.Dir, name) }

// begunPath is a link that is about to replace another. No clone has such a name.
func (l Links) begunPath(name string) string { return filepath.Join(l.Dir, "."+name+".new") }

// Give sees to it that the clone of that name has its link to the device at path top, whose number
// is given. The devices are those that udev may have to look at again. It gives the path of the
// link.
func (l Links) Give(name, top string, number uint64, devices ...string) (string, error) {
	path := l.path(name)
	await := func(limit time.Duration) bool {
		for deadline := time.Now().Add(limit); !l.leads(path, number); time.Sleep(udevPause) {
			if time.Now().After(deadline) {
				return false
			}
		}
		return true
	}
	if l.byUdev() && !await(udevFirst) { // as after an update of the rules, or behind many others
		for _, d := range devices {
			_ = Announce(d)
		}
		await(udevAgain)
	}
	if l.leads(path, number) {
		return path, nil
	}
	if err := l.link(name, top); err != nil {
		return "", fmt.Errorf("make the link %s: %w", path, err)
	}
	return path, nil
}

// byUdev says whether udev runs and has our rules, which are not masked.
func (l Links) byUdev() bool {
	if _, err := os.Stat(l.udev); err != nil {
		return false
	}
	for _, dir := range l.rules {
		if info, err := os.Stat(filepath.Join(dir, nameRules)); err == nil {
			return info.Mode().IsRegular() && info.Size() > 0
		}
	}
	return false
}

// link makes the link, or replaces one of ours: at no moment there is none, or half of one.
func (l Links) link(name, top string) error {
	if err := file.MakeDir(l.Dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(l.Dir, 0o755); err != nil { // whatever the umask is: names are no secret
		return err
	}
	path, begun := l.path(name), l.begunPath(name)
	if to, err := l.leadsTo(name); err == nil && to == "" {
		return errors.New("something else has this name")
	}
	to, err := filepath.Rel(l.Dir, top)
	if err == nil {
		err = file.Remove(begun)
	}
	if err == nil {
		err = os.Symlink(to, begun)
	}
	if err == nil {
		err = file.Rename(begun, path)
	}
	if err != nil {
		return errors.Join(err, file.Remove(begun))
	}
	return nil
}

// leadsTo is where a link leads that may be ours, "" for what cannot be. fs.ErrNotExist: there is
// nothing of that name.
func (l Links) leadsTo(name string) (string, error) {
	to, err := os.Readlink(l.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err != nil { // it is no link
		return "", nil
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(l.Dir, to)
	}
	dir, base := filepath.Split(to)
	dev := filepath.Dir(l.Dir)
	ours := filepath.Clean(dir) == dev && (strings.HasPrefix(base, "ublkb") || strings.HasPrefix(base, "dm-")) ||
		filepath.Clean(dir) == filepath.Join(dev, filepath.Base(definition.MapperDir))
	if !ours {
		return "", nil
	}
	return to, nil
}

// Take removes the link of a clone that has ended, and whose block device is gone. The layer may
// live on, with the destination under it, and then keeps the link.
func (l Links) Take(def *definition.Definition) error {
	err := remove(l.begunPath(def.Name))
	to, errLink := l.leadsTo(def.Name)
	if errLink == nil && to != "" && (gone(to) || def.Device != "" && filepath.Base(to) == filepath.Base(def.Device)) {
		err = errors.Join(err, remove(l.path(def.Name)))
	}
	return err
}

// remove is file.Remove. Where something else stands in the place of the directory there is nothing
// of ours.
func remove(path string) error {
	err := file.Remove(path)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}

// gone says that a link to path leads nowhere.
func gone(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// Collect removes links that lead nowhere, as their devices are gone, and those of clones that are
// gone to block devices that are others' by now.
func (l Links) Collect(d control.Dir) error {
	entries, err := os.ReadDir(l.Dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || err == nil && len(entries) == 0 {
		return nil
	}
	defined, errNames := d.Names()
	if err := errors.Join(err, errNames); err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if begun, ok := strings.CutPrefix(strings.TrimSuffix(name, ".new"), "."); ok {
			if definition.IsName(begun) && !d.Alive(begun) {
				err = errors.Join(err, file.Remove(l.begunPath(begun)))
			}
			continue
		}
		to, errLink := l.leadsTo(name)
		stray := !slices.Contains(defined, name) && definition.IsName(name) && wholeClone(to)
		if errLink == nil && to != "" && (gone(to) || stray) {
			err = errors.Join(err, file.Remove(l.path(name)))
		}
	}
	return err
}

// wholeClone says whether it is the path of a block device of ublk's, and not of a partition, whose
// link is udev's.
func wholeClone(path string) bool {
	number, ok := strings.CutPrefix(filepath.Base(path), "ublkb")
	return ok && strings.Trim(number, "0123456789") == ""
}

// Now is the link of a clone whose daemon does not answer, "" if there is none.
func (l Links) Now(name string) string {
	if to, err := l.leadsTo(name); err != nil || to == "" || gone(to) {
		return ""
	}
	return l.path(name)
}
