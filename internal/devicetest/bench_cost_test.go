//go:build device

package devicetest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/bench"
	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// What a request costs. On the counting clock CPU time is instructions, of all that the guest has
// to do for it.

// window is a stretch of time whose use of the CPU is looked at.
type window struct {
	m    *harness.Machine
	from time.Time
	idle time.Duration
}

func startWindow(m *harness.Machine) window {
	m.Helper()
	return window{m: m, idle: idleTimeOf(m), from: time.Now()}
}

// end is how long the window was, and how long the CPUs were busy in it.
func (w window) end() (took, busy time.Duration) {
	w.m.Helper()
	took = time.Since(w.from)
	cpus, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/topology")
	return took, took*time.Duration(max(1, len(cpus))) - (idleTimeOf(w.m) - w.idle)
}

// idleLine is in /proc/timer_list, for each CPU: exact, where /proc/stat has hundredths of a
// second. 7.3 has no such line.
var idleLine = regexp.MustCompile(`(?m)^\s*\.(?:idle|iowait)_sleeptime\s*:\s*(\d+) nsecs`)

// idleTime of all CPUs since the start.
func idleTimeOf(m *harness.Machine) time.Duration {
	m.Helper()
	var sum time.Duration
	found := idleLine.FindAllStringSubmatch(m.ReadFile("/proc/timer_list"), -1)
	for _, match := range found {
		ns, _ := strconv.ParseInt(match[1], 10, 64)
		sum += time.Duration(ns)
	}
	if len(found) > 0 {
		return sum
	}
	var user, nice, system, idle, wait int64 // hundredths of a second
	if _, err := fmt.Sscanf(m.ReadFile("/proc/stat"), "cpu %d %d %d %d %d", &user, &nice, &system, &idle, &wait); err != nil {
		m.Fatalf("/proc/stat: %v", err)
	}
	return time.Duration(idle+wait) * 10 * time.Millisecond
}

// threadTime is what the threads of a process have run, those of the kernel that work for it
// included. One that ends meanwhile, as those of the kernel do when they are idle, is left out.
func threadTime(pid int) (sum time.Duration) {
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, path := range paths {
		var ns int64
		if text, err := os.ReadFile(path); err != nil {
			continue
		} else if _, err := fmt.Sscan(string(text), &ns); err != nil {
			panic(fmt.Sprintf("%s: %q: %v", path, text, err))
		}
		sum += time.Duration(ns)
	}
	return sum
}

// cost of a request.
type cost struct {
	all, daemon float64 // nanoseconds of CPU time
	calls       float64 // system calls of the daemon
	enters      float64 // io_uring_enter among them
}

// Parts of a job's run: what a request costs is the median of several, as now and then the kernel
// does other things too.
const (
	costParts = 5
	costPart  = 500 * time.Millisecond
)

// costOf measures a request of a job, in parts of its run: starting fio costs more than what it
// does. With calls the daemon's system calls are counted in a part of their own: the count takes
// time.
func (c *candidate) costOf(j job, calls bool) cost {
	c.m.Helper()
	var of cost
	used := func() time.Duration { return 0 }
	if c.clone != nil {
		pid := c.clone.Status().PID // to ask for it within a part would count
		used = func() time.Duration { return threadTime(pid) }
	}
	c.inRun(j, func() {
		var all, daemon []float64
		for range costParts {
			before, requests, w := used(), c.countRequests(), startWindow(c.m)
			time.Sleep(costPart)
			_, busy := w.end()
			n := requests()
			all, daemon = append(all, float64(busy.Nanoseconds())/n), append(daemon, float64((used()-before).Nanoseconds())/n)
		}
		of.all, of.daemon = median(all), median(daemon)
		if calls && c.clone != nil {
			requests, count := c.countRequests(), countCalls(c.m)
			time.Sleep(2 * costPart)
			all, enters := count(c.clone)
			n := requests()
			of.calls, of.enters = all/n, enters/n
		}
	})
	return of
}

