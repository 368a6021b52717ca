//go:build device

package devicetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/bench"
	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Hydration: alone, beside readers of unhydrated regions, and beside a writer. Its rate is what is
// written to the destination, for all candidates alike.

// hydrationSize is what is hydrated.
func hydrationSize() int64 {
	if quick() {
		return 256 * harness.MiB
	}
	return 512 * harness.MiB
}

// variant is a candidate with its settings.
type variant struct {
	*candidate
	threshold, batch int      // dm-clone's; 0 = its defaults
	add              []string // arguments of add
	n                int      // repetitions
}

// gentleSettings are what `set` offers to spare users: one small copy at a time, and no more a
// second than is wanted, which is kept beside readers too. Copies of 256 KiB cost the reader more
// than those of 64 KiB, at two thirds of the rate.
func gentleSettings() []string {
	rate := fmt.Sprintf("%dKiB/s", 12*1024/slowdown)
	return []string{"--hydration-batch-size", "16", "--hydration-threshold", "16", "--rate", rate, "--min-rate", rate}
}

// up starts a variant.
func (v *variant) up() {
	v.m.Helper()
	v.start(v.add...)
	if v.threshold > 0 {
		v.tune(v.setting, v.threshold, v.batch)
	}
}

// variants of hydration: ours with its defaults, and dm-clone as it is and tuned.
func variants(m *harness.Machine, d disks) []*variant {
	var all []*variant
	for _, c := range clones(m, d, 4*harness.KiB) {
		if c.name == bench.Ours {
			all = append(all, &variant{candidate: c, n: repetitions()})
			continue
		}
		tuned := func(setting string, threshold, batch, n int) *variant {
			own := *c
			own.setting = setting
			return &variant{candidate: &own, threshold: threshold, batch: batch, n: n}
		}
		all = append(all, tuned(bench.Tuned256, 256, 256, repetitions()))
		if !quick() {
			all = append(all, tuned(bench.Tuned1024, 1024, 256, 1), tuned(bench.TunedDeep, 1024, 1024, 1), tuned("", 0, 0, 1))
		}
	}
	return all
}

// TestBenchHydration: all of it, with nobody else there, and what the source gives at most.
func TestBenchHydration(t *testing.T) {
	runs.On(t, "6.18", runs.Bench, runs.BenchQuick)
	m := harness.New(t)
	size := hydrationSize()
	d := benchDisks(m, "", size)
	all := variants(m, d)
	for n := range repetitions() {
		measure(m, d.source.Path, bench.Key{Candidate: bench.RawSource}, sourceJobs())
		for _, v := range all {
			if n < v.n {
				v.up()
				rate, cost := v.hydrateAll()
				figure(m, v.key("", bench.Hydration, bench.MBps), rate)
				figure(m, v.key("", bench.Hydration, bench.Cost), cost)
				v.stop()
			}
		}
	}
}

// sourceJobs are sequential reads of the source.
func sourceJobs() []job {
	var jobs []job
	for _, size := range bench.SourceSizes {
		if quick() && size != harness.MiB && size != 256*harness.KiB {
			continue
		}
		jobs = append(jobs, job{rw: "read", bs: size, depth: bench.SourceDepth, ramp: rampTime, run: time.Duration(slowdown) * runTime / 2})
	}
	return jobs
}

// hydrationLimit is several times what dm-clone takes with its defaults.
const hydrationLimit = time.Hour

// hydrationSlack is what may be hydrated beforehand: what the kernel reads in search of partitions
// is kept.
const hydrationSlack = harness.MiB

// hydrateAll hydrates all of it: MB a second, from the first read of the source on, and CPU time
// for 4 KiB.
func (v *variant) hydrateAll() (rate, cost float64) {
	v.m.Helper()
	source, dest, size := v.disks.source.Traffic(), v.disks.dest.Traffic(), v.disks.source.Size-hydrationSlack
	v.hydrate()
	v.m.WaitFor(hydrationLimit, "the first read", func() error {
		if v.disks.source.Traffic().Since(source).Reads == 0 {
			return fmt.Errorf("%+v", v.disks.source.Traffic())
		}
		return nil
	})
	w := startWindow(v.m)
	v.m.WaitFor(hydrationLimit, "hydration", func() error {
		if written := v.disks.dest.Traffic().Since(dest).WriteBytes; written < size {
			return fmt.Errorf("%d of %d bytes", written, size)
		}
		return nil
	})
	took, busy := w.end()
	return float64(size) / 1e6 / took.Seconds(), float64(busy.Nanoseconds()) / float64(size/4096)
}

// Times of what runs beside hydration: it must end before that does, also at the full rate of the
// source.
func besideTimes() (ramp, window time.Duration) {
	if quick() {
		return time.Duration(slowdown) * 200 * time.Millisecond, time.Duration(slowdown) * 700 * time.Millisecond
	}
	return time.Duration(slowdown) * 300 * time.Millisecond, time.Duration(slowdown) * 1500 * time.Millisecond
}

// besideJob reads or writes in the last quarter, where hydration comes last.
func besideJob(name, rw string, depth int) job {
	ramp, window := besideTimes()
	size := hydrationSize()
	return job{name: name, rw: rw, bs: 4 * harness.KiB, depth: depth, first: size * 3 / 4, size: size / 4, ramp: ramp, run: window}
}

