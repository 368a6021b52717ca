//go:build device

package devicetest

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// flusherFlags are the bits that PR_SET_IO_FLUSHER sets in the flags of a thread, found by setting
// it.
func flusherFlags(t *testing.T) uint64 {
	t.Helper()
	result := make(chan uint64)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		self := fmt.Sprintf("/proc/self/task/%d/stat", unix.Gettid())
		_ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0) // the first use of a privilege sets a flag of its own
		before, _ := harness.ReadThread(self)
		_ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
		after, _ := harness.ReadThread(self)
		result <- after.Flags &^ before.Flags
	}()
	bits := <-result
	if bits == 0 {
		t.Fatal("PR_SET_IO_FLUSHER changes nothing: the test shows nothing")
	}
	return bits
}

// unlocked are the mappings of the daemon that the kernel may swap out: private, writable and not
// locked. What may be dropped (dp), as the state of the vDSO's random numbers, is not waited for.
func unlocked(c *harness.Clone) (found []string) {
	c.M.Helper()
	var area string
	for line := range strings.Lines(c.M.ReadFile(fmt.Sprintf("/proc/%d/smaps", c.Status().PID))) {
		f := strings.Fields(line)
		switch {
		case !strings.HasSuffix(f[0], ":"):
			area = strings.TrimSpace(line)
		case f[0] == "VmFlags:" && strings.Contains(area, " rw-p ") && !slices.Contains(f, "lo") && !slices.Contains(f, "dp"):
			found = append(found, area)
		}
	}
	return found
}

// TestDaemonUnderMemoryPressure: every thread of a daemon, those of the kernel's workers included,
// is one that memory reclaim does not wait for, its memory is locked, and it is not killed for
// memory.
func TestDaemonUnderMemoryPressure(t *testing.T) {
	runs.On(t, "6.12", "7.3")
	m := harness.New(t)
	flusher := flusherFlags(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 32}), m.NullBlk("dst", harness.NullOptions{MiB: 32})
	m.FillDisk(source, harness.Original)
	c := m.AddClone(source, dest, m.Missing("meta"))
	w := harness.NewModel(32*harness.MiB, 4*harness.KiB)
	w.Run(m, m.Random(), c.Path, harness.Load{Threads: 4, Requests: 20, Block: harness.Sector, Kinds: harness.Everything})
	for _, th := range c.Threads() {
		if th.Flags&flusher != flusher {
			t.Errorf("thread %d (%s) has flags %#x and is no I/O flusher, %#x", th.ID, th.Name, th.Flags, flusher)
		}
	}
	if got := strings.TrimSpace(m.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.Status().PID))); got != "-1000" {
		t.Errorf("oom_score_adj is %s", got)
	}
	for _, area := range unlocked(c) {
		t.Errorf("not locked: %s", area)
	}
	locked, resident := c.ProcessNumber("VmLck"), c.ProcessNumber("VmRSS")
	t.Logf("%d threads, %d KiB locked, %d resident", len(c.Threads()), locked/harness.KiB, resident/harness.KiB)
	if locked < resident/2 || resident < 16*harness.MiB {
		t.Errorf("%d bytes are locked, %d resident", locked, resident)
	}
	c.Del()
}

// TestNoPageFaults: no thread that serves requests has a page fault, from the first request of a
// new clone on, and no thread at all has one that waits for a device. Meanwhile the kernel joins
// pages to huge ones wherever it may.
func TestNoPageFaults(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	rng := m.Random()
	const size = 64 * harness.MiB
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	// Huge pages that are there from the start would hurt nobody. They are split, as when memory
	// comes in pieces, for the kernel to join; of a process that began while it might not, it would
	// not even look.
	hugePages(m, "enabled", "always")
	c := m.AddClone(source, dest, m.Missing("meta"), "--queues", "2", "--no-hydration")
	t.Logf("%d KiB resident", c.ProcessNumber("VmRSS")/harness.KiB)
	if status := m.ReadFile(fmt.Sprintf("/proc/%d/status", c.Status().PID)); !strings.Contains(status, "\nTHP_enabled:\t0\n") {
		t.Errorf("the kernel may join the daemon's pages:\n%s", status) // though it may find none to join
	}
	m.WriteFile("/sys/kernel/debug/split_huge_pages", "1")
	hugePages(m, "khugepaged/scan_sleep_millisecs", "10")
	hugePages(m, "khugepaged/pages_to_scan", "100000")
	w := harness.NewModel(size, 4*harness.KiB)
	w.Set(0, size, harness.Original)
	requests := harness.Load{Threads: 4, Sequential: 2, Requests: harness.Count(100, 2000), Block: harness.Sector, Kinds: harness.Everything}
	for _, when := range []string{"new", "hydrating", "warm"} {
		before := c.Threads()
		w.Run(m, rng, c.Path, requests)
		checkFaults(c, when, before)
		c.HydrateSlowly()
	}
	w.Check(m, c.Path)
	c.Del()
}

// hugePages changes a setting of transparent huge pages until the test has ended.
func hugePages(m *harness.Machine, name, value string) {
	m.Helper()
	path := filepath.Join("/sys/kernel/mm/transparent_hugepage", name)
	was := strings.TrimSpace(m.ReadFile(path))
	if _, chosen, ok := strings.Cut(was, "["); ok { // "always [madvise] never"
		was, _, _ = strings.Cut(chosen, "]")
	}
	m.WriteFile(path, value)
	m.Cleanup(func() { m.WriteFile(path, was) })
}

// checkFaults fails the test if the daemon has had page faults since before that it must not have.
func checkFaults(c *harness.Clone, when string, before map[int]harness.Thread) {
	c.M.Helper()
	queues, others := 0, int64(0)
	for id, th := range c.Threads() {
		minor, major := th.Minor-before[id].Minor, th.Major-before[id].Major
		serves := strings.HasPrefix(th.Name, "queue ")
		if serves {
			queues++
		} else {
			others += minor
		}
		if major > 0 || serves && minor > 0 {
			c.M.Errorf("%s: thread %d (%s): %d page faults that wait for a device, %d others", when, id, th.Name, major, minor)
		}
	}
	c.M.Logf("%s: %d queues, no page fault there; %d in the other threads", when, queues, others)
	if queues == 0 {
		c.M.Error("no thread is a queue's: the test shows nothing")
	}
}
