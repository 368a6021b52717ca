//go:build device

package devicetest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/bench"
	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestBenchStart: from `add` to the first read that is answered, and the daemon's memory then, by
// the size of the device. The files are sparse: nothing but the map depends on the size.
func TestBenchStart(t *testing.T) {
	runs.On(t, "6.18", runs.Bench)
	m := harness.New(t)
	for n := range repetitions() {
		for i, size := range []int64{gib, tib, 16 * tib} {
			own := fmt.Sprintf("%d-%d", n, i)
			source, dest := m.File("source"+own, size), m.File("dest"+own, size)
			c := m.NewClone(source, dest, m.Missing("meta"+own), "--no-hydration", "--force")
			from := time.Now()
			c.Add()
			v, buf := m.Open(c.Path, os.O_RDONLY), m.Buffer(4096)
			if err := v.Read(buf, 0); err != nil {
				t.Fatal(err)
			}
			took := time.Since(from)
			v.Close()
			key := func(job, unit string) bench.Key {
				return bench.Key{Candidate: bench.Ours, Setting: bench.StartSizes[i], Job: job, Region: 4 * harness.KiB, Unit: unit}
			}
			figure(m, key(bench.FirstRead, bench.Seconds), took.Seconds())
			figure(m, key(bench.RSS, bench.MiB), float64(c.ProcessNumber("VmRSS"))/float64(harness.MiB))
			figure(m, key(bench.PSS, bench.MiB), float64(proportional(c))/float64(harness.MiB))
			c.Del()
		}
	}
}

// proportional is the daemon's memory with what is shared counted by share (Pss), in bytes.
func proportional(c *harness.Clone) int64 {
	c.M.Helper()
	for line := range strings.Lines(c.M.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", c.Status().PID))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n * harness.KiB
		}
	}
	c.M.Fatal("the daemon's smaps_rollup has no Pss")
	return 0
}
