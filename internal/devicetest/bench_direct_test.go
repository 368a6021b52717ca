//go:build device

package devicetest

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/bench"
	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A layer that leads what is hydrated straight to the destination: requests in both halves of a
// clone of which one is hydrated, fsync, and devices as fast as memory.

// directDisks are benchDisks whose SSD takes discards, as direct extents want it.
func directDisks(m *harness.Machine, source, dest harness.NullOptions) disks {
	m.Helper()
	dest.Discard = true
	d := disks{m.NullBlk("src", source), m.NullBlk("dst", dest), m.NullBlk("meta", ssd.Sized(benchMetadata))}
	if dest.MBps > 0 { // one larger than what is granted at a time never ends (boundRequests)
		m.WriteFile(filepath.Join("/sys/block", d.dest.Name, "queue/discard_max_bytes"), strconv.FormatInt(32*harness.KiB, 10))
	}
	fio(m, d.source.Path, job{rw: "write", bs: harness.MiB, depth: 4})
	fio(m, d.dest.Path, job{rw: "write", bs: harness.MiB, depth: 4})
	return d
}

// candidatesOf are those of the names; dm-clone only where the kernel has it.
func candidatesOf(m *harness.Machine, d disks, names ...string) []*candidate {
	var all []*candidate
	for _, name := range names {
		if name != bench.DMClone || m.HasKernelClone() {
			all = append(all, &candidate{m: m, name: name, disks: d, region: 4 * harness.KiB})
		}
	}
	return all
}

// startHalf brings one up whose first half is hydrated, and direct where it may be.
func (c *candidate) startHalf() {
	c.m.Helper()
	c.start()
	half := c.disks.source.Size / 2
	fio(c.m, c.path, job{rw: "write", bs: harness.MiB, depth: 4, size: half})
	if c.name == bench.Direct {
		c.waitDirect(half)
	}
}

