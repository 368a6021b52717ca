//go:build device

package devicetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// most is the most that a clone of 1 TiB takes at 64 KiB regions (docs/requirements.md): all that is
// resident, with the program that clones share, and what its control group is charged.
type most struct{ resident, charged int64 }

var (
	mostIdle     = most{30 * harness.MiB, 24 * harness.MiB}
	mostComplete = most{20 * harness.MiB, 14 * harness.MiB}
)

// TestMemoryOfAClone: what a clone takes while nothing is done, by its mappings and by its control
// group, before it is hydrated and when it is complete. What it has taken to hydrate it gives back.
func TestMemoryOfAClone(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	program, err := exec.LookPath(harness.Command)
	if err == nil {
		_, err = os.ReadFile(program) // so that its pages are nobody's of the group: all clones share them
	}
	if err != nil {
		t.Fatal(err)
	}
	c, group := idleClone(m)
	holds(c, group, "idle", mostIdle)
	c.HydrateFast()
	c.WaitHydrated()
	holds(c, group, "complete", mostComplete)
	c.Del()
}

// idleClone adds a clone of 1 TiB at 64 KiB regions, in a control group of its own.
func idleClone(m *harness.Machine) (c *harness.Clone, group string) {
	m.Helper()
	group = filepath.Join(m.MountGroups(), "clone")
	m.WriteFile(filepath.Join(filepath.Dir(group), "cgroup.subtree_control"), "+memory")
	m.Must(m.Try("mkdir", group), "mkdir", group)
	m.Cleanup(func() {
		m.WaitFor(harness.CleanLimit, "the group to be empty", func() error { return os.Remove(group) })
	})
	dest := filepath.Join(m.Ext4Folder(512), "dest") // where direct I/O is real: nothing is copied
	m.MustRun("truncate", "-s", fmt.Sprint(tib), dest)
	c = m.NewClone(m.File("source", tib), &harness.Disk{Path: dest}, m.NullBlk("meta", harness.NullOptions{MiB: 64}), "--region-size", "64KiB", "--no-hydration")
	within := []string{"-c", "echo $$ >" + group + "/cgroup.procs && exec " + harness.Command + ` "$@"`, "sh", "add", c.Name}
	c.Path = harness.Opened(m.MustRun("sh", append(within, c.Args...)...))
	return c, group
}

// holds waits until a clone takes no more than that, and tells what takes it.
func holds(c *harness.Clone, group, what string, most most) {
	c.M.Helper()
	defer func() { c.M.Log(mappings(c)) }()
	c.M.WaitFor(harness.StandLimit, "a clone that is "+what+" to take no more than it should", func() error {
		resident, charged := c.ProcessNumber("VmRSS"), c.M.Number(filepath.Join(group, "memory.current"))
		if resident > most.resident || charged > most.charged {
			return fmt.Errorf("%d KiB are resident, %d KiB are the group's", resident/harness.KiB, charged/harness.KiB)
		}
		c.M.Logf("%s: %d KiB are resident, %d KiB are the group's", what, resident/harness.KiB, charged/harness.KiB)
		return nil
	})
}

// eachMapping calls visit for each mapping of the daemon, with what of it is resident, in bytes
// (proc_pid_smaps(5)).
func eachMapping(c *harness.Clone, visit func(access, name string, resident int64)) {
	c.M.Helper()
	var head []string
	for line := range strings.Lines(c.M.ReadFile(fmt.Sprintf("/proc/%d/smaps", c.Status().PID))) {
		f := strings.Fields(line)
		if !strings.HasSuffix(f[0], ":") {
			head = f
			continue
		}
		if f[0] == "Rss:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			visit(head[1], strings.Join(head[5:], " "), n*harness.KiB)
		}
	}
}

// mappings is a table of what is resident of the daemon, without what is small.
func mappings(c *harness.Clone) string {
	c.M.Helper()
	table := &strings.Builder{}
	eachMapping(c, func(access, name string, resident int64) {
		if resident >= 64*harness.KiB {
			fmt.Fprintf(table, "\n%8d KiB %s %s", resident/harness.KiB, access, name)
		}
	})
	return table.String()
}

// mapMemory is what the daemon's live map takes, in bytes.
func mapMemory(c *harness.Clone) (sum int64) {
	c.M.Helper()
	eachMapping(c, func(_, name string, resident int64) {
		if strings.HasPrefix(name, "/run/ublk-clone-maps/") {
			sum += resident
		}
	})
	return sum
}

// mostIdleCPU is a thousandth of a CPU of 4 GIPS; the counting clock is one of 1 GIPS.
const mostIdleCPU = 0.004

// TestIdleClone: a clone that nobody uses takes next to no CPU, before it is hydrated and when it is
// complete.
func TestIdleClone(t *testing.T) {
	runs.On(t, "6.18", runs.CountingClock, runs.Sampled)
	m := harness.New(t)
	c, _ := idleClone(m)
	pid := c.Status().PID
	idle := func(what string) {
		time.Sleep(25 * time.Second) // until what hydration has needed is given back
		before, from := cpuTime(m, pid), time.Now()
		time.Sleep(20 * time.Second)
		part := float64(cpuTime(m, pid)-before) / float64(time.Since(from))
		t.Logf("%s: %.3f %% of a CPU", what, 100*part)
		if part > mostIdleCPU {
			t.Errorf("a clone that is %s takes %.3f %% of a CPU, at most %.3f %%", what, 100*part, 100*mostIdleCPU)
		}
	}
	idle("idle")
	c.HydrateFast()
	c.WaitHydrated()
	idle("complete")
	c.Del()
}
