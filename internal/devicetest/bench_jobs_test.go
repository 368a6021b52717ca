//go:build device

package devicetest

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/bench"
	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The jobs of dm-clone's published figures: unhydrated regions of 4 to 128 KiB, hydrated clones,
// raw devices.

// Sizes of the devices, by the slowdown: a clone has room for all jobs one after the other, each on
// regions that no other has touched, and memory for all of it (scripts/bench).
func benchSize() int64 {
	return map[bool]int64{true: 1536 * harness.MiB, false: 768 * harness.MiB}[slowdown < 4]
}

// hydratedSize is of the devices of hydrated clones and of the raw ones.
const hydratedSize = 128 * harness.MiB

// publishedJobs are the six jobs, each on its own area of a device of that size: reads in the first
// third, then writes. Areas of writes are as large as what can be written in the time. Where a
// write takes a whole region with it that is less, of larger regions, of which there must be enough
// for few writes to find one that is hydrated already.
func publishedJobs(size, region int64) []job {
	unit := size / 48
	latency, rate := job{first: 16 * unit, size: 2 * unit}, job{first: 18 * unit, size: 14 * unit}
	if region > 4*harness.KiB {
		latency, rate = job{first: 16 * unit, size: 16 * unit}, job{first: 32 * unit, size: 16 * unit}
	}
	return []job{
		{rw: "randwrite", bs: 4 * harness.KiB, depth: 1, first: latency.first, size: latency.size, ramp: rampTime, run: runTime},
		{rw: "randread", bs: 4 * harness.KiB, depth: 1, first: 0, size: 4 * unit, ramp: rampTime, run: runTime},
		{rw: "randwrite", bs: 4 * harness.KiB, depth: 32, first: rate.first, size: rate.size, ramp: rampTime, run: runTime},
		{rw: "randread", bs: 4 * harness.KiB, depth: 32, first: 4 * unit, size: 4 * unit, ramp: rampTime, run: runTime},
		{rw: "write", bs: 256 * harness.KiB, depth: 32, first: 32 * unit, size: 16 * unit, ramp: rampTime / 2, run: runTime},
		{rw: "read", bs: 256 * harness.KiB, depth: 32, first: 8 * unit, size: 8 * unit, ramp: rampTime / 2, run: runTime},
	}
}

// overSource makes the random writes at depth 32 last longer where each takes a region of the
// source with it: 180 a second at S=4. dm-clone ends them as they come, many of the 32 at once: one
// second of them was 6 % more or less than the next. In this time an eighth of them, at most, finds
// a region that another has hydrated, on dm-clone and ours alike.
func overSource(jobs []job, region int64) []job {
	if region > 4*harness.KiB {
		jobs[2].run = time.Duration(slowdown) * 5 * runTime / 2 * time.Duration(min(region, 32*harness.KiB)) / time.Duration(region)
	}
	return jobs
}

// everywhere is the jobs without areas.
func everywhere(jobs []job) []job {
	all := slices.Clone(jobs)
	for i := range all {
		all[i].first, all[i].size = 0, 0
	}
	return all
}

// quickJobs are those of the six that a goal judges at that size of regions.
func quickJobs(jobs []job, region int64) []job {
	if !quick() {
		return jobs
	}
	if region == 4*harness.KiB {
		return slices.Concat(jobs[:3], jobs[4:])
	}
	return []job{jobs[0], jobs[2]}
}

// measure runs jobs and records them. What is done in a second is told by the device: fio counts a
// job's last requests, and the time that they take, as it happens (6 to 15 % of a second of 178
// requests, of which 32 are in flight).
func measure(m *harness.Machine, path string, k bench.Key, jobs []job) {
	m.Helper()
	d := &harness.Disk{M: &m.Devices, Name: filepath.Base(path)}
	for _, j := range jobs {
		fio := startFio(m, path, j)
		time.Sleep(j.ramp)
		before, from := d.Traffic(), time.Now()
		time.Sleep(j.run * 9 / 10) // it must not end before the look at it
		done, took := d.Traffic().Since(before), time.Since(from)
		r := fio.result()
		r.Read.rate(done.ReadBytes, j.bs, took)
		r.Write.rate(done.WriteBytes, j.bs, took)
		record(m, k, j, r)
	}
}

// rate takes the place of what fio has counted.
func (s *fioSide) rate(bytes, request int64, took time.Duration) {
	s.Bytes = float64(bytes) / took.Seconds()
	s.IOPS = s.Bytes / float64(request)
}

