package engine

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
)

// TestErrorClasses: what an error means depends on its errno and its side; a user gets EIO or
// ENOSPC.
func TestErrorClasses(t *testing.T) {
	dest, err := blockdev.Open(blockdev.Dest, filepath.Join(t.TempDir(), "dest"), blockdev.Options{Create: true, Size: 1 << 20, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dest.Close()
	full := clone.Full
	if !dest.Direct() {
		full = clone.Local
	}
	on := func(side blockdev.Role, err error) error {
		return fmt.Errorf("copy: %w", &dataplane.SideError{Side: side, Err: err})
	}
	for _, c := range []struct {
		err  error
		want clone.ErrorClass
		user error
	}{
		{on(blockdev.Source, syscall.EIO), clone.Local, syscall.EIO},
		{on(blockdev.Source, syscall.ENODATA), clone.Local, syscall.EIO},
		{on(blockdev.Source, syscall.ENODEV), clone.Away, syscall.EIO},
		{on(blockdev.Source, syscall.ENOLINK), clone.Away, syscall.EIO},
		{on(blockdev.Source, io.ErrUnexpectedEOF), clone.Away, syscall.EIO},
		{on(blockdev.Source, errors.New("short")), clone.Local, syscall.EIO},
		{on(blockdev.Dest, syscall.EIO), clone.Local, syscall.EIO},
		{on(blockdev.Dest, syscall.ENXIO), clone.Away, syscall.EIO},
		{on(blockdev.Dest, syscall.ENOSPC), full, syscall.ENOSPC},
		{on(blockdev.Dest, syscall.EDQUOT), full, syscall.ENOSPC},
		{clone.ErrReadOnly, clone.Local, syscall.EIO},
	} {
		if got := classify(c.err, dest); got != c.want {
			t.Errorf("%v: class %d, want %d", c.err, got, c.want)
		}
		if got := dataplane.ForUser(c.err); got != c.user {
			t.Errorf("%v: a user gets %v, want %v", c.err, got, c.user)
		}
	}
	if dataplane.ForUser(nil) != nil {
		t.Error("success is an error for users")
	}
}
