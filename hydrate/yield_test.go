package hydrate

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
)

// Here a real core and hydrator share a source that has a time of its own with users who read from
// it one request at a time each. Their reads are in the second half, which hydration does not
// reach.

// speed is what a source does: so many requests at a time, each takes latency, and their bytes come
// one after the other.
type speed struct {
	depth     int
	latency   time.Duration
	jitter    float64 // of the latency, more or less
	bandwidth float64 // bytes a second; 0 = no bound
	away      float64 // how much longer it takes for hydration, which is far from the readers
}

var (
	disk    = speed{depth: 1, latency: 5600 * time.Microsecond}
	seeking = speed{depth: 1, latency: 8 * time.Millisecond, jitter: 0.6, bandwidth: 150e6}
	nvme    = speed{depth: 64, latency: 80 * time.Microsecond, jitter: 0.2, bandwidth: 3e9}
	far     = speed{depth: 64, latency: 20 * time.Millisecond, bandwidth: 200e6}
	line    = speed{depth: 64, latency: time.Millisecond, bandwidth: 5e6}
	// sweeping makes a reader wait for nearly three times as long, whatever the size of a batch.
	sweeping = speed{depth: 1, latency: 8 * time.Millisecond, jitter: 0.3, away: 1.9}
)

// lab is the world of a test.
type lab struct {
	*rig
	rng     *rand.Rand
	speed   speed
	slots   []time.Time // when each is free
	line    time.Time   // when it is
	inWork  []ending
	timer   time.Time
	readers int // wanted
	there   int
	pause   time.Duration // of a reader, between reads
	write   time.Duration // of what is written

	reads int
	took  time.Duration
}

// ending is what ends at that time: I/O, or a reader's pause.
type ending struct {
	at    time.Time
	token uint32
	begin func()
}

const labRegions = 1 << 24

var defaults = Settings{Enabled: true, Threshold: 1024, Batch: 256}

func newLab(t *testing.T, s Settings, source speed) *lab {
	l := &lab{rig: newRigOf(t, labRegions, s, nil, 64, 8, 256), rng: rand.New(rand.NewPCG(1, 2)), speed: source, write: 10 * time.Microsecond}
	l.h.cfg.After = func(d time.Duration) { l.timer = l.now.Add(d) }
	if source.depth == 1 {
		l.h.quota.request, l.h.quota.depth = 127<<10, 1
	}
	return l
}

// ask the source or the destination.
func (l *lab) ask() {
	for _, a := range l.asked {
		at := l.now.Add(l.write)
		if a.read {
			at = l.source(int64(a.next-a.first)*regionSize, a.first < labRegions/2)
		}
		l.inWork = append(l.inWork, ending{at: at, token: a.token})
	}
	l.asked = l.asked[:0]
}

// source says when a request ends.
func (l *lab) source(bytes int64, away bool) time.Time {
	for len(l.slots) < l.speed.depth {
		l.slots = append(l.slots, time.Time{})
	}
	slot := &l.slots[0]
	for i := range l.slots[:l.speed.depth] {
		if l.slots[i].Before(*slot) {
			slot = &l.slots[i]
		}
	}
	later := func(a, b time.Time) time.Time {
		if a.After(b) {
			return a
		}
		return b
	}
	vary := 1 + l.speed.jitter*(2*l.rng.Float64()-1)
	if away && l.speed.away > 0 {
		vary *= l.speed.away
	}
	end := later(l.now, *slot).Add(time.Duration(float64(l.speed.latency) * vary))
	if l.speed.bandwidth > 0 {
		end = later(end, l.line).Add(time.Duration(float64(bytes) / l.speed.bandwidth * 1e9))
		l.line = end
	}
	*slot = end
	return end
}

// reader reads until there are too many.
func (l *lab) reader() {
	r := &clone.Request{}
	var began time.Time
	again := func() {
		if l.there > l.readers {
			l.there--
			return
		}
		began = l.now
		at := labRegions/2 + l.rng.Int64N(labRegions/2)
		*r = clone.Request{Op: clone.OpRead, Off: at * regionSize, Len: regionSize, End: r.End}
		l.lane.Submit(r)
	}
	r.End = func(*clone.Request, error) {
		l.reads++
		l.took += l.now.Sub(began)
		l.inWork = append(l.inWork, ending{at: l.now.Add(l.pause), begin: again})
	}
	again()
}

