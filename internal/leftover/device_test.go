package leftover

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// TestRemoveBegun: a file that a killed maker has begun goes; one that is being made, what has its
// name, and what nobody has begun stay.
func TestRemoveBegun(t *testing.T) {
	dir := t.TempDir()
	left, whole, making := filepath.Join(dir, "left"), filepath.Join(dir, "whole"), filepath.Join(dir, "making")
	for _, path := range []string{left + blockdev.BegunSuffix, whole, making + blockdev.BegunSuffix} {
		if err := os.WriteFile(path, []byte("some"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	maker, err := os.Open(making + blockdev.BegunSuffix)
	if err != nil {
		t.Fatal(err)
	}
	defer maker.Close()
	if err := sys.FlockExclusive(int(maker.Fd())); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{left, whole, making, filepath.Join(dir, "none"), filepath.Join(dir, "no", "directory"), "/dev/vdz", ""} {
		if err := removeBegun(path); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	for path, want := range map[string]bool{left + blockdev.BegunSuffix: false, whole: true, making + blockdev.BegunSuffix: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestClearDead: of a clone whose daemon was killed before it had a block device nothing is left in
// the run directory, nor of the files that it had begun. Other clones and other files stay.
func TestClearDead(t *testing.T) {
	dir, directory := control.Dir(t.TempDir()), t.TempDir()
	def := &definition.Definition{Name: "c", Dest: filepath.Join(directory, "dest"), Metadata: filepath.Join(directory, "meta")}
	if err := dir.Store(def); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(string(dir), "other.json.new")
	for path, text := range map[string]string{
		filepath.Join(string(dir), "dest-sdx.udev"): "UBLK_CLONE_DEST=c\nUBLK_CLONE_LINK=disk/by-id/first\n",
		dir.BegunPath("c"):                          "", dir.TrialPath("c") + ".new": "", dir.DefinitionPath("c") + ".new": "", dir.LogPath("c"): "", dir.SocketPath("c"): "", other: "",
		def.Dest + blockdev.BegunSuffix: "", def.Metadata + blockdev.BegunSuffix: "", def.Metadata: "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := (Dirs{Dir: dir, Defined: etc.Dir(t.TempDir())}).ClearDead(def, How{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ directory, want string }{{string(dir), other}, {directory, def.Metadata}} {
		if left, _ := filepath.Glob(filepath.Join(c.directory, "*")); len(left) != 1 || left[0] != c.want {
			t.Errorf("left: %v", left)
		}
	}
}
