//go:build device

package devicetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/bench"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Hydration: alone, beside readers of unhydrated regions, and beside a writer. Its rate is what is written to the
// destination, for all candidates alike.

// hydrationSize is what is hydrated.
func hydrationSize() int64 {
	if quick() {
		return 256 * mib
	}
	return 512 * mib
}

// variant is a candidate with its settings.
type variant struct {
	*candidate
	threshold, batch int      // dm-clone's; 0 = its defaults
	add              []string // arguments of add
	n                int      // repetitions
}

// gentleSettings are what `set` offers to spare users: one small copy at a time, and no more a second than is wanted,
// which is kept beside readers too. Copies of 256 KiB cost the reader more than those of 64 KiB, at two thirds of the rate.
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
func (m *machine) variants(d disks) []*variant {
	var all []*variant
	for _, c := range m.clones(d, 4*kib) {
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
	m := newMachine(t)
	size := hydrationSize()
	d := m.benchDisks("", size)
	all := m.variants(d)
	for n := range repetitions() {
		m.measure(d.source.path, bench.Key{Candidate: bench.RawSource}, sourceJobs())
		for _, v := range all {
			if n < v.n {
				v.up()
				rate, cost := v.hydrateAll()
				m.figure(v.key("", bench.Hydration, bench.MBps), rate)
				m.figure(v.key("", bench.Hydration, bench.Cost), cost)
				v.stop()
			}
		}
	}
}

// sourceJobs are sequential reads of the source.
func sourceJobs() []job {
	var jobs []job
	for _, size := range bench.SourceSizes {
		if quick() && size != mib && size != 256*kib {
			continue
		}
		jobs = append(jobs, job{rw: "read", bs: size, depth: bench.SourceDepth, ramp: rampTime, run: time.Duration(slowdown) * runTime / 2})
	}
	return jobs
}

// hydrationLimit is several times what dm-clone takes with its defaults.
const hydrationLimit = time.Hour

// hydrationSlack is what may be hydrated beforehand: what the kernel reads in search of partitions is kept.
const hydrationSlack = mib

// hydrateAll hydrates all of it: MB a second, from the first read of the source on, and CPU time for 4 KiB.
func (v *variant) hydrateAll() (rate, cost float64) {
	v.m.Helper()
	source, dest, size := v.disks.source.traffic(), v.disks.dest.traffic(), v.disks.source.size-hydrationSlack
	v.hydrate()
	v.m.waitFor(hydrationLimit, "the first read", func() error {
		if v.disks.source.traffic().since(source).reads == 0 {
			return fmt.Errorf("%+v", v.disks.source.traffic())
		}
		return nil
	})
	w := v.m.startWindow()
	v.m.waitFor(hydrationLimit, "hydration", func() error {
		if written := v.disks.dest.traffic().since(dest).writeBytes; written < size {
			return fmt.Errorf("%d of %d bytes", written, size)
		}
		return nil
	})
	took, busy := w.end()
	return float64(size) / 1e6 / took.Seconds(), float64(busy.Nanoseconds()) / float64(size/4096)
}

// Times of what runs beside hydration: it must end before that does, also at the full rate of the source.
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
	return job{name: name, rw: rw, bs: 4 * kib, depth: depth, first: size * 3 / 4, size: size / 4, ramp: ramp, run: window}
}

// beside measures a job while hydration runs, and what is hydrated meanwhile besides what the job itself writes.
func (v *variant) beside(j job) (rate float64, r fioResult) {
	v.m.Helper()
	v.hydrate()
	fio := v.m.startFio(v.path, j)
	time.Sleep(j.ramp)
	own, dest, from := v.traffic(), v.disks.dest.traffic(), time.Now()
	time.Sleep(j.run * 9 / 10) // it must not end before the look at it
	own, dest = v.traffic().since(own), v.disks.dest.traffic().since(dest)
	rate = float64(dest.writeBytes-own.writeBytes) / 1e6 / time.Since(from).Seconds()
	return rate, fio.result()
}