// countRequests of the device: what it returns is how many have ended since.
func (c *candidate) countRequests() func() float64 {
	c.m.Helper()
	from := c.traffic()
	return func() float64 {
		now := c.traffic().Since(from)
		return float64(max(1, now.Reads+now.Writes))
	}
}

// inRun calls do when the job has warmed up.
func (c *candidate) inRun(j job, do func()) {
	c.m.Helper()
	fio := startFio(c.m, c.path, j)
	time.Sleep(j.ramp)
	do()
	fio.result()
}

// Tracing counts system calls by thread and number, in the kernel.
const (
	callsTrigger = "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/trigger"
	callsHist    = "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/hist"
	callsCounted = "hist:keys=common_pid,id:size=4096"
	uringEnter   = 426 // io_uring_enter, on all architectures
)

var callsLine = regexp.MustCompile(`\{ common_pid:\s*(\d+), id:\s*(\d+) \} hitcount:\s*(\d+)`)

// countCalls begins to count; what it returns ends it, and says how many were the daemon's.
func countCalls(m *harness.Machine) func(c *harness.Clone) (all, enters float64) {
	m.Helper()
	m.WriteFile(callsTrigger, callsCounted)
	return func(c *harness.Clone) (all, enters float64) {
		m.Helper()
		text := m.ReadFile(callsHist)
		m.WriteFile(callsTrigger, "!"+callsCounted)
		threads := c.Threads()
		for _, match := range callsLine.FindAllStringSubmatch(text, -1) {
			id, _ := strconv.Atoi(match[1])
			call, _ := strconv.Atoi(match[2])
			n, _ := strconv.ParseFloat(match[3], 64)
			if _, its := threads[id]; !its {
				continue
			}
			all += n
			if call == uringEnter {
				enters += n
			}
		}
		if all == 0 {
			m.Fatal("no system call of the daemon was counted")
		}
		return all, enters
	}
}

// costJob at depth 32.
func costJob(kind, rw string, first, size int64) job {
	return job{name: kind, rw: rw, bs: 4 * harness.KiB, depth: 32, first: first, size: size, ramp: rampTime, run: (costParts + 3) * costPart}
}

// recordCost measures and prints.
func (c *candidate) recordCost(state string, j job) {
	c.m.Helper()
	of := c.costOf(j, true)
	figure(c.m, c.key(state, j.name, bench.Cost), of.all)
	if c.clone == nil {
		return
	}
	figure(c.m, c.key(state, j.name, bench.Daemon), of.daemon)
	if of.calls > 0 {
		figure(c.m, c.key(state, j.name, bench.Calls), of.calls)
	}
}

// TestBenchCost: CPU time of a request by kind, for all.
func TestBenchCost(t *testing.T) {
	runs.On(t, "6.18", runs.Bench)
	m := harness.New(t)
	size := benchSize()
	d := benchDisks(m, "", size)
	unit := size / 48
	for _, c := range clones(m, d, 4*harness.KiB) {
		c.start()
		c.recordCost(bench.Unhydrated, costJob(bench.KindSourceRead, "randread", 0, 8*unit))
		c.recordCost(bench.Unhydrated, costJob(bench.KindWholeRegion, "randwrite", 16*unit, 32*unit))
		c.stop()
		c.region = 8 * harness.KiB
		c.start()
		c.recordCost(bench.Unhydrated, costJob(bench.KindPartOf, "randwrite", 0, 16*unit))
		c.stop()
		c.region = 4 * harness.KiB
	}
	small := benchDisks(m, "small", hydratedSize)
	read, write := costJob(bench.KindRead, "randread", 0, 0), costJob(bench.KindWrite, "randwrite", 0, 0)
	for _, raw := range []candidate{{m: m, name: bench.RawDest, path: small.dest.Path}, {m: m, name: bench.RawSource, path: small.source.Path}} {
		raw.recordCost("", read)
		raw.recordCost("", write)
	}
	for _, c := range clones(m, small, 4*harness.KiB) {
		c.start()
		c.writeAll()
		c.recordCost(bench.Hydrated, read)
		c.recordCost(bench.Hydrated, write)
		c.stop()
	}
}