// run for that long: the mean time of a read, and the bytes a second that are hydrated.
func (l *lab) run(d time.Duration) (mean time.Duration, rate float64) {
	l.t.Helper()
	end := l.now.Add(d)
	l.reads, l.took = 0, 0
	before := l.core.Regions().NrHydrated()
	for ; l.there < l.readers; l.there++ {
		l.reader()
	}
	for {
		l.lane.Drain()
		l.h.Pump()
		l.ask()
		first := -1
		for i := range l.inWork {
			if first < 0 || l.inWork[i].at.Before(l.inWork[first].at) {
				first = i
			}
		}
		at := end
		if first >= 0 && l.inWork[first].at.Before(at) {
			at = l.inWork[first].at
		} else {
			first = -1
		}
		if !l.timer.IsZero() && l.timer.Before(at) {
			at, l.timer, first = l.timer, time.Time{}, -1
			l.now = at
			continue
		}
		l.now = at
		if first < 0 {
			break
		}
		e := l.inWork[first]
		l.inWork = append(l.inWork[:first], l.inWork[first+1:]...)
		if e.begin != nil {
			e.begin()
		} else {
			l.lane.EndIO(e.token, nil)
		}
	}
	rate = float64((l.core.Regions().NrHydrated()-before)*regionSize) / d.Seconds()
	mean = l.took / time.Duration(max(1, l.reads))
	l.t.Logf("%v: %d readers, %v a read, %.2f MB/s hydrated, share %.3f", d, l.readers, mean, rate/1e6, l.h.quota.yield.share)
	return mean, rate
}

// alone is how long a read takes without hydration.
func alone(t *testing.T, source speed, readers int) time.Duration {
	l := newLab(t, Settings{}, source)
	l.readers = readers
	mean, _ := l.run(5 * time.Second)
	return mean
}

// TestYieldFindsWhatFits: how much there is beside readers follows from what it costs them.
func TestYieldFindsWhatFits(t *testing.T) {
	for _, c := range []struct {
		name     string
		source   speed
		readers  int
		slowdown float64 // at most
		rate     float64 // MB/s, at least
	}{
		{"disk", disk, 1, 2.05, 10.3}, // one small batch at a time gives 11.3 at 2.0
		{"disk, four readers", disk, 4, 1.6, 4.4},
		{"disk, thirty readers", disk, 30, 1.5, 0.65}, // too slow for a probe
		{"seeking disk", seeking, 1, 2.3, 6},          // 7.2 at 2.1
		{"sweeping disk", sweeping, 1, 2.95, 4.5},     // 5.4 at 2.9
		{"NVMe", nvme, 1, 2.2, 500},
		{"far", far, 1, 1.6, 100}, // 12 at 1.06
		{"slow line", line, 1, 3, 1.5},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := alone(t, c.source, c.readers)
			l := newLab(t, defaults, c.source)
			l.readers = c.readers
			l.run(10 * time.Second)
			mean, rate := l.run(20 * time.Second)
			if slowdown := float64(mean) / float64(base); slowdown > c.slowdown {
				t.Errorf("a read takes %.2f times what it takes alone, want at most %.2f", slowdown, c.slowdown)
			}
			if rate/1e6 < c.rate {
				t.Errorf("%.2f MB/s hydrated, want at least %.2f", rate/1e6, c.rate)
			}
		})
	}
}

func TestYieldNoise(t *testing.T) {
	l := newLab(t, defaults, seeking)
	l.readers = 1
	for range 10 {
		if _, rate := l.run(2 * time.Minute); rate < 5e6 { // 7.2 with a small batch all the time
			t.Errorf("%.2f MB/s", rate/1e6)
		}
	}
}

