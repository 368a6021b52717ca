//go:build device

package devicetest

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestDiscardOfAll: a discard of the whole device, 4 TiB in regions of 4 KiB, keeps no reader waiting, and the region
// map, all of which is in one state afterwards, takes no memory for it.
func TestDiscardOfAll(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.OrdinaryClockInFull)
	m := newMachine(t)
	size := 4 * tib
	source, dest := m.file("source", size), m.file("dest", size)
	// What readers leave in the destination would be regions in another state.
	c := m.addClone(source, dest, m.missing("meta"), "--no-hydration", "--read-through=off", "--force")
	alone := m.readTimes(c.path, func() { time.Sleep(time.Second) })
	before, _ := c.resident()
	v := m.open(c.path, os.O_RDWR)
	var took time.Duration
	meanwhile := m.readTimes(c.path, func() {
		from := time.Now()
		if err := v.discard(0, size); err != nil {
			t.Error(err)
		}
		took = time.Since(from)
	})
	flushed := time.Now()
	if err := v.flush(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the discard took %v, a FLUSH then %v", took, time.Since(flushed))
	v.close()
	t.Logf("a read alone: p99 %v of %d, at most %v; meanwhile: p99 %v of %d, at most %v", percentile(alone, 99), len(alone), slices.Max(alone),
		percentile(meanwhile, 99), len(meanwhile), slices.Max(meanwhile))
	m.inTime(20*percentile(alone, 99), "a read beside the discard", percentile(meanwhile, 99))
	after, _ := c.resident()
	t.Logf("%d KiB resident before, %d after", before/kib, after/kib)
	if after > before+16*mib {
		t.Errorf("%d bytes are resident after the discard, %d before it", after, before)
	}
	if s := c.status(); s.Bytes.Discarded != size {
		t.Errorf("%d of %d bytes are discarded", s.Bytes.Discarded, size)
	}
}

// readTimes is how long reads of 4 KiB at random places took, one after the other, while do was done.
func (m *machine) readTimes(path string, do func()) (all []time.Duration) {
	m.Helper()
	v, buf := m.open(path, os.O_RDONLY), m.buffer(4096)
	defer v.close()
	rng := rand.New(rand.NewPCG(seed(), 1))
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	for {
		select {
		case <-done:
			return all
		default:
		}
		from := time.Now()
		if err := v.read(buf, rng.Int64N(v.size/4096)*4096); err != nil {
			m.Fatal(err)
		}
		all = append(all, time.Since(from))
	}
}

// percentile p of some times.
func percentile(all []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}
