//go:build device

package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

func TestDriver(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	c := openTestControl(t)
	f, err := c.Features(context.Background())
	must(t, err)
	t.Logf("features %#x: %+v", f.Bits, f)
	if !f.IoctlEncode || !f.UserCopy || !f.UserRecovery {
		t.Errorf("features %+v", f)
	}
}

// TestQueues: with 1, 2 and 4 queues, a thread on each CPU writes its own pattern. The requests of
// a CPU come to the queue whose CPU it is, and with its own data: a wrong descriptor mapping shows
// another queue's.
func TestQueues(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	for _, queues := range []int{1, 2, 4} {
		for _, pin := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d queues, pinned %v", queues, pin), func(t *testing.T) { testQueues(t, queues, pin) })
		}
	}
}

func testQueues(t *testing.T, queues int, pin bool) {
	m := newMemory(64 * mib)
	o := testOptions(queues)
	o.Pin = pin
	var affinity []unix.CPUSet
	d := startDevice(t, o, func(q *Queue) Target {
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(0, &set); err != nil {
			t.Error(err)
		}
		affinity = append(affinity, set)
		return m.target(q)
	})
	if want := min(queues, runtime.NumCPU()); d.Info().Queues != want {
		t.Fatalf("%d queues, want %d", d.Info().Queues, want)
	}
	queueOf := make(map[int]int) // by CPU
	for i := range d.Info().Queues {
		set, err := d.ctl.QueueAffinity(context.Background(), d.Info().ID, i)
		must(t, err)
		for cpu := range runtime.NumCPU() {
			if set.IsSet(cpu) {
				queueOf[cpu] = i
			}
		}
		if pin && affinity[i] != set {
			t.Errorf("queue %d runs on %v, want %v", i, affinity[i], set)
		}
	}
	m.take()
	const each = 2 * mib
	var wg sync.WaitGroup
	for cpu := range runtime.NumCPU() {
		wg.Go(func() { writeFromCPU(t, d, cpu, int64(cpu)*each, each) })
	}
	wg.Wait()
	used := make(map[int]int)
	for _, r := range m.take() {
		used[r.queue]++
		cpu := int(r.Offset() / each)
		if r.Op == OpWrite && r.queue != queueOf[cpu] {
			t.Errorf("a write of CPU %d came to queue %d, want %d", cpu, r.queue, queueOf[cpu])
		}
	}
	for i := range d.Info().Queues {
		if used[i] == 0 {
			t.Errorf("queue %d was not used: %v", i, used)
		}
	}
	want := make([]byte, each)
	for cpu := range runtime.NumCPU() {
		if !bytes.Equal(m.disk[cpu*each:(cpu+1)*each], pattern(want, cpu+1)) {
			t.Errorf("what CPU %d wrote is not on the disk", cpu)
		}
	}
}

// writeFromCPU writes a pattern from one CPU and reads it back.
func writeFromCPU(t *testing.T, d *Device, cpu int, off, length int64) {
	runtime.LockOSThread() // not unlocked: the thread's affinity goes with it
	var set unix.CPUSet
	set.Set(cpu)
	f, err := os.OpenFile(d.BlockPath(), os.O_RDWR|unix.O_DIRECT, 0)
	if err == nil {
		err = unix.SchedSetaffinity(0, &set)
	}
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	b, want := alignedBuffer(t, int(length)), make([]byte, length)
	pattern(b, cpu+1)
	const piece = 16 << 10
	for at := int64(0); at < length; at += piece {
		if _, err := f.WriteAt(b[at:at+piece], off+at); err != nil {
			t.Errorf("CPU %d: %v", cpu, err)
			return
		}
	}
	clear(b)
	if _, err := f.ReadAt(b, off); err != nil || !bytes.Equal(b, pattern(want, cpu+1)) {
		t.Errorf("CPU %d reads other data than it wrote (%v)", cpu, err)
	}
}

func TestQueuesAreClamped(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	d, err := Create(openTestControl(t), testOptions(64))
	must(t, err)
	if d.Info().Queues != runtime.NumCPU() {
		t.Errorf("of 64 queues there are %d, with %d CPUs", d.Info().Queues, runtime.NumCPU())
	}
	must(t, d.Delete(testLimit))
}

func TestDeepestQueue(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	m := newMemory(64 * mib)
	o := testOptions(2)
	o.Depth = maxDepth
	o.Params.MaxIO = 4096
	d := startDevice(t, o, m.target)
	if d.Info().Depth != maxDepth || d.Info().MaxIO != 4096 {
		t.Errorf("%+v", d.Info())
	}
	f, b := openBlock(t, d), alignedBuffer(t, mib)
	if _, err := f.WriteAt(pattern(b, 9), mib); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.disk[mib:2*mib], b) {
		t.Error("a write in pieces did not arrive")
	}
}

