package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/file"
)

// What udev's rules (packaging/udev) are told of a clone: a file for its block device and one for its destination, each
// called after the kernel's name for it, and one for its layer, with lines that a rule imports.
//
// The block device gets its stable name from it, /dev/ublk-clone/NAME, and neither it nor the layer is searched for file
// systems and the like before all is hydrated: that would read through to a source that may be slow, or away. The
// destination carries the same file systems as the clone, and loses the names that come from them, so that nobody mounts
// it in the clone's place while no daemon holds it (I7).

// udevFile is of the kernel's name of a device.
func (d runDir) udevFile(kernel string) string { return filepath.Join(string(d), kernel+".udev") }

// kernelName is the kernel's name of the device that path leads to.
func kernelName(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	return filepath.Base(path)
}

// destUdevFile is not the file of a block device of ours, which may be the destination of another clone.
func (d runDir) destUdevFile(dest string) string {
	return filepath.Join(string(d), "dest-"+kernelName(dest)+".udev")
}

// layerUdevFile is of the name of a layer, which is known before the kernel's.
func (d runDir) layerUdevFile(name string) string {
	return filepath.Join(string(d), "layer-"+name+".udev")
}

// tellUdev replaces the file as a whole: udev may read it at any moment.
func tellUdev(path, lines string) error { return file.Replace(path, []byte(lines+"\n"), 0o600) }

// announce has the kernel tell of a device and of its partitions again.
func announce(path string) error {
	disk := "/sys/class/block/" + kernelName(path)
	err := os.WriteFile(disk+"/uevent", []byte("change"), 0)
	parts, _ := filepath.Glob(disk + "/*/partition") // the pattern is right
	for _, part := range parts {
		err = errors.Join(err, os.WriteFile(filepath.Join(filepath.Dir(part), "uevent"), []byte("change"), 0))
	}
	return err
}

// forgetUdev removes the files of a clone. It goes by what they say: a daemon that was killed may not have written down
// which device it had, and the destination may have lost the name that the kernel had for it, or never had one and be
// called like the device of another clone.
func (d runDir) forgetUdev(def *definition) (err error) {
	files, _ := filepath.Glob(filepath.Join(string(d), "*.udev*")) // the pattern is right; and what was being written
	for _, path := range files {
		said, errRead := os.ReadFile(path)
		if errors.Is(errRead, fs.ErrNotExist) { // another clone's, which has ended meanwhile
			continue
		}
		first, _, _ := strings.Cut(string(said), "\n")
		if errRead == nil && (first == nameLine(def) || string(said) == destLines(def)+"\n") {
			errRead = file.Remove(path)
		}
		err = errors.Join(err, errRead)
	}
	return err
}

// nameLine is the first line of what udev is told of the block device, or of the layer over it.
func nameLine(def *definition) string { return "UBLK_CLONE_NAME=" + def.Name }

// nameForUdev comes before the device is there for others, so that the first event finds it. Without udev there is only
// the kernel's name. The destination is looked at again when a daemon closes it.
func (e *cloneEngine) nameForUdev(context.Context) error {
	def := &e.start.Definition
	err := e.tellName()
	if e.dest.IsBlock() {
		err = errors.Join(err, tellUdev(theRunDir().destUdevFile(def.Dest), destLines(def)))
	}
	if err != nil {
		e.warn("udev was not told of the clone, which may have no name in /dev/ublk-clone: %v", err)
	}
	return nil
}

// destLines are what udev is told of the destination: the name that the definition has for it stays.
func destLines(def *definition) string {
	lines := "UBLK_CLONE_DEST=" + def.Name
	if link, ok := strings.CutPrefix(def.Dest, "/dev/"); ok && strings.Contains(link, "/") {
		lines += "\nUBLK_CLONE_LINK=" + link
	}
	return lines
}

// tellName tells of the block device and of the layer over it. What a layer hides is never searched: the layer is.
func (e *cloneEngine) tellName() error {
	dir, def := theRunDir(), &e.start.Definition
	device, name := dir.udevFile(kernelName(e.device())), nameLine(def)
	top := name
	if e.core.Complete() {
		top += "\nUBLK_CLONE_COMPLETE=1"
	}
	if def.DM == "" {
		return tellUdev(device, top)
	}
	return errors.Join(tellUdev(device, name), tellUdev(dir.layerUdevFile(def.DM), top))
}

// whenHydrated is called once, when all is durably hydrated.
func (e *cloneEngine) whenHydrated() {
	e.closeUse()
	err := e.tellName()
	if err == nil {
		err = announce(cmp.Or(e.start.Definition.layerPath(), e.device()))
	}
	if err != nil {
		e.log.Warn().Err(err).Msg("tell udev that the clone is complete")
	}
}

// unnameForUdev is the end of a clone. One whose device is left to the next daemon stays named.
func (e *cloneEngine) unnameForUdev() error {
	if e.keep {
		return nil
	}
	return theRunDir().forgetUdev(&e.start.Definition)
}