// waitDirect waits until so much is direct, but for the last unit.
func (c *candidate) waitDirect(bytes int64) {
	c.m.Helper()
	c.m.WaitFor(directLimit, fmt.Sprintf("%d bytes to be direct", bytes), func() error {
		if n := c.clone.Status().Bytes.Direct; n < bytes-harness.MiB {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
}

// within puts jobs, the first of the published ones, into an area.
func within(jobs []job, first, size int64) []job {
	all := everywhere(jobs)
	for i := range all {
		all[i].first, all[i].size = first, size
	}
	return all
}

// otherJobs are the jobs in the half that is not hydrated, each on regions that no other has
// touched. Writes have room for what is written in the time.
func otherJobs(size int64) []job {
	jobs, part := publishedJobs(size, 4*harness.KiB), size/2/20/harness.MiB*harness.MiB
	at := func(j job, first, parts int64) job {
		j.first, j.size = size/2+first*part, parts*part
		return j
	}
	sequential := jobs[4]
	sequential.ramp, sequential.run = rampTime/2, runTime/2
	return []job{at(jobs[1], 0, 2), at(jobs[3], 2, 2), at(jobs[0], 4, 1), at(jobs[2], 5, 6), at(sequential, 11, 9)}
}

// TestBenchDirect: requests in both halves.
func TestBenchDirect(t *testing.T) {
	runs.On(t, "6.18", runs.Bench)
	m := harness.New(t)
	size := benchSize()
	d := directDisks(m, hdd.Sized(size/harness.MiB), ssd.Sized(size/harness.MiB))
	inHalf := within(publishedJobs(size, 4*harness.KiB)[:5], 0, size/2)
	for n := range repetitions() {
		if n == 0 && !quick() {
			measure(m, d.dest.Path, bench.Key{Candidate: bench.RawDest, State: bench.HydratedHalf}, inHalf)
		}
		for _, c := range candidatesOf(m, d, bench.DMClone, bench.Ours, bench.Layered, bench.Direct) {
			if c.name == bench.Ours && (n > 0 || quick()) {
				continue // no goal is about it
			}
			c.startHalf()
			measure(m, c.path, c.key(bench.HydratedHalf, "", ""), inHalf)
			if c.hasLayer() {
				measure(m, c.path, c.key(bench.OtherHalf, "", ""), otherJobs(size))
			}
			c.stop()
			if c.name == bench.Direct || c.name != bench.Ours && !quick() {
				besideHydration(c)
			}
		}
	}
}

// besideHydration measures a reader of the hydrated half, alone and while the other is hydrated.
func besideHydration(c *candidate) {
	c.m.Helper()
	reader := func(hydration bool) []job {
		return []job{{
			name: bench.Reader(1, hydration), rw: "randread", bs: 4 * harness.KiB, depth: 1, size: c.disks.source.Size / 2, ramp: rampTime,
			run: time.Duration(slowdown) * runTime,
		}}
	}
	c.startHalf()
	measure(c.m, c.path, c.key(bench.HydratedHalf, "", ""), reader(false))
	c.hydrate()
	measure(c.m, c.path, c.key(bench.HydratedHalf, "", ""), reader(true))
	c.stop()
}

// durableSize is of the devices to which writes are durable.
const durableSize = 256 * harness.MiB

// TestBenchDurable: writes and fsync.
func TestBenchDurable(t *testing.T) {
	runs.On(t, "6.18", runs.Bench)
	m := harness.New(t)
	volatileSSD := ssd.Sized(durableSize / harness.MiB)
	volatileSSD.Cache = 64
	d := directDisks(m, hdd.Sized(durableSize/harness.MiB), volatileSSD)
	for n := range repetitions() {
		if n == 0 {
			raw := &candidate{m: m, name: bench.RawDest, disks: d, path: d.dest.Path}
			raw.durable()
		}
		for _, c := range candidatesOf(m, d, bench.DMClone, bench.Ours, bench.Direct, bench.Finished) {
			if c.name == bench.Direct {
				c.startHalf()
			} else {
				c.start()
				c.writeAll()
			}
			if c.name == bench.Finished {
				m.MustRun(harness.Command, "finish", c.clone.Name)
			}
			c.durable()
			c.stop()
		}
	}
}

// durable measures writes with fsync, of the device and of a file on it.
func (c *candidate) durable() {
	c.m.Helper()
	j := job{rw: "randwrite", bs: 4 * harness.KiB, depth: 1, run: runTime, fsync: true, size: 24 * harness.MiB}
	c.fsyncs(c.path, j, bench.FsyncDevice)
	c.m.MustRun("mkfs.ext4", "-q", "-F", "-E", "nodiscard", c.path)
	dir := filepath.Join(c.m.Dir, "durable")
	c.m.MustRun("mkdir", "--parents", dir)
	c.m.MustRun("mount", c.path, dir)
	c.fsyncs(filepath.Join(dir, "file"), j, bench.FsyncExt4)
	c.m.MustRun("umount", dir)
}

// fsyncs measures one of both: how many a second, and how many flushes of the destination each
// takes. What warms up is a job of its own, which lays out a file first.
func (c *candidate) fsyncs(path string, j job, name string) {
	c.m.Helper()
	warm := j
	warm.run = rampTime
	fio(c.m, path, warm)
	before := c.disks.dest.Traffic()
	done := fio(c.m, path, j)[0].Write
	flushes := c.disks.dest.Traffic().Since(before).Flushes
	k := c.key("", name, bench.IOPS)
	figure(c.m, k, done.IOPS)
	k.Unit = bench.Flushes
	figure(c.m, k, float64(flushes)/(done.IOPS*j.run.Seconds()))
}

// fastSize is of the fast devices.
const fastSize = 256 * harness.MiB

// Times of a job on a fast device, which leaves the CPU no time to wait.
const (
	fastRamp = 200 * time.Millisecond
	fastTime = 500 * time.Millisecond
)

// TestBenchFast: devices that leave only the CPU to wait for.
func TestBenchFast(t *testing.T) {
	runs.On(t, "6.18", runs.Bench)
	for _, kind := range []struct {
		name    string
		options harness.NullOptions
	}{
		{bench.AtOnce, harness.NullOptions{}},
		{bench.After, harness.NullOptions{Latency: time.Duration(slowdown) * 10 * time.Microsecond, Depth: 1024}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			m := harness.New(t)
			d := directDisks(m, kind.options.Sized(fastSize/harness.MiB), kind.options.Sized(fastSize/harness.MiB))
			jobs := fastJobs()
			measure(m, d.dest.Path, bench.Key{Candidate: bench.RawDest, State: bench.HydratedHalf, Setting: kind.name}, jobs)
			for _, c := range candidatesOf(m, d, bench.DMClone, bench.Ours, bench.Layered, bench.Direct) {
				c.setting = kind.name
				c.startHalf()
				measure(m, c.path, c.key(bench.HydratedHalf, "", ""), jobs)
				c.stop()
			}
		})
	}
}

func fastJobs() []job {
	jobs := within(publishedJobs(fastSize, 4*harness.KiB), 0, fastSize/2)
	for _, rw := range []string{"write", "read"} {
		jobs = append(jobs, job{rw: rw, bs: harness.MiB, depth: 32, size: fastSize / 2})
	}
	for i := range jobs {
		jobs[i].ramp, jobs[i].run = fastRamp, fastTime
	}
	return jobs
}
