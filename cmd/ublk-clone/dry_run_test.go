package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestDryRunBeforeTheProcess: what a command refuses before it starts anything.
func TestDryRunBeforeTheProcess(t *testing.T) {
	root := t.TempDir()
	source := filepath.Join(root, "source")
	if err := os.WriteFile(source, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	line := "add c --dry-run --source " + source + " --dest " + filepath.Join(root, "dest") + " --metadata " + filepath.Join(root, "meta")
	code, out, errs := command(t, line+" --queues 0")
	if code != exit.Usage {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
	var o, e bytes.Buffer
	p := &program{out: &o, errs: &e, dir: control.Dir(source)}
	if code := p.run(append([]string{"ublk-clone"}, strings.Fields(line)...)); code != exit.Other || !strings.Contains(e.String(), "not a directory") {
		t.Errorf("a run directory that is a file: exit code %d, %s", code, &e)
	}
	p.dir = control.Dir(filepath.Join(root, "run"))
	if err := p.dir.Possible(); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadDir(root); err != nil || len(after) != 1 {
		t.Errorf("it has changed: %v, %v", after, err)
	}
}
