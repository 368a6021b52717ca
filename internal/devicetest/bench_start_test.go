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
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestBenchStart: from `add` to the first read that is answered, and the daemon's memory then, by the size of the
// device. The files are sparse: nothing but the map depends on the size.
func TestBenchStart(t *testing.T) {
	runs.On(t, "6.18", runs.Bench)
	m := newMachine(t)
	for n := range repetitions() {
		for i, size := range []int64{gib, tib, 16 * tib} {
			own := fmt.Sprintf("%d-%d", n, i)
			source, dest := m.file("source"+own, size), m.file("dest"+own, size)
			c := m.newClone(source, dest, m.missing("meta"+own), "--no-hydration", "--force")
			from := time.Now()
			c.add()
			v, buf := m.open(c.path, os.O_RDONLY), m.buffer(4096)
			if err := v.read(buf, 0); err != nil {
				t.Fatal(err)
			}
			took := time.Since(from)
			v.close()
			key := func(job, unit string) bench.Key {
				return bench.Key{Candidate: bench.Ours, Setting: bench.StartSizes[i], Job: job, Region: 4 * kib, Unit: unit}
			}
			m.figure(key(bench.FirstRead, bench.Seconds), took.Seconds())
			m.figure(key(bench.RSS, bench.MiB), float64(c.processNumber("VmRSS"))/float64(mib))
			m.figure(key(bench.PSS, bench.MiB), float64(c.proportional())/float64(mib))
			c.del()
		}
	}
}

// proportional is the daemon's memory with what is shared counted by share (Pss), in bytes.
func (c *clone) proportional() int64 {
	c.m.Helper()
	for line := range strings.Lines(c.m.readFile(fmt.Sprintf("/proc/%d/smaps_rollup", c.status().PID))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n * kib
		}
	}
	c.m.Fatal("the daemon's smaps_rollup has no Pss")
	return 0
}
