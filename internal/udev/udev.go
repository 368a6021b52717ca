package udev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/file"
)

// udevFile is of the kernel's name of a device.
func udevFile(d control.Dir, kernel string) string { return filepath.Join(string(d), kernel+".udev") }

// kernelName is the kernel's name of the device that path leads to.
func kernelName(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	return filepath.Base(path)
}

// destUdevFile is not the file of a block device of ours, which may be the destination of another
// clone.
func destUdevFile(d control.Dir, dest string) string {
	return filepath.Join(string(d), "dest-"+kernelName(dest)+".udev")
}

// layerUdevFile is of the name of a layer, which is known before the kernel's.
func layerUdevFile(d control.Dir, name string) string {
	return filepath.Join(string(d), "layer-"+name+".udev")
}

// Name tells of a clone's devices: of its block device, its layer, and its destination, if that is
// one of the machine's. The destination is looked at again when a daemon closes it. What was told of
// other devices is of a daemon of that name that is dead, and is taken back, after the new files are
// there: at no moment is udev to take the destination for a device of its own.
func Name(d control.Dir, def *definition.Definition, device string, destIsBlock, complete bool) error {
	err := NameDevice(d, def, device, complete)
	now := []string{udevFile(d, kernelName(device)), layerUdevFile(d, def.DM)}
	if destIsBlock {
		path := destUdevFile(d, def.Dest)
		err = errors.Join(err, tell(d, def, path, destLines(def)))
		now = append(now, path)
	}
	return errors.Join(err, forgetBut(d, def, now))
}

// NameDevice tells of the block device and of the layer over it. What a layer hides is never
// searched: the layer is.
func NameDevice(d control.Dir, def *definition.Definition, device string, complete bool) error {
	path, name := udevFile(d, kernelName(device)), nameLine(def)
	shown := name
	if complete {
		shown += "\nUBLK_CLONE_COMPLETE=1"
	}
	if def.DM == "" {
		return tell(d, def, path, shown)
	}
	return errors.Join(tell(d, def, path, name+"\nUBLK_CLONE_LAYER=1"), tell(d, def, layerUdevFile(d, def.DM), shown))
}

// tell replaces the file as a whole: udev may read it at any moment. Until then it is called after
// the clone: of one that a killed daemon has begun, and that says nothing yet, the name has to say
// whose it is.
func tell(d control.Dir, def *definition.Definition, path, lines string) error {
	return file.ReplaceBy(d.BegunPath(def.Name), path, []byte(lines+"\n"), 0o600)
}

// Announce has the kernel tell of a device and of its partitions again. Where its directory in sysfs is
// read-only, as for the daemon of a unit, udev is made to do so: it looks again at a device that is
// closed after it was open for writing.
func Announce(path string) error {
	err := announce(path)
	if !errors.Is(err, syscall.EROFS) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func announce(path string) error {
	disk := "/sys/class/block/" + kernelName(path)
	err := os.WriteFile(disk+"/uevent", []byte("change"), 0)
	parts, _ := filepath.Glob(disk + "/*/partition") // the pattern is right
	for _, part := range parts {
		err = errors.Join(err, os.WriteFile(filepath.Join(filepath.Dir(part), "uevent"), []byte("change"), 0))
	}
	return err
}

// Forget removes the files of a clone, also those of a daemon of that name that is dead and had
// other devices. It goes by the name of the clone that they say, which one clone has at a time: a
// daemon that was killed may not have written down which device it had, and the destination may have
// lost the name that the kernel had for it, or never had one and be called like the device of
// another clone.
func Forget(d control.Dir, def *definition.Definition) error { return forgetBut(d, def, nil) }

// forgetBut removes the files of a clone other than those to keep.
func forgetBut(d control.Dir, def *definition.Definition, keep []string) (err error) {
	err = file.Remove(d.BegunPath(def.Name))
	files, _ := filepath.Glob(filepath.Join(string(d), "*.udev")) // the pattern is right
	for _, path := range files {
		if slices.Contains(keep, path) {
			continue
		}
		said, errRead := os.ReadFile(path)
		if errors.Is(errRead, fs.ErrNotExist) { // another clone's, which has ended meanwhile
			continue
		}
		first, _, _ := strings.Cut(string(said), "\n")
		if errRead == nil && (first == nameLine(def) || first == destLine(def)) {
			errRead = file.Remove(path)
		}
		err = errors.Join(err, errRead)
	}
	return err
}

// Names are those of the clones that udev is told of.
func Names(d control.Dir) (names []string) {
	files, _ := filepath.Glob(filepath.Join(string(d), "*.udev")) // the pattern is right
	for _, path := range files {
		said, err := os.ReadFile(path)
		first, _, _ := strings.Cut(string(said), "\n")
		if what, name, ok := strings.Cut(first, "="); err == nil && ok && (what == nameKey || what == destKey) {
			names = append(names, name)
		}
	}
	return names
}

// Whose device it is: the first line says one of these.
const (
	nameKey = "UBLK_CLONE_NAME"
	destKey = "UBLK_CLONE_DEST"
)

// nameLine is the first line of what udev is told of the block device, or of the layer over it.
func nameLine(def *definition.Definition) string { return nameKey + "=" + def.Name }

// destLine is the first line of what udev is told of the destination.
func destLine(def *definition.Definition) string { return destKey + "=" + def.Name }

// destLines are what udev is told of the destination: the name that the definition has for it
// stays.
func destLines(def *definition.Definition) string {
	lines := destLine(def)
	if link, ok := strings.CutPrefix(def.Dest, "/dev/"); ok && strings.Contains(link, "/") {
		lines += "\nUBLK_CLONE_LINK=" + link
	}
	return lines
}