// recorded is what TestBenchCounts compares with, by kernel, at S=1: what it prints where a change
// is meant. The CPU is busy all the time there, and the figures repeat: CPU time within 0.3 %,
// system calls within 4 % of these (6.18). At S=4, where it waits, one request finds another to
// share a system call with or not, for a whole run: 1.26 to 1.67 a request.
var recorded = map[string]counts{
	"6.18": {read: 1.455, write: 1.450, readCalls: 0.255, writeCalls: 0.264},
}

// counts of a hydrated clone at depth 32.
type counts struct {
	read, write           float64 // CPU time of a request, to that of dm-clone's
	readCalls, writeCalls float64 // system calls of the daemon for a request
}

// By how much they may differ from what is recorded.
const (
	costTolerance  = 0.05
	callsTolerance = 0.10
)

// TestBenchCounts: what a request costs on a hydrated clone is what it cost when it was last looked
// at.
func TestBenchCounts(t *testing.T) {
	runs.On(t, "6.18", runs.LeapingClock, runs.FastDevices)
	m := harness.New(t)
	if slowdown != 1 {
		t.Fatal("recorded at S=1: needs BENCH_S=1")
	}
	d := benchDisks(m, "", hydratedSize)
	read, write := costJob(bench.KindRead, "randread", 0, 0), costJob(bench.KindWrite, "randwrite", 0, 0)
	all := clones(m, d, 4*harness.KiB)
	if len(all) < 2 {
		t.Fatal("this kernel has no dm-clone to compare with")
	}
	var passes []counts
	for range 3 {
		var pair [2][2]cost // of dm-clone and ours, a read and a write
		for i, c := range all {
			c.start()
			c.writeAll()
			pair[i] = [2]cost{c.costOf(read, true), c.costOf(write, true)}
			c.stop()
			t.Logf("%s: a read %+v, a write %+v", c.name, pair[i][0], pair[i][1])
		}
		kernel, ours := pair[0], pair[1]
		passes = append(passes, counts{ours[0].all / kernel[0].all, ours[1].all / kernel[1].all, ours[0].calls, ours[1].calls})
	}
	compareCounts(m, medianCounts(passes))
}

// medianCounts of several.
func medianCounts(all []counts) counts {
	of := func(field func(counts) float64) float64 {
		var values []float64
		for _, c := range all {
			values = append(values, field(c))
		}
		return median(values)
	}
	return counts{
		read: of(func(c counts) float64 { return c.read }), write: of(func(c counts) float64 { return c.write }),
		readCalls: of(func(c counts) float64 { return c.readCalls }), writeCalls: of(func(c counts) float64 { return c.writeCalls }),
	}
}

// compareCounts with what is recorded.
func compareCounts(m *harness.Machine, got counts) {
	m.Helper()
	release := kernelRelease(m)
	m.Logf("%q: {read: %.3f, write: %.3f, readCalls: %.3f, writeCalls: %.3f},", release, got.read, got.write, got.readCalls, got.writeCalls)
	want, known := recorded[release]
	if !known {
		m.Errorf("nothing is recorded for kernel %s", release)
		return
	}
	for _, c := range []struct {
		what                 string
		got, want, tolerance float64
	}{
		{"CPU time of a read, to dm-clone's", got.read, want.read, costTolerance},
		{"CPU time of a write, to dm-clone's", got.write, want.write, costTolerance},
		{"system calls for a read", got.readCalls, want.readCalls, callsTolerance},
		{"system calls for a write", got.writeCalls, want.writeCalls, callsTolerance},
	} {
		if c.got < c.want*(1-c.tolerance) || c.got > c.want*(1+c.tolerance) {
			m.Errorf("%s: %.3f, recorded is %.3f within %.0f %%: if that is meant, record it", c.what, c.got, c.want, 100*c.tolerance)
		}
	}
}
