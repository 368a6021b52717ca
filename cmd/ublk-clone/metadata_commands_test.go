package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// Damage that leaves nothing to go on with is told by every command.
func TestDamagedMetadata(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"check", "dump"} {
		code, out, errs := command(t, "metadata "+verb+" "+path)
		if code != exit.Metadata || !strings.Contains(out, "copy 0") || !strings.Contains(errs, path) {
			t.Errorf("%s: exit code %d: %s%s", verb, code, out, errs)
		}
	}
}
