package leftover

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
)

// TestCollectBesideNoMap: a process that was killed between removing the last live map and the bits
// beside it has left the bits, which are collected where there is no map at all.
func TestCollectBesideNoMap(t *testing.T) {
	maps := t.TempDir()
	bits := filepath.Join(maps, "07.zeros")
	if err := os.WriteFile(bits, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	never := func(livemap.Unused) bool { t.Error("asked about a map"); return false }
	if err := collectMaps(control.Dir(t.TempDir()), maps, never); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bits); !os.IsNotExist(err) {
		t.Errorf("the bits are left: %v", err)
	}
}

// TestStrayFiles: prune removes every kind of file of a name that has no clone, and nothing of a
// clone or of one that is just being added.
func TestStrayFiles(t *testing.T) {
	dir := control.Dir(t.TempDir())
	if err := StrayFiles(dir + "/none"); err != nil {
		t.Error(err)
	}
	if err := dir.Store(&definition.Definition{Name: "there"}); err != nil {
		t.Fatal(err)
	}
	lock, err := dir.Acquire("added")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"there", "added", "a", "b", "c", "d", "e", "f"} {
		for path, text := range map[string]string{ // of a to f one each
			dir.LogPath(name): "a", dir.SocketPath(name): "b", dir.TrialPath(name) + ".new": "c", dir.BegunPath(name): "d",
			filepath.Join(string(dir), "ublkb-"+name+".udev"): "eUBLK_CLONE_NAME=" + name + "\nUBLK_CLONE_COMPLETE=1\n",
			filepath.Join(string(dir), "dest-"+name+".udev"):  "fUBLK_CLONE_DEST=" + name + "\n",
		} {
			if len(name) == 1 && name != text[:1] {
				continue
			}
			if err := os.WriteFile(path, []byte(text[1:]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := StrayFiles(dir); err != nil {
		t.Error(err)
	}
	left, _ := filepath.Glob(filepath.Join(string(dir), "*"))
	for _, path := range left {
		if !strings.Contains(filepath.Base(path), "there") && !strings.Contains(filepath.Base(path), "added") {
			t.Errorf("%s is left", path)
		}
	}
	if len(left) != 2*6+2 {
		t.Errorf("left: %v", left)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}
