//go:build device

package devicetest

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// measured is the time over which a rate is taken.
const measured = 4 * time.Second

// copyRate is how many bytes a second are copied, taken from the status.
func copyRate(c *harness.Clone) int64 {
	c.M.Helper()
	before := c.Status().Bytes.Copied // the command ends right after its look
	from := time.Now()
	time.Sleep(measured)
	copied := c.Status().Bytes.Copied - before
	return int64(float64(copied) / time.Since(from).Seconds())
}

// TestRate: the cap is kept to within 10 %, as given to add and as set later, and over a restart;
// without a cap it is left behind (I12).
func TestRate(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock, runs.Sampled)
	const cap, lower = 8 * harness.MiB, 2 * harness.MiB
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 192}), m.NullBlk("dst", harness.NullOptions{MiB: 192})
	c := m.AddClone(source, dest, m.Missing("meta"), "--rate", "8MiB/s")
	within := func(when string, want int64) {
		t.Helper()
		got := copyRate(c)
		t.Logf("%s: %d KiB/s under a cap of %d", when, got/harness.KiB, want/harness.KiB)
		if got < want*9/10 || got > want*11/10 {
			t.Errorf("%s: %d bytes a second, the cap is %d", when, got, want)
		}
	}
	within("as added", cap)
	c.Setting("rate=2MiB/s")
	within("as set", lower)
	c.Del()
	c.Args = c.Args[:len(c.Args)-2]
	c.Add()
	within("after a restart", lower)
	left := c.Status().Bytes.Remaining
	c.Setting("rate=none")
	from := time.Now()
	c.WaitHydrated()
	rate := int64(float64(left) / time.Since(from).Seconds())
	t.Logf("without a cap: %d KiB/s", rate/harness.KiB)
	if rate < 2*cap {
		t.Errorf("%d bytes a second without a cap", rate)
	}
}

// TestMinRate: four readers that never pause, of regions that are hydrated, beside which there is
// one small copy at a time, as nothing is known of what that costs them. On disks that take 10 ms
// for whatever they are asked that is far below the floor, which is reached all the same (I12); the
// clone becomes complete.
func TestMinRate(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.Sampled)
	testMinRate(t, undisturbed)
}

func testMinRate(t *testing.T, during disturbance) {
	const size, hydrated, floor = 60 * harness.MiB, 4 * harness.MiB, 4 * harness.MiB
	m := harness.New(t)
	slow := harness.NullOptions{MiB: size / harness.MiB, Latency: 10 * time.Millisecond, Depth: 16}
	source, dest := m.NullBlk("src", slow), m.NullBlk("dst", slow)
	c := m.AddClone(source, dest, m.Missing("meta"), "--read-through=off", "--hydration-batch-size", "4", "--hydration-threshold", "64",
		"--min-rate", "0", "--no-hydration")
	m.FillPart(m.Block(c.Path), 0, hydrated, harness.Zeros)
	stop := readers(c, 4, hydrated)
	defer stop()
	c.Message("enable_hydration")
	alone := copyRate(c)
	c.Setting("min-rate=4MiB/s")
	during(c, func() {})
	got := copyRate(c)
	t.Logf("among four readers: %d KiB/s without a floor, %d with one of %d", alone/harness.KiB, got/harness.KiB, int64(floor/harness.KiB))
	if alone > floor*8/10 {
		t.Errorf("%d bytes a second without a floor: the test shows nothing", alone)
	}
	if got < floor*9/10 {
		t.Errorf("%d bytes a second, the floor is %d", got, floor)
	}
	c.WaitHydrated()
}

// readers read blocks of 4 KiB in the first bytes in random order, each one at a time, until stop
// is called.
func readers(c *harness.Clone, n int, bytes int64) (stop func()) {
	c.M.Helper()
	end := make(chan struct{})
	var wait sync.WaitGroup
	for i := range n {
		v, rng := c.M.Open(c.Path, 0), rand.New(rand.NewPCG(harness.Seed(), uint64(i)))
		buf := c.M.Buffer(4096)
		wait.Go(func() {
			defer v.Close()
			for {
				select {
				case <-end:
					return
				default:
				}
				if err := v.Read(buf, 4096*rng.Int64N(bytes/4096)); err != nil {
					c.M.Error(err)
					return
				}
			}
		})
	}
	return sync.OnceFunc(func() { close(end); wait.Wait() })
}
