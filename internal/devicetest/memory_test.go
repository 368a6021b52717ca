//go:build device

package devicetest

import (
	"errors"
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

// most is the most that a clone takes (docs/requirements.md): all that is resident, with the program
// that clones share, and what its control group is charged.
type most struct{ resident, charged int64 }

var (
	mostIdle      = most{28 * harness.MiB, 22 * harness.MiB}
	mostCopying   = most{60 * harness.MiB, 56 * harness.MiB}
	mostComplete  = most{39 * harness.MiB / 2, 13 * harness.MiB}
	mostDiscarded = most{36 * harness.MiB, 28 * harness.MiB}
)

// TestMemoryOfAClone: what a clone of 1 TiB at 64 KiB regions takes, by its mappings and by its
// control group: before it is hydrated, while it copies, and when it is complete. What it has taken
// to copy it gives back.
func TestMemoryOfAClone(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	c, group := idleClone(m, tib, "64KiB", 64*harness.MiB)
	holds(c, group, "idle", mostIdle)
	m.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.Status().PID), "5") // VmHWM begins anew (proc_pid_clear_refs(5))
	c.HydrateFast()
	c.WaitHydrated()
	tops(c, group, "copying", mostCopying)
	holds(c, group, "complete", mostComplete)
	c.Del()
}

// TestMemoryOfADiscardedClone: a clone of 4 TiB at 4 KiB regions, all of which was discarded, takes no
// more than what it has at the start.
func TestMemoryOfADiscardedClone(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	c, group := idleClone(m, 4*tib, "4KiB", 0)
	v := m.Open(c.Path, os.O_RDWR)
	if err := errors.Join(v.Discard(0, v.Size), v.Flush()); err != nil {
		t.Fatal(err)
	}
	v.Close()
	holds(c, group, "discarded", mostDiscarded)
	c.Del()
}

// idleClone adds a clone of that size and that many bytes of data, in a control group of its own.
func idleClone(m *harness.Machine, size int64, region string, data int64) (c *harness.Clone, group string) {
	m.Helper()
	program, err := exec.LookPath(harness.Command)
	if err == nil {
		_, err = os.ReadFile(program) // so that its pages are nobody's of the group: all clones share them
	}
	if err != nil {
		m.Fatal(err)
	}
	groups, dir := m.MountGroups(), m.Ext4Dir(512) // where direct I/O is real: nothing is copied
	group = filepath.Join(groups, "clone")
	m.WriteFile(filepath.Join(groups, "cgroup.subtree_control"), "+memory")
	m.Must(m.Try("mkdir", group), "mkdir", group)
	m.Cleanup(func() {
		m.WaitFor(harness.CleanLimit, "the group to be empty", func() error { return os.Remove(group) })
	})
	source, dest := m.File("source", size), &harness.Disk{Path: filepath.Join(dir, "dest")}
	m.MustRun("truncate", "-s", fmt.Sprint(size), dest.Path)
	m.FillPart(source, 0, data, harness.Original)
	c = m.NewClone(source, dest, m.NullBlk("meta", harness.NullOptions{MiB: 1024}), "--region-size", region, "--no-hydration")
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

// tops sees that a clone has taken no more than that at any time: all that was resident since its
// VmHWM began anew, and charged since it was added.
func tops(c *harness.Clone, group, what string, most most) {
	c.M.Helper()
	resident, charged := c.ProcessNumber("VmHWM"), c.M.Number(filepath.Join(group, "memory.peak"))
	c.M.Logf("%s: at most %d KiB were resident, %d KiB were the group's", what, resident/harness.KiB, charged/harness.KiB)
	if resident > most.resident || charged > most.charged {
		c.M.Errorf("a clone that is %s is to take at most %d KiB, and its group %d KiB", what, most.resident/harness.KiB, most.charged/harness.KiB)
	}
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

// What a clone takes at most while nothing is done. mostIdleCPU is a thousandth of a CPU of 4 GIPS;
// the counting clock is one of 1 GIPS.
const (
	mostIdleCPU     = 0.004
	mostIdleWakeUps = 30 // in a second
	mostIdleThreads = 26 // the kernel's workers for its rings among them
)

// activity is what a process has done so far, in all of its threads.
type activity struct {
	cpu     time.Duration
	wakeUps int64
	threads int
}

func activityOf(m *harness.Machine, pid int) (a activity) {
	m.Helper()
	a.cpu = cpuTime(m, pid)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid)) // cpuTime has seen that there are some
	a.threads = len(tasks)
	for _, path := range tasks {
		for line := range strings.Lines(m.ReadFile(path)) {
			if rest, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
				a.wakeUps += n
			}
		}
	}
	return a
}

// rests sees that none of these processes does more than it should while nothing is done.
func rests(m *harness.Machine, what string, pids ...int) {
	m.Helper()
	time.Sleep(25 * time.Second) // until what was needed for a while is given back
	before, from := make([]activity, len(pids)), time.Now()
	for i, pid := range pids {
		before[i] = activityOf(m, pid)
	}
	time.Sleep(20 * time.Second)
	var cpu, wakeUps, mostCPU, mostWakeUps float64
	threads, mostThreads := 0, 0
	for i, pid := range pids {
		now, took := activityOf(m, pid), time.Since(from)
		part, often := float64(now.cpu-before[i].cpu)/float64(took), float64(now.wakeUps-before[i].wakeUps)/took.Seconds()
		cpu, wakeUps, threads = cpu+part, wakeUps+often, threads+now.threads
		mostCPU, mostWakeUps, mostThreads = max(mostCPU, part), max(mostWakeUps, often), max(mostThreads, now.threads)
	}
	m.Logf("%s: %.3f %% of a CPU, %.1f wake-ups in a second, %d threads; the busiest of %d: %.3f %%, %.1f, %d",
		what, 100*cpu, wakeUps, threads, len(pids), 100*mostCPU, mostWakeUps, mostThreads)
	if mostCPU > mostIdleCPU || mostWakeUps > mostIdleWakeUps || mostThreads > mostIdleThreads {
		m.Errorf("a clone that is %s is to take at most %.3f %% of a CPU, %d wake-ups in a second and %d threads", what, 100*mostIdleCPU, mostIdleWakeUps, mostIdleThreads)
	}
}

// TestIdleClone: a clone that nobody uses takes next to no CPU, before it is hydrated and when it is
// complete.
func TestIdleClone(t *testing.T) {
	runs.On(t, "6.18", runs.CountingClock, runs.Sampled)
	m := harness.New(t)
	c, _ := idleClone(m, tib, "64KiB", 0)
	rests(m, "idle", c.Status().PID)
	c.HydrateFast()
	c.WaitHydrated()
	rests(m, "complete", c.Status().PID)
	c.Del()
}

// TestIdleClones: nor does any of twenty clones, or of six without FULL.
func TestIdleClones(t *testing.T) {
	runs.On(t, "6.18", runs.CountingClock, runs.Sampled)
	m := harness.New(t)
	h := newHerd(m, harness.Count(6, 20))
	h.add()
	rests(m, "idle", h.pids()...)
	h.hydrate()
	rests(m, "complete", h.pids()...)
	h.del()
}
