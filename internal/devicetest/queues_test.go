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

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Each queue of a device is used, and carries its own data.

func TestOneQueue(t *testing.T) {
	runs.On(t, "6.12", "7.3")
	testQueues(t, 1)
}

func TestTwoQueues(t *testing.T) {
	runs.On(t, runs.EveryKernel)
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
	m := newMachine(t)
	size := 32 * mib
	source := m.nullBlk("src", nullOptions{mib: size / mib})
	dest := m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	c := m.addClone(source, dest, m.missing("meta"), "--queues", strconv.Itoa(queues), "--no-hydration")
	owners := c.queueOwners(queues)
	w := newModel(size, 4*kib)

	before := c.status()
	c.writeFromEach(w, owners)
	after := c.status()
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
	w.check(m, c.path)

	c.hydrateSlowly()
	c.verifyWithFio(queues)
	c.hydrateFast()
	c.waitHydrated()
	c.del()
}

// queueOwners are the CPUs of each queue, by /sys/block/ublkbN/mq/Q/cpu_list.
func (c *clone) queueOwners(queues int) map[int][]int {
	c.m.Helper()
	owners := map[int][]int{}
	for q := range queues {
		list := c.m.readFile(fmt.Sprintf("/sys/block/%s/mq/%d/cpu_list", c.m.block(c.path).name, q))
		for text := range strings.SplitSeq(strings.TrimSpace(list), ",") {
			cpu, err := strconv.Atoi(strings.TrimSpace(text))
			if err != nil {
				c.m.Fatalf("CPUs of queue %d: %q", q, list)
			}
			owners[q] = append(owners[q], cpu)
		}
	}
	return owners
}

// writesOfEach is how many requests each CPU makes.
const writesOfEach = 64

// writeFromEach lets every CPU write, at the same time, its own stripes of the device through its own
// queue: neighbouring requests go through different queues with different data, of which any mix-up of
// tags, buffers or descriptors would show.
func (c *clone) writeFromEach(w *model, owners map[int][]int) {
	c.m.Helper()
	var cpus []int
	for _, own := range owners {
		cpus = append(cpus, own...)
	}
	const length = 12 * kib // a region and two halves, every other time
	var group sync.WaitGroup
	for i, cpu := range cpus {
		v, buf := c.m.open(c.path, os.O_RDWR), c.m.buffer(int(length))
		group.Go(func() {
			defer v.f.Close()
			if err := pin(cpu); err != nil {
				c.m.Error(err)
				return
			}
			for n := range writesOfEach {
				off := int64(n*len(cpus)+i) * (length + 2*kib)
				if err := w.write(v, buf, off, false); err != nil {
					c.m.Errorf("CPU %d: %v", cpu, err)
					return
				}
				if err := w.read(v, buf, off); err != nil {
					c.m.Errorf("CPU %d: %v", cpu, err)
					return
				}
			}
		})
	}
	group.Wait()
	if c.m.Failed() {
		c.m.FailNow()
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

// verifyWithFio writes blocks of 512 bytes to 1 MiB with a checksum in each, from a job on each CPU,
// and reads them again.
func (c *clone) verifyWithFio(jobs int) {
	c.m.Helper()
	share := c.status().Size / int64(jobs)
	cpus := make([]string, jobs)
	for i := range cpus {
		cpus[i] = strconv.Itoa(i)
	}
	args := []string{
		"--name=verify", "--filename=" + c.path, "--direct=1", "--ioengine=libaio", "--iodepth=16", "--rw=randwrite",
		"--bsrange=512-1m", "--verify=crc32c", "--verify_fatal=1", "--randseed=" + strconv.FormatUint(seed(), 10),
		fmt.Sprintf("--size=%d", share), fmt.Sprintf("--offset_increment=%d", share),
		fmt.Sprintf("--io_size=%d", min(share, int64(count(8, 256))*mib)), fmt.Sprintf("--numjobs=%d", jobs),
		"--cpus_allowed=" + strings.Join(cpus, ","), "--cpus_allowed_policy=split", "--group_reporting",
		"--thread",
	}
	out := c.m.run("fio", args...)
	for line := range strings.SplitSeq(out, "\n") {
		if strings.Contains(line, "IOPS=") {
			c.m.Log(strings.TrimSpace(line))
		}
	}
}
