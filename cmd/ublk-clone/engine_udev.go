package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// What udev's rules (packaging/udev) are told of a clone: a file for its block device and one for its destination, each
// called after the kernel's name for it, with a line that a rule imports.
//
// The block device gets its stable name from it, /dev/ublk-clone/NAME, and is not searched for file systems and the like
// before it is hydrated: that would read through to a source that may be slow, or away. The destination carries the same
// file systems as the clone, and loses the names that come from them, so that nobody mounts it in the clone's place
// while no daemon holds it (I7).

// udevFile is of the kernel's name of a device.
func (d runDir) udevFile(kernel string) string { return filepath.Join(string(d), kernel+".udev") }

// kernelName is the kernel's name of the device that path leads to.
func kernelName(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	return filepath.Base(path)
}

// tellUdev writes the file of a device; with announce the kernel is to tell of the device again.
func (d runDir) tellUdev(path, lines string, announce bool) error {
	kernel := kernelName(path)
	err := os.WriteFile(d.udevFile(kernel), []byte(lines+"\n"), 0o600)
	if err == nil && announce {
		err = os.WriteFile("/sys/class/block/"+kernel+"/uevent", []byte("change"), 0)
	}
	return err
}

// forgetUdev removes the file of a device.
func (d runDir) forgetUdev(path string) error {
	if path == "" {
		return nil
	}
	return removeIfThere(d.udevFile(kernelName(path)))
}

// nameForUdev comes before the device is there for others, so that the first event finds it. Without udev there is only
// the kernel's name. The destination is looked at again when a daemon closes it.
func (e *cloneEngine) nameForUdev(context.Context) error {
	def := &e.start.Definition
	err := e.tellName(false)
	if e.dest.IsBlock() {
		err = errors.Join(err, theRunDir().tellUdev(def.Dest, destLines(def), false))
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

// tellName tells of the block device; announce is for when that is known already.
func (e *cloneEngine) tellName(announce bool) error {
	lines := "UBLK_CLONE_NAME=" + e.start.Definition.Name
	if e.core.Complete() {
		lines += "\nUBLK_CLONE_COMPLETE=1"
	}
	return theRunDir().tellUdev(e.device(), lines, announce)
}

// whenHydrated is called once, when all is durably hydrated.
func (e *cloneEngine) whenHydrated() {
	e.closeUse()
	if err := e.tellName(true); err != nil {
		e.log.Warn().Err(err).Msg("tell udev that the clone is complete")
	}
}

// unnameForUdev is the end of a clone. One whose device is left to the next daemon stays named.
func (e *cloneEngine) unnameForUdev() error {
	if e.keep {
		return nil
	}
	dir := theRunDir()
	return errors.Join(dir.forgetUdev(e.device()), dir.forgetUdev(e.start.Definition.Dest))
}
