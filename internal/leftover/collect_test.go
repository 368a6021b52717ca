package leftover

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
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