// TestBenchReaders: hydration beside readers of unhydrated regions, and how long these wait; alone too.
func TestBenchReaders(t *testing.T) {
	runs.On(t, "6.18", runs.Bench, runs.BenchQuick)
	m := newMachine(t)
	size := hydrationSize()
	d := m.benchDisks("", size)
	all := m.variants(d)
	ours := all[len(all)-1]
	if ours.name != bench.Ours {
		t.Fatal("ours is not the last variant")
	}
	gentle := &variant{candidate: &candidate{m: m, name: bench.Ours, disks: d, region: ours.region, setting: bench.Gentle}, add: gentleSettings(), n: ours.n}
	for n := range repetitions() {
		for _, depth := range readerDepths(n) {
			for _, v := range append(slices.Clone(all), gentle) {
				if n < v.n && !(quick() && v.name != bench.Ours) {
					m.benchReader(v, depth)
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
func (m *machine) benchReader(v *variant, depth int) {
	m.Helper()
	if v.setting != bench.Gentle {
		alone := besideJob(bench.Reader(depth, false), "randread", depth)
		v.up()
		m.measure(v.path, v.key("", "", ""), []job{alone})
		v.stop()
	}
	j := besideJob(bench.Reader(depth, true), "randread", depth)
	v.up()
	rate, r := v.beside(j)
	v.stop()
	m.record(v.key("", "", ""), j, r)
	m.figure(v.key("", bench.Beside(bench.Hydration, depth), bench.MBps), rate)
}

// TestBenchWriteLatency: whole unhydrated regions written one at a time, with and without hydration.
func TestBenchWriteLatency(t *testing.T) {
	runs.On(t, "6.18", runs.Bench, runs.BenchQuick)
	m := newMachine(t)
	size := hydrationSize()
	d := m.benchDisks("", size)
	for range repetitions() {
		for _, v := range m.variants(d) {
			if v.name == bench.DMClone && (quick() || v.setting != bench.Tuned256) {
				continue
			}
			alone, beside := besideJob(bench.Writer(false), "randwrite", 1), besideJob(bench.Writer(true), "randwrite", 1)
			v.up()
			m.measure(v.path, v.key("", "", ""), []job{alone})
			v.stop()
			v.up()
			rate, r := v.beside(beside)
			v.stop()
			m.record(v.key("", "", ""), beside, r)
			m.figure(v.key("", bench.BesideWriter, bench.MBps), rate)
		}
	}
}

// wide is a source that takes many requests at a time, each as long as a far one takes, and has no bound of its own in bytes.
var wide = nullOptions{latency: 5 * time.Millisecond, depth: 64}

// TestBenchWideSource: one depth-1 reader of unhydrated regions on a source for which one small batch at a time is far too
// little (hydrate/yield.go has the figures). No goal is about it; the rate must be several small batches' all the same.
func TestBenchWideSource(t *testing.T) {
	runs.On(t, "6.18", runs.LeapingClock, runs.FullOnly)
	const size = 1024 * mib
	oneAtATime := float64(256*kib) / 1e6 / wide.latency.Seconds()
	m := newMachine(t)
	d := disks{m.nullBlk("wide", wide.sized(size/mib)), m.nullBlk("fast", nullOptions{mib: size / mib}), m.nullBlk("meta", nullOptions{mib: benchMetadata})}
	m.fio(d.source.path, job{rw: "write", bs: mib, depth: 4})
	v := &variant{candidate: &candidate{m: m, name: bench.Ours, disks: d, region: 4 * kib, setting: bench.Wide}}
	alone, beside := wideJob(bench.Reader(1, false), size), wideJob(bench.Reader(1, true), size)
	v.up()
	m.measure(v.path, v.key("", "", ""), []job{alone})
	v.stop()
	v.up()
	rate, r := v.beside(beside)
	v.stop()
	m.record(v.key("", "", ""), beside, r)
	m.figure(v.key("", bench.Beside(bench.Hydration, 1), bench.MBps), rate)
	if rate < 2*oneAtATime {
		t.Errorf("%.1f MB/s beside a reader; one small batch at a time is %.1f", rate, oneAtATime)
	}
}

// wideJob is long enough for hydration to have found what it may do.
func wideJob(name string, size int64) job {
	return job{
		name: name, rw: "randread", bs: 4 * kib, depth: 1, first: size * 3 / 4, size: size / 4, ramp: 1500 * time.Millisecond, run: time.Second,
	}
}
