//go:build device

package devicetest

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The counting guest (ICOUNT=1, scripts/vm) has a clock that counts instructions, so that figures
// repeat within about 1 % on any machine. Its one CPU does 1 GIPS; with devices slower by a factor
// it stands for a CPU of that many GIPS.

// slowdown of the devices: a CPU of 4 GIPS is a realistic core.
var slowdown = slowdownFrom(os.Getenv("BENCH_S"))

// ssd and hdd are a disk of each kind: latency of a request, requests at a time, rate.
var (
	ssd = harness.NullOptions{Latency: time.Duration(slowdown) * 72600 * time.Nanosecond, Depth: 5, MBps: 390 / slowdown}
	hdd = harness.NullOptions{Latency: time.Duration(slowdown) * 1400 * time.Microsecond, Depth: 1, MBps: 120 / slowdown}
)

// leastRatio of ublk-clone's rate to dm-clone's.
const leastRatio = 0.90

// TestBenchRandomWrites compares the rate of random writes of whole unhydrated regions of 4 KiB
// with that of the kernel's dm-clone in the same guest: a check that the loop has the right shape.
func TestBenchRandomWrites(t *testing.T) {
	runs.On(t, "6.18", runs.LeapingClock)
	m := harness.New(t)
	m.MustRun("modprobe", "dm-clone")
	const size = 512
	source, dest := m.NullBlk("hdd", hdd.Sized(size)), m.NullBlk("ssd", ssd.Sized(size))
	metadata := m.NullBlk("meta", ssd.Sized(16))

	t.Logf("raw SSD: %.0f writes a second", writeRate(m, dest.Path))
	var kernel, ours []float64
	for range 3 {
		kernel = append(kernel, kernelCloneRate(m, source, dest, metadata))
		ours = append(ours, cloneRate(m, source, dest, metadata))
		t.Logf("writes a second: dm-clone %.0f, ublk-clone %.0f", kernel[len(kernel)-1], ours[len(ours)-1])
	}
	ratio := median(ours) / median(kernel)
	t.Logf("medians: dm-clone %.0f, ublk-clone %.0f, ratio %.3f (at least %.2f)", median(kernel), median(ours), ratio, leastRatio)
	if ratio < leastRatio {
		t.Errorf("ratio %.3f, expected at least %.2f", ratio, leastRatio)
	}
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// kernelCloneRate measures a fresh dm-clone.
func kernelCloneRate(m *harness.Machine, source, dest, metadata *harness.Disk) float64 {
	m.Helper()
	m.Erase(metadata)
	m.MustRun("dmsetup", "create", "kernel", "--table",
		fmt.Sprintf("0 %d clone %s %s %s 8 1 no_hydration", source.Size/harness.Sector, metadata.Path, dest.Path, source.Path))
	defer m.MustRun("dmsetup", "remove", "--retry", "kernel")
	return writeRate(m, m.MapperPath("kernel"))
}

// cloneRate measures a fresh clone.
func cloneRate(m *harness.Machine, source, dest, metadata *harness.Disk) float64 {
	m.Helper()
	m.Erase(metadata)
	c := m.AddClone(source, dest, metadata, "--no-hydration", "--force")
	m.WriteFile(fmt.Sprintf("/sys/block/%s/queue/scheduler", m.Block(c.Path).Name), "none")
	defer c.Del()
	return writeRate(m, c.Path)
}

// writeRate is how many random writes of 4 KiB fio makes in a second at depth 32.
func writeRate(m *harness.Machine, path string) float64 {
	m.Helper()
	out := m.MustRun("fio", "--name=write", "--filename="+path, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--ioengine=libaio",
		"--direct=1", "--thread", "--ramp_time=400ms", "--runtime=1s", "--time_based", "--randrepeat=1", "--output-format=json")
	var report struct {
		Jobs []struct {
			Error int `json:"error"`
			Write struct {
				IOPS float64 `json:"iops"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		m.Fatalf("fio: %v: %s", err, out)
	}
	return report.Jobs[0].Write.IOPS
}
