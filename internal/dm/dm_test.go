package dm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/metadata"
)

// TestLayerUUID: a layer is known by the whole of its UUID.
func TestLayerUUID(t *testing.T) {
	clone := metadata.UUID{1, 2, 3, 15: 16}
	text := Prefix + clone.String()
	if got := UUIDOf(text); got != clone {
		t.Errorf("%s is of %s", text, got)
	}
	l := Layer{Clone: clone}
	if !l.IsOf(clone.Cookie()) || l.IsOf(clone.Cookie()+1) || (&Layer{}).IsOf(0) {
		t.Error("whose layer it is")
	}
	for _, other := range []string{"", Prefix, text[:len(text)-1], text + "0", "x" + text, strings.TrimPrefix(text, Prefix), "LVM-" + clone.String()} {
		if got := UUIDOf(other); got != (metadata.UUID{}) {
			t.Errorf("%q is of %s", other, got)
		}
	}
}

// TestUnlinkGone: the link of a layer that is gone goes, also if another device has its number by
// now. The link of one that is there stays, and what is no such link.
func TestUnlinkGone(t *testing.T) {
	directory, devices := t.TempDir(), t.TempDir()
	for node, name := range map[string]string{"dm-1": "there", "dm-2": "another"} {
		dir := filepath.Join(devices, node, "dm")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"there": "../dm-1", "exchanged": "../dm-2", "gone": "../dm-3", "strange": "../sda"} {
		if err := os.Symlink(to, filepath.Join(directory, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(directory, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"there", "exchanged", "gone", "strange", "file", "none"} {
		if err := unlinkGone(directory, devices, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var left []string
	found, _ := filepath.Glob(filepath.Join(directory, "*"))
	for _, path := range found {
		left = append(left, filepath.Base(path))
	}
	if !slices.Equal(left, []string{"file", "strange", "there"}) {
		t.Errorf("left: %v", left)
	}
}