// TestYieldFollows a source and users that change.
func TestYieldFollows(t *testing.T) {
	l := newLab(t, defaults, far)
	l.readers = 1
	l.run(15 * time.Second)
	_, before := l.run(5 * time.Second)
	l.speed.bandwidth /= 40
	l.run(15 * time.Second)
	if mean, rate := l.run(10 * time.Second); mean > 60*time.Millisecond || rate < 1e6 {
		t.Errorf("narrow: %v a read, %.2f MB/s", mean, rate/1e6)
	}
	l.speed.bandwidth *= 40
	l.run(30 * time.Second)
	if _, rate := l.run(10 * time.Second); rate < before*9/10 {
		t.Errorf("wide again: %.2f MB/s, before it was %.2f", rate/1e6, before/1e6)
	}
}

func TestYieldUsersChange(t *testing.T) {
	l := newLab(t, defaults, disk)
	for _, n := range []int{1, 8, 1, 30, 1} {
		l.readers = n
		l.run(15 * time.Second)
		if mean, rate := l.run(5 * time.Second); n == 1 && (mean > 12*time.Millisecond || rate < 10e6) {
			t.Errorf("%v a read, %.2f MB/s", mean, rate/1e6)
		} else if rate < 0.65e6 {
			t.Errorf("%.2f MB/s beside %d readers", rate/1e6, n)
		}
	}
}

// TestYieldFloorAndCap keep their meaning (I12).
func TestYieldFloorAndCap(t *testing.T) {
	const rate = 4 << 20
	for _, c := range []struct {
		name        string
		source      speed
		floor, cap  int64
		least, most float64
	}{
		{"floor on a slow line", line, rate, 0, rate * 0.9, 5e6},
		{"floor on a disk", disk, 4 * rate, 0, 4 * rate * 0.9, 4 * rate * 1.1},
		{"cap on a wide source", far, 0, rate, rate * 0.9, rate * 1.02},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := defaults
			s.MinRate, s.Rate = c.floor, c.cap
			l := newLab(t, s, c.source)
			l.readers = 1
			l.run(10 * time.Second)
			if _, got := l.run(20 * time.Second); got < c.least || got > c.most {
				t.Errorf("%.2f MB/s, want %.2f to %.2f", got/1e6, c.least/1e6, c.most/1e6)
			}
		})
	}
}

// TestYieldBetweenReads: a reader that has none in flight for a moment is there all the same.
func TestYieldBetweenReads(t *testing.T) {
	base := alone(t, disk, 1)
	l := newLab(t, defaults, disk)
	l.readers, l.pause = 1, 3*time.Millisecond
	l.run(5 * time.Second)
	if mean, _ := l.run(10 * time.Second); float64(mean) > shrinkAbove*float64(base) {
		t.Errorf("%v a read, alone it is %v", mean, base)
	}
}

// TestYieldToOthers: beside users who mostly do something else than read from the source there is
// one small batch.
func TestYieldToOthers(t *testing.T) {
	for readers := range 2 {
		l := newLab(t, defaults, far)
		l.readers, l.write = 1, 200*time.Microsecond
		l.run(20 * time.Second)
		if l.h.quota.yield.share < 8 {
			t.Fatalf("share %v beside a reader", l.h.quota.yield.share)
		}
		l.readers = readers
		for i := range 4 { // one is always at work
			l.writer(labRegions/2+int64(i), time.Duration(i)*l.write/4)
		}
		l.run(3 * time.Second)
		if _, rate := l.run(2 * time.Second); l.h.quota.yield.share != 1 || rate > 15e6 {
			t.Errorf("share %v, %.2f MB/s beside writers and %d readers", l.h.quota.yield.share, rate/1e6, readers)
		}
	}
}

// writer writes a region for ever, from then on.
func (l *lab) writer(region int64, after time.Duration) {
	r := &clone.Request{}
	again := func() {
		*r = clone.Request{Op: clone.OpWrite, Off: region * regionSize, Len: regionSize, End: r.End}
		l.lane.Submit(r)
	}
	r.End = func(*clone.Request, error) { l.inWork = append(l.inWork, ending{at: l.now, begin: again}) }
	l.inWork = append(l.inWork, ending{at: l.now.Add(after), begin: again})
}