// beside measures a job while hydration runs, and what is hydrated meanwhile besides what the job
// itself writes.
func (v *variant) beside(j job) (rate float64, r fioResult) {
	v.m.Helper()
	v.hydrate()
	fio := startFio(v.m, v.path, j)
	time.Sleep(j.ramp)
	own, dest, from := v.traffic(), v.disks.dest.Traffic(), time.Now()
	time.Sleep(j.run * 9 / 10) // it must not end before the look at it
	own, dest = v.traffic().Since(own), v.disks.dest.Traffic().Since(dest)
	rate = float64(dest.WriteBytes-own.WriteBytes) / 1e6 / time.Since(from).Seconds()
	return rate, fio.result()
}

// TestBenchReaders: hydration beside readers of unhydrated regions, and how long these wait; alone
// too.
func TestBenchReaders(t *testing.T) {
	runs.On(t, "6.18", runs.Bench, runs.BenchQuick)
	m := harness.New(t)
	size := hydrationSize()
	d := benchDisks(m, "", size)
	all := variants(m, d)
	ours := all[len(all)-1]
	if ours.name != bench.Ours {
		t.Fatal("ours is not the last variant")
	}
	gentle := &variant{candidate: &candidate{m: m, name: bench.Ours, disks: d, region: ours.region, setting: bench.Gentle}, add: gentleSettings(), n: ours.n}
	for n := range repetitions() {
		for _, depth := range readerDepths(n) {
			for _, v := range append(slices.Clone(all), gentle) {
				if n < v.n && !(quick() && v.name != bench.Ours) {
					benchReader(m, v, depth)
				}
			}
		}
	}
}

// readerDepths: the goals are about depth 1.
func readerDepths(n int) []int {
	if n == 0 && !quick() {
		return []int{1, 2, 4}
	}
	return []int{1}
}

// benchReader measures one reader, alone and beside hydration.
func benchReader(m *harness.Machine, v *variant, depth int) {
	m.Helper()
	if v.setting != bench.Gentle {
		alone := besideJob(bench.Reader(depth, false), "randread", depth)
		v.up()
		measure(m, v.path, v.key("", "", ""), []job{alone})
		v.stop()
	}
	j := besideJob(bench.Reader(depth, true), "randread", depth)
	v.up()
	rate, r := v.beside(j)
	v.stop()
	record(m, v.key("", "", ""), j, r)
	figure(m, v.key("", bench.Beside(bench.Hydration, depth), bench.MBps), rate)
}

// TestBenchWriteLatency: whole unhydrated regions written one at a time, with and without
// hydration.
func TestBenchWriteLatency(t *testing.T) {
	runs.On(t, "6.18", runs.Bench, runs.BenchQuick)
	m := harness.New(t)
	size := hydrationSize()
	d := benchDisks(m, "", size)
	for range repetitions() {
		for _, v := range variants(m, d) {
			if v.name == bench.DMClone && (quick() || v.setting != bench.Tuned256) {
				continue
			}
			alone, beside := besideJob(bench.Writer(false), "randwrite", 1), besideJob(bench.Writer(true), "randwrite", 1)
			v.up()
			measure(m, v.path, v.key("", "", ""), []job{alone})
			v.stop()
			v.up()
			rate, r := v.beside(beside)
			v.stop()
			record(m, v.key("", "", ""), beside, r)
			figure(m, v.key("", bench.BesideWriter, bench.MBps), rate)
		}
	}
}

// wide is a source that takes many requests at a time, each as long as a far one takes, and has no
// bound of its own in bytes.
var wide = harness.NullOptions{Latency: 5 * time.Millisecond, Depth: 64}

// TestBenchWideSource: one depth-1 reader of unhydrated regions on a source for which one small
// batch at a time is far too little (hydrate/yield.go has the figures). No goal is about it; the
// rate must be several small batches' all the same.
func TestBenchWideSource(t *testing.T) {
	runs.On(t, "6.18", runs.LeapingClock, runs.FullOnly)
	const size = 1024 * harness.MiB
	oneAtATime := float64(256*harness.KiB) / 1e6 / wide.Latency.Seconds()
	m := harness.New(t)
	d := disks{m.NullBlk("wide", wide.Sized(size/harness.MiB)), m.NullBlk("fast", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk("meta", harness.NullOptions{MiB: benchMetadata})}
	fio(m, d.source.Path, job{rw: "write", bs: harness.MiB, depth: 4})
	v := &variant{candidate: &candidate{m: m, name: bench.Ours, disks: d, region: 4 * harness.KiB, setting: bench.Wide}}
	alone, beside := wideJob(bench.Reader(1, false), size), wideJob(bench.Reader(1, true), size)
	v.up()
	measure(m, v.path, v.key("", "", ""), []job{alone})
	v.stop()
	v.up()
	rate, r := v.beside(beside)
	v.stop()
	record(m, v.key("", "", ""), beside, r)
	figure(m, v.key("", bench.Beside(bench.Hydration, 1), bench.MBps), rate)
	if rate < 2*oneAtATime {
		t.Errorf("%.1f MB/s beside a reader; one small batch at a time is %.1f", rate, oneAtATime)
	}
}

// wideJob is long enough for hydration to have found what it may do.
func wideJob(name string, size int64) job {
	return job{
		name: name, rw: "randread", bs: 4 * harness.KiB, depth: 1, first: size * 3 / 4, size: size / 4, ramp: 1500 * time.Millisecond, run: time.Second,
	}
}
