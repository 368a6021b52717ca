//go:build device

package devicetest

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestLayer: it is what add prints, is there for status and del, outlives a dead daemon and a
// restart with a file system mounted on it, and goes with the clone.
func TestLayer(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	c, files := smallClone(t, "--no-hydration", "--dm", harness.LayerName)
	m := c.M
	if c.Path != harness.LayerPath {
		t.Fatalf("add has printed %q", c.Path)
	}
	device := m.Block(c.Status().Device)
	if got := m.Under(); got != device.Number() {
		t.Errorf("the layer leads to %s, not %s", got, device.Number())
	}
	if text := m.MustRun(harness.Command, "status", c.Name); !strings.Contains(text, harness.LayerPath) {
		t.Errorf("status does not tell of %s:\n%s", harness.LayerPath, text)
	}
	files.Mount(c.Path)
	files.Change(m.Random(), 0.2)
	m.ExpectFailure(m.Try(harness.Command, "del", c.Name), exit.Busy, files.Root)
	if s := c.Status(); strings.Contains(strings.Join(s.Warnings, " "), harness.LayerName) || s.DMName != harness.LayerName || s.DMDevice != harness.LayerPath {
		t.Errorf("after a del that was refused: %+v", s)
	}
	m.ExpectFailure(m.Try(harness.Command, append([]string{"add", c.Name}, append(c.Args, "--dm", "another")...)...), exit.Exists, harness.LayerName)

	for _, suspended := range []bool{false, true} { // by whom, a finish that was killed
		// The suspension comes first, as it does there: it waits for the file system's requests,
		// which a dead daemon does not answer.
		if suspended {
			m.MustRun("dmsetup", "suspend", "--nolockfs", harness.LayerName)
		}
		c.End(syscall.SIGKILL)
		if s := c.Status(); s.State != "dead" || len(s.Holders) != 1 || s.Holders[0].Where != files.Root {
			t.Errorf("with a dead daemon: %+v", s)
		}
		m.ExpectFailure(m.Try(harness.Command, "del", c.Name), exit.Busy, files.Root)
		c.Recover()
		files.Check(nil)
	}
	m.MustRun(harness.Command, "restart", c.Name)
	files.Check(nil)
	files.Change(m.Random(), 0.2)
	c.HydrateFast()
	c.WaitHydrated()
	files.Check(nil)
	files.Unmount()
	c.Del()
	m.LayerGone()
	c.Add() // it was ended in order
	files.Mount(c.Path)
	files.Check(nil)
	files.Unmount()
	c.End(syscall.SIGKILL)
	m.MustRun(harness.Command, "prune")
	c.Path = ""
	m.LayerGone()
}

// TestLayerForced: `del --force` of a dead daemon's clone takes the layer from under its user, who
// gets errors.
func TestLayerForced(t *testing.T) {
	runs.On(t, "7.3")
	c, _ := smallClone(t, "--no-hydration", "--dm", harness.LayerName)
	c.M.Kernel.Expect("I/O error")
	v := c.M.Open(c.Path, os.O_RDWR)
	c.End(syscall.SIGKILL)
	c.M.MustRun("dmsetup", "suspend", "--nolockfs", harness.LayerName)
	c.M.MustRun(harness.Command, "del", "--force", c.Name)
	if err := v.Read(c.M.Buffer(4096), harness.MiB); err == nil {
		t.Error("a read succeeds")
	}
	v.Close()
	c.Path = ""
	c.M.LayerGone()
}

// TestLayerTaken: a name that is taken is refused before anything is made.
func TestLayerTaken(t *testing.T) {
	runs.On(t, "7.3")
	m := harness.New(t)
	source, dest, other := m.NullBlk("src", harness.NullOptions{MiB: 8}), m.NullBlk("dst", harness.NullOptions{MiB: 8}), m.NullBlk("oth", harness.NullOptions{MiB: 8})
	m.Linear(harness.LayerName, other, harness.MiB)
	meta := m.Missing("meta")
	for _, name := range []string{harness.LayerName, "a/b", "control"} {
		code := exit.Usage
		if name == harness.LayerName {
			code = exit.Exists
		}
		c := m.NewClone(source, dest, meta, "--dm", name)
		m.ExpectFailure(m.Try(harness.Command, append([]string{"add", c.Name}, c.Args...)...), code, name)
		if left := devicesAndDaemons(); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
		if _, err := os.Stat(meta.Path); err == nil {
			t.Errorf("%s was made", meta.Path)
		}
	}
}

// firstLayerStep comes a little before the one that lays the layer; TestAddFailsAtEachStep has
// those before.
const firstLayerStep = 18

// TestLayerFailsAtEachStep: a start, and then a recovery, that fail behind any of their last steps
// leave what was there.
func TestLayerFailsAtEachStep(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 8}), m.NullBlk("dst", harness.NullOptions{MiB: 8})
	m.FillDisk(source, harness.Original)
	c := m.NewClone(source, dest, m.Missing("meta"), "--dm", harness.LayerName)
	last := failSteps(c, "add", firstLayerStep, func(step int) {
		if left := devicesAndDaemons(); len(left) > 0 {
			t.Fatalf("a failure behind step %d leaves %v", step, left)
		}
		m.LayerGone()
	})
	c.Path = harness.LayerPath
	v := m.Open(c.Path, os.O_RDWR)
	c.End(syscall.SIGKILL)
	failSteps(c, "recover", firstLayerStep, func(step int) {
		if s := c.Status(); s.State != "dead" || len(s.Holders) != 1 || len(harness.Daemons()) > 0 {
			t.Fatalf("a failure behind step %d leaves %+v", step, s)
		}
		m.Under()
	})
	if err := v.Read(m.Buffer(4096), harness.MiB); err != nil {
		t.Error(err)
	}
	v.Close()
	t.Logf("%d steps", last)
	c.Del()
	m.LayerGone()
}

// failSteps does what makes a clone run with a failure behind each step from the first on, until it
// succeeds, and looks after each.
func failSteps(c *harness.Clone, verb string, first int, look func(step int)) (last int) {
	c.M.Helper()
	args := []string{verb, c.Name}
	if verb == "add" {
		args = append(args, c.Args...)
	}
	for step := first; ; step++ {
		c.M.Setenv(faultEnv, strconv.Itoa(step))
		o := c.M.Try(faulty, args...)
		if o.Code == 0 {
			c.M.Setenv(faultEnv, "")
			return step
		}
		if !strings.Contains(o.Stderr, "step "+strconv.Itoa(step)) {
			c.M.Fatalf("step %d: exit status %d: %s", step, o.Code, o.Stderr)
		}
		look(step)
	}
}
