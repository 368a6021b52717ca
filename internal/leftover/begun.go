package leftover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// begunLimit is how long a directory may take to answer, which may lie on a server.
const begunLimit = 5 * time.Second

// RemoveBegun removes what a daemon has left that was killed before the files that it made had their
// names, on a file system where none can be made without a name (blockdev.BegunSuffix). Nobody but
// the next maker of the same file would find it, and of a destination it has all the space. Who is
// making the file has its lock, and keeps it.
func RemoveBegun(def *definition.Definition) error {
	return errors.Join(removeBegun(def.Dest), removeBegun(def.Metadata))
}

func removeBegun(path string) error {
	if path == "" || strings.HasPrefix(path, "/dev/") && !strings.HasPrefix(path, "/dev/shm/") {
		return nil
	}
	begun := path + blockdev.BegunSuffix
	done := make(chan error, 1)
	guard.Go("remove a begun file", func() { done <- removeUnlocked(begun) })
	var err error
	select {
	case err = <-done:
	case <-time.After(begunLimit):
		err = fmt.Errorf("no answer within %s", begunLimit)
	}
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "remove the begun file", Object: begun, Cause: err, Next: "Nobody needs it: remove it if it is there."}
	}
	return nil
}

// removeUnlocked removes a file that nobody has locked.
func removeUnlocked(begun string) error {
	if st, err := os.Lstat(begun); errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
		return nil
	}
	f, err := sys.Open(begun, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if sys.FlockExclusive(int(f.Fd())) != nil {
		return nil // it is being made
	}
	open, err := sys.Fstat(int(f.Fd()))
	if err != nil {
		return err
	}
	if named, err := sys.StatPath(begun); err != nil || named.Dev != open.Dev || named.Inode != open.Inode {
		return nil // it has got its name meanwhile
	}
	return file.Remove(begun)
}
