//go:build device

package devicetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestDiscardOfAll: a discard of the whole device, 4 TiB in regions of 4 KiB, keeps no reader
// waiting, and the region map, all of which is in one state afterwards, takes no memory for it.
func TestDiscardOfAll(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.OrdinaryClockInFull, runs.Sampled)
	m := harness.New(t)
	size := 4 * tib
	source, dest := m.File("source", size), m.File("dest", size)
	// What readers leave in the destination would be regions in another state.
	c := m.AddClone(source, dest, m.Missing("meta"), "--no-hydration", "--read-through=off", "--force")
	alone := readTimes(m, c.Path, func() { time.Sleep(time.Second) })
	before, _ := c.Resident()
	v := m.Open(c.Path, os.O_RDWR)
	var took time.Duration
	meanwhile := readTimes(m, c.Path, func() {
		from := time.Now()
		if err := v.Discard(0, size); err != nil {
			t.Error(err)
		}
		took = time.Since(from)
	})
	flushed := time.Now()
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the discard took %v, a FLUSH then %v", took, time.Since(flushed))
	v.Close()
	t.Logf("a read alone: p99 %v of %d, at most %v; meanwhile: p99 %v of %d, at most %v", percentile(alone, 99), len(alone), slices.Max(alone),
		percentile(meanwhile, 99), len(meanwhile), slices.Max(meanwhile))
	m.InTime(20*percentile(alone, 99), "a read beside the discard", percentile(meanwhile, 99))
	after, _ := c.Resident()
	t.Logf("%d KiB resident before, %d after", before/harness.KiB, after/harness.KiB)
	if after > before+(16+32)*harness.MiB { // 32 MiB of marks wait for a commit, at most
		t.Errorf("%d bytes are resident after the discard, %d before it", after, before)
	}
	m.WaitFor(harness.CleanLimit, "the memory of the marks to be given back", func() error {
		if now, _ := c.Resident(); now > before+16*harness.MiB {
			return fmt.Errorf("%d bytes are resident, %d before the discard", now, before)
		}
		return nil
	})
	if s := c.Status(); s.Bytes.Discarded != size {
		t.Errorf("%d of %d bytes are discarded", s.Bytes.Discarded, size)
	}
}

// readTimes is how long reads of 4 KiB at random places took, one after the other, while do was
// done.
func readTimes(m *harness.Machine, path string, do func()) (all []time.Duration) {
	m.Helper()
	v, buf := m.Open(path, os.O_RDONLY), m.Buffer(4096)
	defer v.Close()
	rng := rand.New(rand.NewPCG(harness.Seed(), 1))
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
		if err := v.Read(buf, rng.Int64N(v.Size/4096)*4096); err != nil {
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
