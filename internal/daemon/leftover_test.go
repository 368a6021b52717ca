package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/steps"
)

// brokenEngine cannot open its devices.
type brokenEngine struct{ *fakeEngine }

func (e brokenEngine) Opens() []steps.Step {
	return []steps.Step{{Name: "open", Do: func(context.Context) error { return errors.New("broken") }}}
}

// TestNothingBesideTheDefinition: with the definition goes what daemons of the name that are dead
// have left beside it, whether the clone ends in order or does not even start. Without the
// definition nobody would look for it.
func TestNothingBesideTheDefinition(t *testing.T) {
	for name, e := range map[string]Engine{"in order": newFakeEngine(), "not started": brokenEngine{newFakeEngine()}} {
		dir, directory := control.Dir(t.TempDir()), t.TempDir()
		def := definition.Definition{Name: "c", Dest: "/dev/disk/by-id/second"}
		dead := definition.Definition{Name: "c", Dest: "/dev/disk/by-id/first", Metadata: filepath.Join(directory, "first")}
		if err := dir.Store(&dead); err != nil {
			t.Fatal(err)
		}
		for path, text := range map[string]string{
			filepath.Join(string(dir), "dest-sdx.udev"):    "UBLK_CLONE_DEST=c\nUBLK_CLONE_LINK=disk/by-id/first\n",
			filepath.Join(string(dir), "ublkb7.udev"):      "UBLK_CLONE_NAME=c\n",
			filepath.Join(string(dir), "layer-old.udev"):   "UBLK_CLONE_NAME=c\nUBLK_CLONE_COMPLETE=1\n",
			dead.Metadata + blockdev.BegunSuffix:           "",
			dir.BegunPath("c"):                             "",
			dir.TrialPath("c"):                             "",
			dir.TrialPath("c") + ".new":                    "",
			dir.DefinitionPath("c") + ".new":               "{",
			filepath.Join(string(dir), "another.json.new"): "",
		} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d := New(dir, definition.Start{Definition: def}, e, zerolog.Nop())
		err := d.done.Run(t.Context(), d.list())
		if (err == nil) != (name == "in order") {
			t.Fatalf("%s: %v", name, err)
		}
		if err := d.done.Stop(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if begun, _ := filepath.Glob(filepath.Join(directory, "*")); len(begun) > 0 {
			t.Errorf("%s: %v are left", name, begun)
		}
		left, _ := filepath.Glob(filepath.Join(string(dir), "*"))
		if len(left) != 1 || filepath.Base(left[0]) != "another.json.new" {
			t.Errorf("%s: %v are left", name, left)
		}
	}
}
