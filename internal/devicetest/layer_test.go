//go:build device

package devicetest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The device-mapper device that `add --dm` lays over the block device.

// layerName is that of the tests.
const layerName = "layered"

// layerPath is its link.
const layerPath = "/dev/mapper/" + layerName

// layerGone says that there is no device-mapper device of the tests' name, nor its link.
func (m *machine) layerGone() {
	m.Helper()
	if o := m.try("dmsetup", "info", layerName); o.code == 0 {
		m.Errorf("there is a device-mapper device:\n%s", o.stdout)
	}
	if _, err := os.Lstat(layerPath); err == nil {
		m.Errorf("%s is there", layerPath)
	}
}

// under is the number of the block device that the layer leads to.
func (m *machine) under() string {
	m.Helper()
	f := strings.Fields(m.run("dmsetup", "table", layerName))
	if len(f) != 5 || f[2] != "linear" || f[4] != "0" {
		m.Fatalf("the layer's table is %q", f)
	}
	return f[3]
}

// number is a block device's as device-mapper writes it.
func (d *disk) number() string {
	d.m.Helper()
	return strings.TrimSpace(d.m.readFile(filepath.Join("/sys/block", d.name, "dev")))
}

// TestLayer: it is what add prints, is there for status and del, outlives a dead daemon and a restart with a file system
// mounted on it, and goes with the clone.
func TestLayer(t *testing.T) {
	runs.On(t, "6.18")
	c, files := smallClone(t, "--no-hydration", "--dm", layerName)
	m := c.m
	if c.path != layerPath {
		t.Fatalf("add has printed %q", c.path)
	}
	device := m.block(c.status().Device)
	if got := m.under(); got != device.number() {
		t.Errorf("the layer leads to %s, not %s", got, device.number())
	}
	if text := m.run(command, "status", c.name); !strings.Contains(text, layerPath) {
		t.Errorf("status does not tell of %s:\n%s", layerPath, text)
	}
	files.mount(c.path)
	files.change(m.random(), 0.2)
	m.expectFailure(m.try(command, "del", c.name), exit.Busy, files.root)
	if s := c.status(); strings.Contains(strings.Join(s.Warnings, " "), layerName) || s.DMName != layerName || s.DMDevice != layerPath {
		t.Errorf("after a del that was refused: %+v", s)
	}
	m.expectFailure(m.try(command, append([]string{"add", c.name}, append(c.args, "--dm", "another")...)...), exit.Exists, layerName)

	for _, suspended := range []bool{false, true} { // by whom, a finish that was killed
		// The suspension comes first, as it does there: it waits for the file system's requests, which a dead daemon
		// does not answer.
		if suspended {
			m.run("dmsetup", "suspend", "--nolockfs", layerName)
		}
		c.end(syscall.SIGKILL)
		if s := c.status(); s.State != "dead" || len(s.Holders) != 1 || s.Holders[0].Where != files.root {
			t.Errorf("with a dead daemon: %+v", s)
		}
		m.expectFailure(m.try(command, "del", c.name), exit.Busy, files.root)
		c.recover()
		files.check(nil)
	}
	m.run(command, "restart", c.name)
	files.check(nil)
	files.change(m.random(), 0.2)
	c.hydrateFast()
	c.waitHydrated()
	files.check(nil)
	files.unmount()
	c.del()
	m.layerGone()
	c.add() // it was ended in order
	files.mount(c.path)
	files.check(nil)
	files.unmount()
	c.end(syscall.SIGKILL)
	m.run(command, "prune")
	c.path = ""
	m.layerGone()
}

// TestLayerForced: `del --force` of a dead daemon's clone takes the layer from under its user, who gets errors.
func TestLayerForced(t *testing.T) {
	runs.On(t, "7.3")
	c, _ := smallClone(t, "--no-hydration", "--dm", layerName)
	c.m.kernel.expect("I/O error")
	v := c.m.open(c.path, os.O_RDWR)
	c.end(syscall.SIGKILL)
	c.m.run("dmsetup", "suspend", "--nolockfs", layerName)
	c.m.run(command, "del", "--force", c.name)
	if err := v.read(c.m.buffer(4096), mib); err == nil {
		t.Error("a read succeeds")
	}
	v.close()
	c.path = ""
	c.m.layerGone()
}

// TestLayerTaken: a name that is taken is refused before anything is made.
func TestLayerTaken(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	source, dest, other := m.nullBlk("src", nullOptions{mib: 8}), m.nullBlk("dst", nullOptions{mib: 8}), m.nullBlk("oth", nullOptions{mib: 8})
	m.linear(layerName, other, mib)
	meta := m.missing("meta")
	for _, name := range []string{layerName, "a/b", "control"} {
		code := exit.Usage
		if name == layerName {
			code = exit.Exists
		}
		c := m.newClone(source, dest, meta, "--dm", name)
		m.expectFailure(m.try(command, append([]string{"add", c.name}, c.args...)...), code, name)
		if left := devicesAndDaemons(); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
		if _, err := os.Stat(meta.path); err == nil {
			t.Errorf("%s was made", meta.path)
		}
	}
}

// firstLayerStep comes a little before the one that lays the layer; TestAddFailsAtEachStep has those before.
const firstLayerStep = 18

// TestLayerFailsAtEachStep: a start, and then a recovery, that fail behind any of their last steps leave what was there.
func TestLayerFailsAtEachStep(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 8}), m.nullBlk("dst", nullOptions{mib: 8})
	m.fillDisk(source, original)
	c := m.newClone(source, dest, m.missing("meta"), "--dm", layerName)
	last := c.failSteps("add", firstLayerStep, func(step int) {
		if left := devicesAndDaemons(); len(left) > 0 {
			t.Fatalf("a failure behind step %d leaves %v", step, left)
		}
		m.layerGone()
	})
	c.path = layerPath
	v := m.open(c.path, os.O_RDWR)
	c.end(syscall.SIGKILL)
	c.failSteps("recover", firstLayerStep, func(step int) {
		if s := c.status(); s.State != "dead" || len(s.Holders) != 1 || len(daemons()) > 0 {
			t.Fatalf("a failure behind step %d leaves %+v", step, s)
		}
		m.under()
	})
	if err := v.read(m.buffer(4096), mib); err != nil {
		t.Error(err)
	}
	v.close()
	t.Logf("%d steps", last)
	c.del()
	m.layerGone()
}

// failSteps does what makes a clone run with a failure behind each step from the first on, until it succeeds, and looks after each.
func (c *clone) failSteps(verb string, first int, look func(step int)) (last int) {
	c.m.Helper()
	args := []string{verb, c.name}
	if verb == "add" {
		args = append(args, c.args...)
	}
	for step := first; ; step++ {
		c.m.Setenv(faultEnv, strconv.Itoa(step))
		o := c.m.try(faulty, args...)
		if o.code == 0 {
			c.m.Setenv(faultEnv, "")
			return step
		}
		if !strings.Contains(o.stderr, "step "+strconv.Itoa(step)) {
			c.m.Fatalf("step %d: exit status %d: %s", step, o.code, o.stderr)
		}
		look(step)
	}
}
