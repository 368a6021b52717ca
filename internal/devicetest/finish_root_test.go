//go:build device

package devicetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestFinishRoot: the program lies on the layer, as where that is the root. Its daemon, which needs
// nothing of it while the layer is suspended, and the finish, go on; what is started from there
// afterwards comes from the destination.
func TestFinishRoot(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	b := newFinishBench(t, "")
	m := b.M
	program := filepath.Join(b.files.Root, harness.OthersDir, harness.Command)
	copyProgram(m, program)
	b.files.Sync()
	b.hydrate()
	m.MustRun(program, "restart", b.Name)
	s := b.Status()
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.PID)); err != nil || exe != program {
		t.Fatalf("the daemon's program is %s: %v", exe, err)
	}
	m.DropCaches()
	if got := strings.TrimSpace(m.MustRun(program, "finish", b.Name)); got != harness.LayerPath {
		t.Errorf("finish has printed %q", got)
	}
	m.DropCaches()
	from := b.dest.Traffic()
	m.MustRun(program, "version")
	if got := b.dest.Traffic().Since(from).ReadBytes; got < harness.MiB {
		t.Errorf("the program was read from elsewhere: %d bytes from the destination", got)
	}
	b.finished()
}

// copyProgram copies the program that the tests run.
func copyProgram(m *harness.Machine, to string) {
	m.Helper()
	path, err := exec.LookPath(harness.Command)
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
