package udev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
)

// TestForgetUdevTogether: clones that end at the same moment are not in each other's way.
func TestForgetUdevTogether(t *testing.T) {
	dir := control.Dir(t.TempDir())
	for range 50 {
		var all sync.WaitGroup
		for i := range 20 {
			def := &definition.Definition{Name: fmt.Sprintf("c%d", i), Dest: fmt.Sprintf("/dev/zz%d", i)}
			if err := tell(dir, def, destUdevFile(dir, def.Dest), destLines(def)); err != nil {
				t.Fatal(err)
			}
			all.Go(func() {
				if err := Forget(dir, def); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
}

// TestForgetUdev: of what udev is told, a clone takes back its own, and only that.
func TestForgetUdev(t *testing.T) {
	dir := control.Dir(t.TempDir())
	def := &definition.Definition{Name: "a", Dest: "/dev/disk/by-id/gone", DM: "layer"} // which led to sdy
	files := []string{udevFile(dir, "ublkb7"), layerUdevFile(dir, "layer"), destUdevFile(dir, "/dev/sdy")}
	for i, lines := range []string{nameLine(def), nameLine(def) + "\nUBLK_CLONE_COMPLETE=1", destLines(def)} {
		if err := tell(dir, def, files[i], lines); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []*definition.Definition{
		{Name: "b", Dest: filepath.Join(t.TempDir(), "sdy")},    // a file that is called like a's destination
		{Name: "b", Dest: filepath.Join(t.TempDir(), "ublkb7")}, // and one like its device
	} {
		if err := Forget(dir, other); err != nil {
			t.Error(err)
		}
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
	if err := Forget(dir, def); err != nil {
		t.Error(err)
	}
	for _, f := range files {
		if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// TestNameForgetsTheDead: a daemon was killed and left what it had told udev, and the clone was added
// again with another device, destination and layer. What udev was told of the former ones does not
// stay, neither while the clone is up nor when it has ended.
func TestNameForgetsTheDead(t *testing.T) {
	dir := control.Dir(t.TempDir())
	dead := &definition.Definition{Name: "a", Dest: "/dev/disk/by-id/first", DM: "old"}
	now := &definition.Definition{Name: "a", Dest: "/dev/disk/by-id/second"}
	other := &definition.Definition{Name: "b", Dest: "/dev/disk/by-id/third"}
	for device, def := range map[string]*definition.Definition{"/dev/ublkb1": dead, "/dev/ublkb2": other, "/dev/ublkb3": now} {
		if err := NameDevice(dir, def, device, false); err != nil {
			t.Fatal(err)
		}
		if err := tell(dir, def, destUdevFile(dir, def.Dest), destLines(def)); err != nil {
			t.Fatal(err)
		}
	}
	stay := func(want ...string) {
		t.Helper()
		var got []string
		found, _ := filepath.Glob(filepath.Join(string(dir), "*"))
		for _, path := range found {
			got = append(got, filepath.Base(path))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v are there, not %v", got, want)
		}
	}
	if err := Name(dir, now, "/dev/ublkb3", true, false); err != nil {
		t.Error(err)
	}
	stay("dest-second.udev", "dest-third.udev", "ublkb2.udev", "ublkb3.udev")
	if err := tell(dir, dead, destUdevFile(dir, dead.Dest), destLines(dead)); err != nil { // a start of now has failed before Name
		t.Fatal(err)
	}
	if err := os.WriteFile(dir.BegunPath("a"), nil, 0o600); err != nil { // killed before it could say anything
		t.Fatal(err)
	}
	if err := Forget(dir, now); err != nil {
		t.Error(err)
	}
	stay("dest-third.udev", "ublkb2.udev")
}
