package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// elsewhere says whether this process is in another mount namespace than process 1, and not in a
// unit's that follows it.
func elsewhere() (bool, error) {
	here, err := sys.InInitMounts()
	if err != nil {
		return false, &exit.Error{Code: exit.Denied, Doing: "find the mount namespace of process 1", Cause: err,
			Next: "Daemons run there. Run it as root, with CAP_SYS_ADMIN and CAP_SYS_PTRACE."}
	}
	stays := os.Getenv("NOTIFY_SOCKET") != "" && follows() == nil // no sandbox but a unit's is anything to stay for
	return !here && !stays, nil
}

// follows fails, and says why, unless this mount namespace gets the mounts and unmounts of another
// (its root is a slave: mount_namespaces(7)) and has the live maps of process 1.
func follows() error {
	roots, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/"))
	if err != nil {
		return err
	}
	if len(roots) == 0 || !strings.Contains(roots[len(roots)-1].Optional, "master:") {
		return errors.New("its mounts do not follow those of process 1")
	}
	here, err := sys.StatPath(livemap.Dir)
	there, errThere := sys.StatPath("/proc/1/root" + livemap.Dir)
	run, errRun := sys.StatPath(filepath.Dir(livemap.Dir))
	if err := errors.Join(err, errThere, errRun); err != nil {
		return err
	}
	if !SameObject(here, there) || here.Dev == run.Dev {
		return errors.New(livemap.Dir + " is not the tmpfs that process 1 has there")
	}
	return nil
}

// SameThere fails if a path of the definition, or the directory of the sockets, means something
// else in the mount namespace of process 1.
func SameThere(d control.Dir, def *definition.Definition) error {
	if away, err := elsewhere(); !away {
		return err
	}
	places := []struct {
		code       int
		what, path string
	}{
		{exit.Source, "the source", def.Source}, {exit.Dest, "the destination", def.Dest}, {exit.Metadata, "the metadata", def.Metadata},
		{exit.Other, "the directory of sockets", string(d)},
	}
	here := make([]sys.Stat, len(places))
	for i, place := range places {
		here[i], _ = statOrDir(place.path) // what cannot be found is the daemon's to complain of
	}
	return sys.DoInInitMounts(func() error {
		for i, place := range places {
			there, err := statOrDir(place.path)
			if err == nil && SameObject(here[i], there) {
				continue
			}
			return &exit.Error{Code: place.code, Doing: "find " + place.what, Object: place.path,
				Cause: errors.New("this command runs in a mount namespace of its own, and for process 1, where the daemon will run, that is something else"),
				Next:  "Use a path that is the same in both, or run it outside."}
		}
		return nil
	})
}

// statOrDir describes what path names, or its directory if it is missing.
func statOrDir(path string) (sys.Stat, error) {
	st, err := sys.StatPath(path)
	if errors.Is(err, fs.ErrNotExist) {
		return sys.StatPath(filepath.Dir(path))
	}
	return st, err
}

// SameObject: nodes of the same device in two directories are.
func SameObject(a, b sys.Stat) bool {
	if a.IsBlock() && b.IsBlock() {
		return a.Rdev == b.Rdev
	}
	return a.Mode == b.Mode && a.Dev == b.Dev && a.Inode == b.Inode
}

// Relocate moves a process that is to be a daemon to the place where daemons run. Where that is
// another mount namespace the process begins anew there, and Relocate does not return.
func Relocate() error {
	away, err := elsewhere()
	if away {
		if err = sys.DoInInitMounts(sys.ExecAgain); err != nil {
			err = fmt.Errorf("leave the mount namespace (%w): %w", follows(), err)
		}
	}
	if err == nil {
		err = os.Chdir("/") // the directory may lie on a clone
	}
	if err == nil {
		err = sys.SetName("ublk-clone")
	}
	if err != nil {
		return fmt.Errorf("move the daemon to its place: %w", err)
	}
	return nil
}