// judgedRegions are the sizes of regions that goals are about.
var judgedRegions = []int64{4 * harness.KiB, 8 * harness.KiB, 64 * harness.KiB, 128 * harness.KiB}

// TestBenchUnhydrated: the published jobs on unhydrated regions, dm-clone and ours in turns.
func TestBenchUnhydrated(t *testing.T) {
	runs.On(t, "6.18", runs.Bench, runs.BenchQuick)
	m := harness.New(t)
	size := benchSize()
	d := benchDisks(m, "", size)
	for _, region := range bench.Regions {
		judged := slices.Contains(judgedRegions, region)
		if quick() && !judged {
			continue
		}
		n := 1
		if judged {
			n = repetitions()
		}
		for range n {
			for _, c := range clones(m, d, region) {
				c.start()
				measure(m, c.path, c.key(bench.Unhydrated, "", ""), quickJobs(overSource(publishedJobs(size, region), region), region))
				c.stop()
			}
		}
	}
}

// TestBenchHydrated: the same on hydrated clones and on the raw devices, in turns; then more sizes
// and depths.
func TestBenchHydrated(t *testing.T) {
	runs.On(t, "6.18", runs.Bench, runs.BenchQuick)
	m := harness.New(t)
	d := benchDisks(m, "", hydratedSize)
	jobs := everywhere(publishedJobs(hydratedSize, 4*harness.KiB))
	if quick() {
		jobs = jobs[2:4]
	}
	for n := range repetitions() {
		measure(m, d.dest.Path, bench.Key{Candidate: bench.RawDest}, jobs)
		if !quick() {
			measure(m, d.source.Path, bench.Key{Candidate: bench.RawSource}, jobs)
		}
		for _, c := range clones(m, d, 4*harness.KiB) {
			c.start()
			c.writeAll()
			measure(m, c.path, c.key(bench.Hydrated, "", ""), jobs)
			if n == 0 && !quick() {
				measure(m, c.path, c.key(bench.Hydrated, "", ""), sweepJobs())
			}
			c.stop()
		}
	}
	if quick() {
		return
	}
	measure(m, d.dest.Path, bench.Key{Candidate: bench.RawDest}, sweepJobs())
	for _, c := range clones(m, d, 4*harness.KiB) {
		for _, region := range bench.Regions[1:] {
			c.region = region
			c.start()
			c.writeAll()
			measure(m, c.path, c.key(bench.Hydrated, "", ""), jobs)
			c.stop()
		}
	}
}

// Times of a job of the sweep: there are many.
const (
	sweepRamp = 100 * time.Millisecond
	sweepTime = 300 * time.Millisecond
)

// sweepJobs are bench.Sweep without what the published jobs are already, and the mixed one.
func sweepJobs() []job {
	jobs := []job{{name: bench.Mixed, rw: "randrw", mix: 70, bs: 4 * harness.KiB, depth: 32, ramp: rampTime, run: runTime}}
	for _, rw := range bench.Sweep.Directions {
		for _, size := range bench.Sweep.Sizes {
			for _, depth := range bench.Sweep.Depths {
				j := job{rw: rw, bs: size, depth: depth, ramp: sweepRamp, run: sweepTime}
				published := slices.ContainsFunc(bench.Published, func(p struct{ Job, Unit string }) bool { return p.Job == j.named() })
				if !published {
					jobs = append(jobs, j)
				}
			}
		}
	}
	return jobs
}

// TestBenchSnapshot: the peer of the published figures.
func TestBenchSnapshot(t *testing.T) {
	runs.On(t, "6.18", runs.Bench)
	m := harness.New(t)
	m.MustRun("modprobe", "--all", "dm-snapshot", "dm-raid")
	const size = 384 * harness.MiB
	d := benchDisks(m, "", size)
	d.metadata = m.NullBlk("cow", ssd.Sized(size/harness.MiB*3/2))
	fio(m, d.metadata.Path, job{rw: "write", bs: harness.MiB, depth: 4})
	for _, region := range bench.Regions {
		c := &candidate{m: m, name: bench.Snapshot, disks: d, region: region}
		// A header of zeros is what makes the snapshot a new one.
		m.FillPart(d.metadata, 0, harness.MiB, harness.Zeros)
		c.startSnapshot()
		measure(m, c.path, c.key(bench.Unhydrated, "", ""), publishedJobs(size, region))
		c.stop()
	}
}
