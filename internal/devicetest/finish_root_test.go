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
// nothing of it while the layer is suspended, goes on over exchanges of its table and a finish; what
// is read from there when it is direct, and what is started from there afterwards, comes from the
// destination.
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
	fromDest := func(what string, read func()) {
		t.Helper()
		m.DropCaches()
		from := b.dest.Traffic()
		read()
		if got := b.dest.Traffic().Since(from).ReadBytes; got < harness.MiB {
			t.Errorf("%s read from elsewhere: %d bytes from the destination", what, got)
		}
	}
	if !unaligned(t) {
		for _, to := range []string{"on", "off", "on"} {
			m.MustRun(program, "set", b.Name, "direct="+to)
		}
		waitDirect(b.Clone, b.dest, finishSize-harness.MiB)
		device := m.Block(s.Device)
		from := device.Traffic()
		fromDest("files were", func() { b.files.Check(nil) })             // the program's pages are the daemon's too
		if n := device.Traffic().Since(from).ReadBytes; n > harness.MiB { // the last unit of the device
			t.Errorf("files were read through the daemon: %d bytes", n)
		}
	}
	m.DropCaches()
	if got := strings.TrimSpace(m.MustRun(program, "finish", b.Name)); got != harness.LayerPath {
		t.Errorf("finish has printed %q", got)
	}
	fromDest("the program was", func() { m.MustRun(program, "version") })
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
