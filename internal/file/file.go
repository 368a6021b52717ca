// Package file is the one way in which ublk-clone writes, renames and removes files that something
// else depends on. When a function here returns without an error, its result survives a power cut;
// when the machine dies within it, the file is as it was before or as it was meant to be, never in
// between (I16).
//
//	Replace  1  write PATH.new
//	         2  flush PATH.new
//	         3  rename it to PATH
//	         4  flush the directory
//
//	Rename   1  rename
//	         2  flush the directory, or both directories
//
//	Remove   1  remove
//	         2  flush the directory
//
//	Discard  removes PATH.new, then PATH.
//
//	MakeDir makes each missing directory and flushes the one above it.
//
// A crash behind Replace 1 or 2 leaves PATH.new, which the next Replace overwrites. Whoever ends
// the life of a file that is written by Replace discards it, as there may be no next one. Step 2
// before step 3 keeps a file system that delays allocation from renaming an empty file over a good
// one. Without the last step of each list the new name, or its absence, may be gone after a power
// cut, although whatever was done next has survived.
//
// On tmpfs the flushes cost nothing, so there is no second way for files in /run.
package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// nextSuffix is of the name under which a file is written before it replaces another.
const nextSuffix = ".new"

// Replace writes b to path, whole or not at all.
func Replace(path string, b []byte, mode fs.FileMode) error {
	return ReplaceBy(path+nextSuffix, path, b, mode)
}

// ReplaceBy is Replace with next, in the same directory, in place of PATH.new: for a file whose
// name does not say who cleans up after a crash.
func ReplaceBy(next, path string, b []byte, mode fs.FileMode) error {
	err := writeFlushed(next, b, mode) // 1, 2
	if err == nil {
		err = os.Rename(next, path) // 3
		passed("replace 3", path)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(next)))
	}
	return flushDirs("replace 4", path) // 4
}

// writeFlushed is steps 1 and 2 of Replace. The mode holds whatever the umask is, and also where a
// crash has left a file with another mode.
func writeFlushed(path string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	err = f.Chmod(mode)
	if err == nil {
		_, err = f.Write(b)
	}
	passed("replace 1", path)
	if err == nil {
		err = f.Sync()
	}
	passed("replace 2", path)
	return errors.Join(err, f.Close())
}

// Rename gives the file at from the name to. fs.ErrNotExist: there is none.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	passed("rename 1", to)
	return flushDirs("rename 2", from, to)
}

// Remove removes the file at path, which may be gone already.
func Remove(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	passed("remove 1", path)
	return flushDirs("remove 2", path)
}

// Discard removes a file that Replace writes, and what a crash within Replace has left beside it.
// That goes first: as long as the file is there somebody may still look for both.
func Discard(path string) error {
	return errors.Join(Remove(path+nextSuffix), Remove(path))
}

// MakeDir makes the directory path and those above it that are missing.
func MakeDir(path string, mode fs.FileMode) error {
	err := os.Mkdir(path, mode)
	switch {
	case errors.Is(err, fs.ErrExist):
		return isDir(path)
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(path) != path:
		if err := MakeDir(filepath.Dir(path), mode); err != nil {
			return err
		}
		return MakeDir(path, mode)
	case err != nil:
		return err
	}
	return FlushDir(filepath.Dir(path))
}

// isDir fails if what is at path is something else.
func isDir(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("something else has this name")}
	}
	return err
}

// FlushDir makes the names in a directory durable: those that were made, renamed or removed in it.
func FlushDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// flushDirs is the last step of each list, for the directories of these files.
func flushDirs(step string, paths ...string) error {
	var errs error
	last := ""
	for _, path := range paths {
		if dir := filepath.Dir(path); dir != last {
			errs = errors.Join(errs, FlushDir(dir))
			last = dir
		}
	}
	passed(step, paths[len(paths)-1])
	return errs
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
