//go:build device

package devicetest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The counting guest (ICOUNT=1, scripts/vm) has a clock that counts instructions, so that figures
// repeat within about 1 % on any machine. Its one CPU does 1 GIPS; with devices slower by a factor it
// stands for a CPU of that many GIPS.

// slowdown of the devices: a CPU of 4 GIPS is a realistic core.
var slowdown = slowdownFrom(os.Getenv("BENCH_S"))

// ssd and hdd are a disk of each kind: latency of a request, requests at a time, rate.
var (
	ssd = nullOptions{latency: time.Duration(slowdown) * 72600 * time.Nanosecond, depth: 5, mbps: 390 / slowdown}
	hdd = nullOptions{latency: time.Duration(slowdown) * 1400 * time.Microsecond, depth: 1, mbps: 120 / slowdown}
)

// sized is a disk of that kind and size.
func (o nullOptions) sized(mib int64) nullOptions {
	o.mib = mib
	return o
}

// leastRatio of ublk-clone's rate to dm-clone's.
const leastRatio = 0.90

// TestBenchRandomWrites compares the rate of random writes of whole unhydrated regions of 4 KiB with
// that of the kernel's dm-clone in the same guest: a check that the loop has the right shape.
func TestBenchRandomWrites(t *testing.T) {
	runs.On(t, "6.18", runs.LeapingClock)
	m := newMachine(t)
	m.run("modprobe", "dm-clone")
	const size = 512
	source, dest := m.nullBlk("hdd", hdd.sized(size)), m.nullBlk("ssd", ssd.sized(size))
	metadata := m.nullBlk("meta", ssd.sized(16))

	t.Logf("raw SSD: %.0f writes a second", m.writeRate(dest.path))
	var kernel, ours []float64
	for range 3 {
		kernel = append(kernel, m.kernelCloneRate(source, dest, metadata))
		ours = append(ours, m.cloneRate(source, dest, metadata))
		t.Logf("writes a second: dm-clone %.0f, ublk-clone %.0f", kernel[len(kernel)-1], ours[len(ours)-1])
	}
	ratio := median(ours) / median(kernel)
	t.Logf("medians: dm-clone %.0f, ublk-clone %.0f, ratio %.3f (at least %.2f)", median(kernel), median(ours), ratio, leastRatio)
	if ratio < leastRatio {
		t.Errorf("ratio %.3f, expected at least %.2f", ratio, leastRatio)
	}
}

// cachePrograms brings programs into the page cache: a wait for the host's files would leap over the
// time limits of the daemon.
func (m *machine) cachePrograms(names ...string) {
	m.Helper()
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			_, err = os.ReadFile(path)
		}
		if err != nil {
			m.Fatal(err)
		}
		m.try(name, "--version") // its libraries
	}
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// kernelCloneRate measures a fresh dm-clone.
func (m *machine) kernelCloneRate(source, dest, metadata *disk) float64 {
	m.Helper()
	m.erase(metadata)
	m.run("dmsetup", "create", "kernel", "--table",
		fmt.Sprintf("0 %d clone %s %s %s 8 1 no_hydration", source.size/sector, metadata.path, dest.path, source.path))
	defer m.run("dmsetup", "remove", "--retry", "kernel")
	return m.writeRate(m.mapperPath("kernel"))
}

// cloneRate measures a fresh clone.
func (m *machine) cloneRate(source, dest, metadata *disk) float64 {
	m.Helper()
	m.erase(metadata)
	c := m.addClone(source, dest, metadata, "--no-hydration", "--force")
	m.writeFile(fmt.Sprintf("/sys/block/%s/queue/scheduler", m.block(c.path).name), "none")
	defer c.del()
	return m.writeRate(c.path)
}

// erase makes metadata empty.
func (m *machine) erase(d *disk) {
	m.Helper()
	m.fillDisk(d, zeros)
}

// writeRate is how many random writes of 4 KiB fio makes in a second at depth 32.
func (m *machine) writeRate(path string) float64 {
	m.Helper()
	out := m.run("fio", "--name=write", "--filename="+path, "--rw=randwrite", "--bs=4k", "--iodepth=32", "--ioengine=libaio",
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
