//go:build device

package devicetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestFinishRoot: the program lies on the layer, as where that is the root. Its daemon, which needs nothing of it while the
// layer is suspended, and the finish, go on; what is started from there afterwards comes from the destination.
func TestFinishRoot(t *testing.T) {
	runs.On(t, "7.3")
	b := newFinishBench(t, "")
	m := b.m
	program := filepath.Join(b.files.root, othersFolder, command)
	m.copyProgram(program)
	b.files.sync()
	b.hydrate()
	m.run(program, "restart", b.name)
	s := b.status()
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.PID)); err != nil || exe != program {
		t.Fatalf("the daemon's program is %s: %v", exe, err)
	}
	m.dropCaches()
	if got := strings.TrimSpace(m.run(program, "finish", b.name)); got != layerPath {
		t.Errorf("finish has printed %q", got)
	}
	m.dropCaches()
	from := b.dest.traffic()
	m.run(program, "version")
	if got := b.dest.traffic().since(from).readBytes; got < mib {
		t.Errorf("the program was read from elsewhere: %d bytes from the destination", got)
	}
	b.finished()
}

// copyProgram copies the program that the tests run.
func (m *machine) copyProgram(to string) {
	m.Helper()
	path, err := exec.LookPath(command)
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		m.Fatal(err)
	}
}
