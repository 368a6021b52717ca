//go:build device

package devicetest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The name by which users know a clone. The guest has no udev: the daemon gives the name.

// namePath is the link of the tests' clone.
var namePath = filepath.Join(harness.NameDir, "test")

// called checks that the clone's name leads to that device.
func called(m *harness.Machine, when, path string) {
	m.Helper()
	named, err := filepath.EvalSymlinks(namePath)
	device, errDevice := filepath.EvalSymlinks(path)
	if err = errors.Join(err, errDevice); err != nil || named != device {
		m.Errorf("%s %s leads to %s, and not to %s, which is %s: %v", when, namePath, named, path, device, err)
	}
}

// nameless checks that nothing is left in the directory of names.
func nameless(m *harness.Machine, when string) {
	m.Helper()
	if entries, err := os.ReadDir(harness.NameDir); err != nil || len(entries) > 0 {
		m.Errorf("%s: %v, %v", when, entries, err)
	}
}

// TestNames: add prints the name, with a layer and without. It leads to what users are to open over
// a restart and a death, and goes with the clone.
func TestNames(t *testing.T) {
	runs.On(t, "6.12")
	for name, args := range map[string][]string{"plain": nil, "layer": {"--dm", harness.LayerName}} {
		t.Run(name, func(t *testing.T) { testNames(harness.New(t), args...) })
	}
}

func testNames(m *harness.Machine, args ...string) {
	m.Helper()
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 8}), m.NullBlk("dst", harness.NullOptions{MiB: 8})
	m.FillDisk(source, harness.Original)
	c := m.NewClone(source, dest, m.Missing("meta"), args...)
	add := append([]string{"add", c.Name}, c.Args...)
	if got := strings.TrimSpace(m.MustRun(harness.Command, add...)); got != namePath {
		m.Errorf("add has printed %q", got)
	}
	c.Path = harness.Opened(namePath)
	top := c.Status().Device
	if args != nil {
		top = harness.LayerPath
	}
	called(m, "added,", top)
	if got := strings.TrimSpace(m.MustRun(harness.Command, add...)); got != namePath+" unchanged" {
		m.Errorf("the same add has printed %q", got)
	}
	if text := m.MustRun(harness.Command, "status", c.Name); !strings.Contains(text, namePath) || !strings.Contains(text, "device  "+c.Status().Device) {
		m.Errorf("status:\n%s", text)
	}
	m.MustRun(harness.Command, "restart", c.Name)
	called(m, "restarted,", top)
	c.End(syscall.SIGKILL)
	called(m, "dead,", top)
	if got := strings.TrimSpace(m.MustRun(harness.Command, "recover", c.Name)); got != namePath {
		m.Errorf("recover has printed %q", got)
	}
	called(m, "recovered,", top)
	c.Del()
	nameless(m, "deleted")
	c.Add()
	c.End(syscall.SIGKILL)
	m.MustRun(harness.Command, "prune")
	nameless(m, "pruned")
	c.Path = ""
}

// TestNamesAfterFinish: the layer keeps the name. When somebody has removed it, the next command
// removes the name.
func TestNamesAfterFinish(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newFinishBench(t, "")
	b.hydrate()
	b.M.MustRun(harness.Command, "finish", b.Name)
	called(b.M, "finished,", harness.LayerPath)
	b.finished()
	if _, err := os.Stat(namePath); err == nil {
		t.Errorf("%s leads somewhere, and the layer is gone", namePath)
	}
	b.M.MustRun(harness.Command, "prune")
	nameless(b.M, "after another command")
}

// TestNamesKilled: a daemon that is killed within add leaves no name behind the next command, and
// what is not ours keeps its name. Where no link can be made the clone goes without.
func TestNamesKilled(t *testing.T) {
	runs.On(t, "7.3")
	m := harness.New(t)
	m.Cleanup(func() { _ = os.Remove(harness.NameDir) }) // a file, if the test ends early
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 8}), m.NullBlk("dst", harness.NullOptions{MiB: 8})
	c := m.AddClone(source, dest, m.Missing("meta"))
	c.End(syscall.SIGKILL)
	if err := harness.DeleteDevices(); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../ublkb0", filepath.Join(harness.NameDir, ".test.new")); err != nil {
		t.Fatal(err)
	}
	m.MustRun(harness.Command, "del", c.Name)
	nameless(m, "after the death of its daemon")

	foreign := strings.TrimPrefix(dest.Path, "/dev")
	if err := os.Symlink(".."+foreign, namePath); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"a link of somebody else's", "a file where the directory is to be"} {
		o := m.Try(harness.Command, append([]string{"add", c.Name}, c.Args...)...)
		c.Path = strings.TrimSpace(m.Must(o, "add"))
		if c.Path != c.Status().Device || !strings.Contains(o.Stderr, "has no name in /dev/ublk-clone") {
			t.Errorf("%s: add has printed %q, %q", place, c.Path, o.Stderr)
		}
		if place[2] == 'l' {
			called(m, "not ours,", dest.Path)
		}
		c.Del()
		if err := os.RemoveAll(harness.NameDir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(harness.NameDir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(harness.NameDir); err != nil {
		t.Fatal(err)
	}
}
