//go:build device

package devicetest

import (
	"encoding/json"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestBenchReadThrough measures what keeping the bytes that are read from the source costs the
// reads, and what it gives to the next ones: the default of --read-through follows from it. It
// judges nothing.
func TestBenchReadThrough(t *testing.T) {
	runs.On(t, "6.18", runs.LeapingClock, runs.FullOnly)
	m := harness.New(t)
	const size = 64
	dest, metadata := m.NullBlk("dest", ssd.Sized(size)), m.NullBlk("meta", ssd.Sized(16))
	for _, kind := range []struct {
		name   string
		source *harness.Disk
	}{{"HDD", m.NullBlk("hdd", hdd.Sized(size))}, {"SSD", m.NullBlk("ssd", ssd.Sized(size))}} {
		for _, readThrough := range []string{"off", "on"} {
			for _, depth := range []string{"1", "32"} {
				m.Erase(metadata)
				c := m.AddClone(kind.source, dest, metadata, "--no-hydration", "--force", "--read-through="+readThrough)
				first := readResultOf(m, c.Path, depth)
				second := readResultOf(m, c.Path, depth)
				t.Logf("source %s, read-through %s, depth %s: first reads %.0f a second, %.0f us; again %.0f, %.0f us; %d KiB kept",
					kind.name, readThrough, depth, first.IOPS, first.Latency.Mean/1e3, second.IOPS, second.Latency.Mean/1e3, c.Status().Bytes.Hydrated/harness.KiB)
				c.Del()
			}
		}
	}
}

// readResult of fio.
type readResult struct {
	IOPS    float64 `json:"iops"`
	Latency struct {
		Mean float64 `json:"mean"` // nanoseconds
	} `json:"lat_ns"`
}

// readResult reads the first 2 MiB in random order, each block of 4 KiB once.
func readResultOf(m *harness.Machine, path, depth string) readResult {
	m.Helper()
	out := m.MustRun("fio", "--name=read", "--filename="+path, "--rw=randread", "--bs=4k", "--iodepth="+depth, "--ioengine=libaio",
		"--direct=1", "--thread", "--size=2m", "--randrepeat=1", "--output-format=json")
	var report struct {
		Jobs []struct {
			Error int        `json:"error"`
			Read  readResult `json:"read"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		m.Fatalf("fio: %v: %s", err, out)
	}
	return report.Jobs[0].Read
}
