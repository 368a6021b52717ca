//go:build device

package devicetest

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// measured is the time over which a rate is taken.
const measured = 4 * time.Second

// copyRate is how many bytes a second are copied, taken from the status.
func (c *clone) copyRate() int64 {
	c.m.Helper()
	before := c.status().Bytes.Copied // the command ends right after its look
	from := time.Now()
	time.Sleep(measured)
	copied := c.status().Bytes.Copied - before
	return int64(float64(copied) / time.Since(from).Seconds())
}

// setting is `set`.
func (c *clone) setting(words ...string) {
	c.m.Helper()
	if out := c.m.run(command, append([]string{"set", c.name}, words...)...); out != "" {
		c.m.Errorf("set %s prints %q", strings.Join(words, " "), out)
	}
}

// TestRate: the cap is kept to within 10 %, as given to add and as set later, and over a restart; without a
// cap it is left behind (I12).
func TestRate(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock)
	const cap, lower = 8 * mib, 2 * mib
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 192}), m.nullBlk("dst", nullOptions{mib: 192})
	c := m.addClone(source, dest, m.missing("meta"), "--rate", "8MiB/s")
	within := func(when string, want int64) {
		t.Helper()
		got := c.copyRate()
		t.Logf("%s: %d KiB/s under a cap of %d", when, got/kib, want/kib)
		if got < want*9/10 || got > want*11/10 {
			t.Errorf("%s: %d bytes a second, the cap is %d", when, got, want)
		}
	}
	within("as added", cap)
	c.setting("rate=2MiB/s")
	within("as set", lower)
	c.del()
	c.args = c.args[:len(c.args)-2]
	c.add()
	within("after a restart", lower)
	left := c.status().Bytes.Remaining
	c.setting("rate=none")
	from := time.Now()
	c.waitHydrated()
	rate := int64(float64(left) / time.Since(from).Seconds())
	t.Logf("without a cap: %d KiB/s", rate/kib)
	if rate < 2*cap {
		t.Errorf("%d bytes a second without a cap", rate)
	}
}

// TestMinRate: four readers that never pause, of regions that are hydrated, beside which there is one small copy at a time,
// as nothing is known of what that costs them. On disks that take 10 ms for whatever they are asked that is far below the
// floor, which is reached all the same (I12); the clone becomes complete.
func TestMinRate(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock)
	testMinRate(t, undisturbed)
}

func testMinRate(t *testing.T, during trial) {
	const size, hydrated, floor = 60 * mib, 4 * mib, 4 * mib
	m := newMachine(t)
	slow := nullOptions{mib: size / mib, latency: 10 * time.Millisecond, depth: 16}
	source, dest := m.nullBlk("src", slow), m.nullBlk("dst", slow)
	c := m.addClone(source, dest, m.missing("meta"), "--read-through=off", "--hydration-batch-size", "4", "--hydration-threshold", "64",
		"--min-rate", "0", "--no-hydration")
	m.fillPart(m.block(c.path), 0, hydrated, zeros)
	stop := c.readers(4, hydrated)
	defer stop()
	c.message("enable_hydration")
	alone := c.copyRate()
	c.setting("min-rate=4MiB/s")
	during(c, func() {})
	got := c.copyRate()
	t.Logf("among four readers: %d KiB/s without a floor, %d with one of %d", alone/kib, got/kib, int64(floor/kib))
	if alone > floor*8/10 {
		t.Errorf("%d bytes a second without a floor: the test shows nothing", alone)
	}
	if got < floor*9/10 {
		t.Errorf("%d bytes a second, the floor is %d", got, floor)
	}
	c.waitHydrated()
}

// readers read blocks of 4 KiB in the first bytes in random order, each one at a time, until stop is called.
func (c *clone) readers(n int, bytes int64) (stop func()) {
	c.m.Helper()
	end := make(chan struct{})
	var wait sync.WaitGroup
	for i := range n {
		v, rng := c.m.open(c.path, 0), rand.New(rand.NewPCG(seed(), uint64(i)))
		buf := c.m.buffer(4096)
		wait.Go(func() {
			defer v.close()
			for {
				select {
				case <-end:
					return
				default:
				}
				if err := v.read(buf, 4096*rng.Int64N(bytes/4096)); err != nil {
					c.m.Error(err)
					return
				}
			}
		})
	}
	return sync.OnceFunc(func() { close(end); wait.Wait() })
}