// TestInfo reads everything back from the driver.
func TestInfo(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	m := newMemory(64 * mib)
	o := testOptions(1)
	o.Params.LogicalBlockSize, o.Params.PhysicalBlockSize, o.Params.IOMin, o.Params.IOOpt = 512, 4096, 4096, 65536
	o.Params.DMAAlignment = 512
	d := startDevice(t, o, m.target)
	ctx := context.Background()
	info, err := d.ctl.GetDevInfo(ctx, d.Info().ID)
	must(t, err)
	if info.State != StateLive || info.Private != o.Private || info.Depth != 16 || info.MaxIO != 256<<10 || info.ServerPID != os.Getpid() {
		t.Errorf("%+v", info)
	}
	features, err := d.ctl.Features(ctx)
	must(t, err)
	want, alignment := d.Params(), "511"
	if !features.AutoBufReg { // a driver of before that has no alignment parameter either
		want.DMAAlignment, alignment = 0, "3"
	}
	p, err := d.ctl.GetParams(ctx, d.Info().ID)
	must(t, err)
	if p != want {
		t.Errorf("parameters\n%+v, want\n%+v", p, want)
	}
	ids, err := List()
	must(t, err)
	if !slices.Contains(ids, d.Info().ID) {
		t.Errorf("device %d is not in %v", d.Info().ID, ids)
	}
	for name, want := range map[string]string{
		"logical_block_size": "512", "physical_block_size": "4096", "minimum_io_size": "4096", "optimal_io_size": "65536",
		"discard_granularity": "4096", "discard_max_bytes": "16777216", "write_zeroes_max_bytes": "16777216",
		"max_hw_sectors_kb": "256", "write_cache": "write back", "fua": "1", "dma_alignment": alignment,
	} {
		path := fmt.Sprintf("/sys/block/ublkb%d/queue/%s", d.Info().ID, name)
		if got, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q (%v), want %s", name, got, err, want)
		}
	}
	if err := d.ctl.SetParams(ctx, d.Info().ID, d.Params()); err == nil {
		t.Error("parameters of a live device were changed")
	}
}

// blockRange is BLKDISCARD or BLKZEROOUT.
func blockRange(f *os.File, request uintptr, off, length int64) error {
	r := [2]uint64{uint64(off), uint64(length)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}

const (
	blkDiscard = 0x1277
	blkZeroout = 0x127f
)

// TestOperations: what a client does and what arrives.
func TestOperations(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	m := newMemory(64 * mib)
	d := startDevice(t, testOptions(1), m.target)
	f, b := openBlock(t, d), alignedBuffer(t, 8192)
	m.take()
	fd := int(f.Fd())
	for _, c := range []struct {
		name string
		do   func() error
		want []Desc // Flags: only FUA and NoUnmap are looked at
	}{
		{"write", func() error { _, err := f.WriteAt(b, 4096); return err },
			[]Desc{{Op: OpWrite, Sector: 8, NrSectors: 16}}},
		{"read", func() error { _, err := f.ReadAt(b, 4096); return err },
			[]Desc{{Op: OpRead, Sector: 8, NrSectors: 16}}},
		{"512 bytes", func() error { _, err := f.WriteAt(b[:512], 64*mib-512); return err },
			[]Desc{{Op: OpWrite, Sector: 64*mib/512 - 1, NrSectors: 1}}},
		{"fsync", f.Sync,
			[]Desc{{Op: OpFlush, Sector: 1<<64 - 1}}},
		{"write with RWF_DSYNC", func() error { _, err := unix.Pwritev2(fd, [][]byte{b}, 0, unix.RWF_DSYNC); return err },
			[]Desc{{Op: OpWrite, Flags: FlagFUA, Sector: 0, NrSectors: 16}}},
		{"BLKDISCARD", func() error { return blockRange(f, blkDiscard, mib, 2*mib) },
			[]Desc{{Op: OpDiscard, Sector: 2048, NrSectors: 4096}}},
		{"BLKZEROOUT", func() error { return blockRange(f, blkZeroout, mib, 8192) },
			[]Desc{{Op: OpWriteZeroes, Flags: FlagNoUnmap, Sector: 2048, NrSectors: 16}}},
		{"fallocate ZERO_RANGE", func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, mib, 4096)
		}, []Desc{{Op: OpWriteZeroes, Flags: FlagNoUnmap, Sector: 2048, NrSectors: 8}}},
		{"fallocate PUNCH_HOLE", func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, mib, 4096)
		}, []Desc{{Op: OpWriteZeroes, Sector: 2048, NrSectors: 8}}},
	} {
		must(t, c.do())
		var got []Desc
		for _, r := range m.take() {
			r.Flags &= FlagFUA | FlagNoUnmap
			if r.Op == OpFlush && c.want[0].Flags == FlagFUA {
				continue // a FLUSH may follow for the node's own metadata
			}
			if r.Op == OpRead && r.Sector != c.want[0].Sector {
				continue // the kernel's own, looking for partitions: 6.18 does that beside us
			}
			got = append(got, r.Desc)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s arrived as %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestErrors: what a target answers and what the client gets.
func TestErrors(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	m := newMemory(64 * mib)
	d := startDevice(t, testOptions(1), m.target)
	f, b := openBlock(t, d), alignedBuffer(t, 4096)
	for i, c := range []struct {
		answer error
		want   unix.Errno
	}{
		{unix.EIO, unix.EIO}, {unix.ENOSPC, unix.ENOSPC}, {unix.ENOMEM, unix.ENOMEM}, {unix.ETIMEDOUT, unix.ETIMEDOUT},
		{unix.EAGAIN, unix.EIO}, {errors.New("no errno"), unix.EIO}, {unix.EOPNOTSUPP, unix.EOPNOTSUPP},
	} {
		sector := uint64(i * 8)
		m.mu.Lock()
		m.mu.fail[sector] = c.answer
		m.mu.Unlock()
		for name, do := range map[string]func([]byte, int64) (int, error){"read": f.ReadAt, "write": f.WriteAt} {
			if n, err := do(b, int64(sector)*512); !errors.Is(err, c.want) || n != 0 {
				t.Errorf("%s answered with %v gave %d, %v; want %v", name, c.answer, n, err, c.want)
			}
		}
	}
	if _, err := f.ReadAt(b, 32*mib); err != nil {
		t.Errorf("read elsewhere: %v", err)
	}
}
