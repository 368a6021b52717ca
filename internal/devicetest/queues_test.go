//go:build device

package devicetest

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Each queue of a device is used, and carries its own data.

func TestOneQueue(t *testing.T) {
	runs.On(t, "6.12", "7.3", runs.Sampled)
	testQueues(t, 1)
}

func TestTwoQueues(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Sampled)
	testQueues(t, 2)
}

func TestFourQueues(t *testing.T) {
	runs.On(t, "6.12", runs.FourCPUs)
	testQueues(t, 4)
}

func testQueues(t *testing.T, queues int) {
	if cpus := runtime.NumCPU(); cpus < queues {
		t.Fatalf("%d queues need as many CPUs, there are %d (SMP=%d)", queues, cpus, queues)
	}
	m := harness.New(t)
	size := 32 * harness.MiB
	source := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB})
	dest := m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	c := m.AddClone(source, dest, m.Missing("meta"), "--queues", strconv.Itoa(queues), "--no-hydration")
	owners := queueOwners(c, queues)
	w := harness.NewModel(size, 4*harness.KiB)

	before := c.Status()
	writeFromEach(c, w, owners)
	after := c.Status()
	if len(after.Queues) != queues || len(before.Queues) != queues {
		t.Fatalf("status shows %d queues, %d were asked for", len(after.Queues), queues)
	}
	for q, cpus := range owners {
		n := after.Queues[q].Requests - before.Queues[q].Requests
		t.Logf("queue %d, CPUs %v: %d requests", q, cpus, n)
		if n < uint64(len(cpus)*writesOfEach) {
			t.Errorf("queue %d had %d requests, its CPUs made %d", q, n, len(cpus)*writesOfEach)
		}
	}
	w.Check(m, c.Path)

	c.HydrateSlowly()
	verifyWithFio(c, queues)
	c.HydrateFast()
	c.WaitHydrated()
	c.Del()
}

// queueOwners are the CPUs of each queue, by /sys/block/ublkbN/mq/Q/cpu_list.
func queueOwners(c *harness.Clone, queues int) map[int][]int {
	c.M.Helper()
	owners := map[int][]int{}
	for q := range queues {
		list := c.M.ReadFile(fmt.Sprintf("/sys/block/%s/mq/%d/cpu_list", c.M.Block(c.Path).Name, q))
		for text := range strings.SplitSeq(strings.TrimSpace(list), ",") {
			cpu, err := strconv.Atoi(strings.TrimSpace(text))
			if err != nil {
				c.M.Fatalf("CPUs of queue %d: %q", q, list)
			}
			owners[q] = append(owners[q], cpu)
		}
	}
	return owners
}

// writesOfEach is how many requests each CPU makes.
const writesOfEach = 64

// writeFromEach lets every CPU write, at the same time, its own stripes of the device through its
// own queue: neighbouring requests go through different queues with different data, of which any
// mix-up of tags, buffers or descriptors would show.
func writeFromEach(c *harness.Clone, w *harness.Model, owners map[int][]int) {
	c.M.Helper()
	var cpus []int
	for _, own := range owners {
		cpus = append(cpus, own...)
	}
	const length = 12 * harness.KiB // a region and two halves, every other time
	var group sync.WaitGroup
	for i, cpu := range cpus {
		v, buf := c.M.Open(c.Path, os.O_RDWR), c.M.Buffer(int(length))
		group.Go(func() {
			defer v.F.Close()
			if err := pin(cpu); err != nil {
				c.M.Error(err)
				return
			}
			for n := range writesOfEach {
				off := int64(n*len(cpus)+i) * (length + 2*harness.KiB)
				if err := w.Write(v, buf, off, false); err != nil {
					c.M.Errorf("CPU %d: %v", cpu, err)
					return
				}
				if err := w.Read(v, buf, off); err != nil {
					c.M.Errorf("CPU %d: %v", cpu, err)
					return
				}
			}
		})
	}
	group.Wait()
	if c.M.Failed() {
		c.M.FailNow()
	}
}

// pin keeps the goroutine's thread on a CPU; the thread ends with the goroutine.
func pin(cpu int) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	return nil
}

// verifyWithFio writes blocks of 512 bytes to 1 MiB with a checksum in each, from a job on each
// CPU, and reads them again.
func verifyWithFio(c *harness.Clone, jobs int) {
	c.M.Helper()
	share := c.Status().Size / int64(jobs)
	cpus := make([]string, jobs)
	for i := range cpus {
		cpus[i] = strconv.Itoa(i)
	}
	args := []string{
		"--name=verify", "--filename=" + c.Path, "--direct=1", "--ioengine=libaio", "--iodepth=16", "--rw=randwrite",
		"--bsrange=512-1m", "--verify=crc32c", "--verify_fatal=1", "--randseed=" + strconv.FormatUint(harness.Seed(), 10),
		fmt.Sprintf("--size=%d", share), fmt.Sprintf("--offset_increment=%d", share),
		fmt.Sprintf("--io_size=%d", min(share, int64(harness.Count(8, 256))*harness.MiB)), fmt.Sprintf("--numjobs=%d", jobs),
		"--cpus_allowed=" + strings.Join(cpus, ","), "--cpus_allowed_policy=split", "--group_reporting",
		"--thread",
	}
	out := c.M.MustRun("fio", args...)
	for line := range strings.SplitSeq(out, "\n") {
		if strings.Contains(line, "IOPS=") {
			c.M.Log(strings.TrimSpace(line))
		}
	}
}
