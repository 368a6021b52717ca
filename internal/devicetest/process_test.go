//go:build device

package devicetest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The daemon as a process: what it owes to whoever frees memory by writing to its device (I9).

// thread is one of a process, as /proc/PID/task/TID/stat shows it.
type thread struct {
	id           int
	name         string
	flags        uint64
	minor, major int64 // page faults
}

// readThread reads a stat file.
func readThread(path string) (t thread, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return t, err
	}
	head, tail, _ := strings.Cut(string(text), " (")
	end := strings.LastIndexByte(tail, ')')
	f := strings.Fields(tail[end+1:]) // from the state on, which is field 3 (proc_pid_stat(5))
	t.name = tail[:end]
	for _, field := range []struct {
		from string
		to   any
	}{{head, &t.id}, {f[6], &t.flags}, {f[7], &t.minor}, {f[9], &t.major}} {
		if _, err := fmt.Sscan(field.from, field.to); err != nil {
			return t, fmt.Errorf("%s: %w", path, err)
		}
	}
	return t, nil
}

// threads are those of the clone's daemon, by their number. One that ends meanwhile is left out.
func (c *clone) threads() map[int]thread {
	c.m.Helper()
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", c.status().PID))
	all := map[int]thread{}
	for _, path := range paths {
		if t, err := readThread(path); err == nil {
			all[t.id] = t
		}
	}
	if len(all) == 0 {
		c.m.Fatal("the daemon has no threads")
	}
	return all
}

// flusherFlags are the bits that PR_SET_IO_FLUSHER sets in the flags of a thread, found by setting it.
func flusherFlags(t *testing.T) uint64 {
	t.Helper()
	result := make(chan uint64)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		self := fmt.Sprintf("/proc/self/task/%d/stat", unix.Gettid())
		before, _ := readThread(self)
		_ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
		after, _ := readThread(self)
		result <- after.flags &^ before.flags
	}()
	bits := <-result
	if bits == 0 {
		t.Fatal("PR_SET_IO_FLUSHER changes nothing: the test shows nothing")
	}
	return bits
}

// processNumber reads a line "NAME: N kB" of /proc/PID/status, in bytes.
func (c *clone) processNumber(name string) int64 {
	c.m.Helper()
	for line := range strings.Lines(c.m.readFile(fmt.Sprintf("/proc/%d/status", c.status().PID))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n * kib
		}
	}
	c.m.Fatalf("the daemon's status has no %s", name)
	return 0
}

// unlocked are the mappings of the daemon that the kernel may swap out: private, writable and not locked. What may
// be dropped (dp), as the state of the vDSO's random numbers, is not waited for.
func (c *clone) unlocked() (found []string) {
	c.m.Helper()
	var area string
	for line := range strings.Lines(c.m.readFile(fmt.Sprintf("/proc/%d/smaps", c.status().PID))) {
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

// TestDaemonUnderMemoryPressure: every thread of a daemon, those of the kernel's workers included, is one that
// memory reclaim does not wait for, its memory is locked, and it is not killed for memory.
func TestDaemonUnderMemoryPressure(t *testing.T) {
	runs.On(t, "6.12", "7.3")
	m := newMachine(t)
	flusher := flusherFlags(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 32}), m.nullBlk("dst", nullOptions{mib: 32})
	m.fillDisk(source, original)
	c := m.addClone(source, dest, m.missing("meta"))
	w := newModel(32*mib, 4*kib)
	w.run(m, m.random(), c.path, load{threads: 4, requests: 20, block: sector, kinds: everything})
	for _, th := range c.threads() {
		if th.flags&flusher != flusher {
			t.Errorf("thread %d (%s) has flags %#x and is no I/O flusher, %#x", th.id, th.name, th.flags, flusher)
		}
	}
	if got := strings.TrimSpace(m.readFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.status().PID))); got != "-1000" {
		t.Errorf("oom_score_adj is %s", got)
	}
	for _, area := range c.unlocked() {
		t.Errorf("not locked: %s", area)
	}
	locked, resident := c.processNumber("VmLck"), c.processNumber("VmRSS")
	t.Logf("%d threads, %d KiB locked, %d resident", len(c.threads()), locked/kib, resident/kib)
	if locked < resident/2 || resident < 32*mib {
		t.Errorf("%d bytes are locked, %d resident", locked, resident)
	}
	c.del()
}

// TestNoPageFaults: no thread that serves requests has a page fault, from the first request of a new clone on, and
// no thread at all has one that waits for a device. Meanwhile the kernel joins pages to huge ones wherever it may.
func TestNoPageFaults(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	rng := m.random()
	const size = 64 * mib
	source, dest := m.nullBlk("src", nullOptions{mib: size / mib}), m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(source, original)
	// Huge pages that are there from the start would hurt nobody. They are split, as when memory comes in pieces,
	// for the kernel to join; of a process that began while it might not, it would not even look.
	m.hugePages("enabled", "always")
	c := m.addClone(source, dest, m.missing("meta"), "--queues", "2", "--no-hydration")
	t.Logf("%d KiB resident", c.processNumber("VmRSS")/kib)
	m.writeFile("/sys/kernel/debug/split_huge_pages", "1")
	m.hugePages("khugepaged/scan_sleep_millisecs", "10")
	m.hugePages("khugepaged/pages_to_scan", "100000")
	w := newModel(size, 4*kib)
	w.set(0, size, original)
	requests := load{threads: 4, sequential: 2, requests: count(100, 2000), block: sector, kinds: everything}
	for _, when := range []string{"new", "hydrating", "warm"} {
		before := c.threads()
		w.run(m, rng, c.path, requests)
		c.checkFaults(when, before)
		c.hydrateSlowly()
	}
	w.check(m, c.path)
	c.del()
}

// hugePages changes a setting of transparent huge pages until the test has ended.
func (m *machine) hugePages(name, value string) {
	m.Helper()
	path := filepath.Join("/sys/kernel/mm/transparent_hugepage", name)
	was := strings.TrimSpace(m.readFile(path))
	if _, chosen, ok := strings.Cut(was, "["); ok { // "always [madvise] never"
		was, _, _ = strings.Cut(chosen, "]")
	}
	m.writeFile(path, value)
	m.Cleanup(func() { m.writeFile(path, was) })
}

// checkFaults fails the test if the daemon has had page faults since before that it must not have.
func (c *clone) checkFaults(when string, before map[int]thread) {
	c.m.Helper()
	queues, others := 0, int64(0)
	for id, th := range c.threads() {
		minor, major := th.minor-before[id].minor, th.major-before[id].major
		serves := strings.HasPrefix(th.name, "queue ")
		if serves {
			queues++
		} else {
			others += minor
		}
		if major > 0 || serves && minor > 0 {
			c.m.Errorf("%s: thread %d (%s): %d page faults that wait for a device, %d others", when, id, th.name, major, minor)
		}
	}
	c.m.Logf("%s: %d queues, no page fault there; %d in the other threads", when, queues, others)
	if queues == 0 {
		c.m.Error("no thread is a queue's: the test shows nothing")
	}
}
