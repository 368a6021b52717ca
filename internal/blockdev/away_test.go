package blockdev

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestAway: a source that is not there, or cannot be read, may come back; one in use or of the
// wrong kind is refused.
func TestAway(t *testing.T) {
	open := func(path string) error {
		d, err := Open(Source, path, Options{})
		if err == nil {
			d.Close()
		}
		return err
	}
	held := image(t, mib)
	mustOpen(t, Dest, held, Options{})
	for _, c := range []struct {
		name string
		err  error
		away bool
	}{
		{"missing", open(filepath.Join(t.TempDir(), "nothing")), true},
		{"no such device", open("/dev/nothing-of-that-name"), true},
		{"a directory", open(t.TempDir()), false},
		{"in use", open(held), false},
		{"no size", &exit.Error{Cause: errNoSize}, true},
		{"unreadable", fmt.Errorf("read: %w", syscall.EIO), true},
		{"not permitted", fmt.Errorf("open: %w", syscall.EACCES), false},
		{"none", nil, false},
	} {
		if got := Away(c.err); got != c.away {
			t.Errorf("%s: away %t: %v", c.name, got, c.err)
		}
	}
}

// TestUnwritable: what can only be read is told from what is not there, or not permitted.
func TestUnwritable(t *testing.T) {
	for err, want := range map[error]bool{
		&exit.Error{Cause: errReadOnly}:              true,
		fmt.Errorf("open: %w", syscall.EROFS):        true,
		fmt.Errorf("open: %w", syscall.EACCES):       false,
		fmt.Errorf("superblock: %w", syscall.ENOENT): false,
	} {
		if got := Unwritable(err); got != want {
			t.Errorf("unwritable %t: %v", got, err)
		}
	}
}

// TestMatchDest: without its source a clone has the sizes of before, which the destination must
// still fit.
func TestMatchDest(t *testing.T) {
	for _, c := range []struct {
		name string
		dest *Device
		code int
	}{
		{"as before", device(mib, 512), 0},
		{"too small", device(mib-4096, 512), exit.Dest},
		{"larger blocks", device(mib, 8192), exit.Dest},
	} {
		c.dest.role = Dest
		g, err := MatchDest(c.dest, mib, 4096)
		if exit.Code(err) != c.code {
			t.Errorf("%s: %v, want exit code %d", c.name, err, c.code)
		}
		if err == nil && (g.Size != mib || g.LogicalBlock != 4096 || g.PhysicalBlock < 4096) {
			t.Errorf("%s: %+v", c.name, g)
		}
	}
}

// TestCurrent: a file can be opened once more whatever has become of it.
func TestCurrent(t *testing.T) {
	if mustOpen(t, Source, image(t, mib), Options{}).Current() {
		t.Error("a file is the only one that its path can lead to")
	}
}
