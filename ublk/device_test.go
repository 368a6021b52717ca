//go:build device

package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/ublk-clone/ublk-clone/ublk/uring"
	"golang.org/x/sys/unix"
)

// These tests make real devices: they run as root in a guest whose kernel has the driver. They work on a machine of their own, where nobody else makes ublk
// devices.

func TestMain(m *testing.M) {
	for _, module := range []string{"ublk_drv", "null_blk"} {
		args := []string{module}
		if module == "null_blk" {
			args = append(args, "nr_devices=0")
		}
		if out, err := exec.Command("modprobe", args...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "modprobe %s: %v: %s\n", module, err, out)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

const testLimit = 30 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seen is a request as a target got it.
type seen struct {
	queue int
	Desc
}

// memory is a disk in memory with a target for each queue. Requests may be held back, and made to fail.
type memory struct {
	disk []byte

	mu struct {
		sync.Mutex
		requests []seen
		hold     bool             // keep requests until release
		held     int              // requests kept
		fail     map[uint64]error // by first sector
		queues   []*Queue
	}
}

func newMemory(size int64) *memory {
	m := &memory{disk: make([]byte, size)}
	m.mu.fail = make(map[uint64]error)
	return m
}

// memoryTarget serves one queue of a memory.
type memoryTarget struct {
	m    *memory
	q    *Queue
	held []uint16
}

func (m *memory) target(q *Queue) Target {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.queues = append(m.mu.queues, q)
	return &memoryTarget{m: m, q: q}
}

func (t *memoryTarget) Request(tag uint16, d Desc) {
	m := t.m
	m.mu.Lock()
	m.mu.requests = append(m.mu.requests, seen{t.q.Index(), d})
	hold, err := m.mu.hold, m.mu.fail[d.Sector]
	if hold {
		m.mu.held++
	}
	m.mu.Unlock()
	switch {
	case hold:
		t.held = append(t.held, tag)
	case err != nil:
		t.q.Commit(tag, err)
	default:
		t.serve(tag, d)
	}
}

func (t *memoryTarget) serve(tag uint16, d Desc) {
	if d.Op != OpFlush {
		part := t.m.disk[d.Offset() : d.Offset()+d.Length()]
		switch d.Op {
		case OpRead:
			copy(t.q.Data(tag), part)
		case OpWrite:
			copy(part, t.q.Data(tag))
		case OpDiscard, OpWriteZeroes:
			clear(part)
		}
	}
	t.q.Commit(tag, nil)
}

func (t *memoryTarget) Complete(token uint32, err error) {}

func (t *memoryTarget) Drain() {
	t.m.mu.Lock()
	hold := t.m.mu.hold
	t.m.mu.Unlock()
	if hold {
		return
	}
	for _, tag := range t.held {
		t.serve(tag, t.q.desc(tag))
	}
	t.held = t.held[:0]
}

// release lets go of the requests held back, from outside the queues' threads.
func (m *memory) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.hold = false
	for _, q := range m.mu.queues {
		q.Loop().Wake()
	}
}

// take returns the requests seen since the last take.
func (m *memory) take() []seen {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.mu.requests
	m.mu.requests = nil
	return r
}

func openTestControl(t testing.TB) *Control {
	t.Helper()
	c, err := OpenControl()
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

const mib = 1 << 20

// testOptions is a device of 64 MiB with a cache.
func testOptions(queues int) Options {
	return Options{
		ID: AnyID, Queues: queues, Depth: 16, Private: 0x1122334455667788,
		Params: Params{
			Size: 64 * mib, MaxIO: 256 << 10, VolatileCache: true, FUA: true,
			DiscardGranularity: 4096, MaxDiscard: 16 * mib, MaxWriteZeroes: 16 * mib,
		},
		Fatal: func(err error) { panic(err) },
	}
}

// startDevice makes a device that serves m until the test ends.
func startDevice(t testing.TB, o Options, newTarget func(*Queue) Target) *Device {
	t.Helper()
	d, err := Create(openTestControl(t), o)
	must(t, err)
	t.Cleanup(func() {
		must(t, d.Stop(testLimit))
		must(t, d.Delete(testLimit))
	})
	must(t, d.Start(newTarget))
	return d
}

func openBlock(t testing.TB, d *Device) *os.File {
	t.Helper()
	f, err := os.OpenFile(d.BlockPath(), os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func alignedBuffer(t testing.TB, length int) []byte {
	t.Helper()
	b, err := uring.MapBuffer(length)
	must(t, err)
	t.Cleanup(func() { must(t, uring.UnmapBuffer(b)) })
	return b
}

func pattern(b []byte, seed int) []byte {
	for i := 0; i < len(b); i += 8 {
		*(*uint64)(unsafe.Pointer(&b[i])) = uint64(seed)<<40 | uint64(i)
	}
	return b
}

func TestDriver(t *testing.T) {
	c := openTestControl(t)
	f, err := c.Features(context.Background())
	must(t, err)
	t.Logf("features %#x: %+v", f.Bits, f)
	if !f.IoctlEncode || !f.UserCopy || !f.UserRecovery {
		t.Errorf("features %+v", f)
	}
}

// TestQueues: with 1, 2 and 4 queues, a thread on each CPU writes its own pattern. The requests of a CPU come to the queue whose CPU it is, and with its own data:
// a wrong descriptor mapping shows another queue's.
func TestQueues(t *testing.T) {
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
	d, err := Create(openTestControl(t), testOptions(64))
	must(t, err)
	if d.Info().Queues != runtime.NumCPU() {
		t.Errorf("of 64 queues there are %d, with %d CPUs", d.Info().Queues, runtime.NumCPU())
	}
	must(t, d.Delete(testLimit))
}

func TestDeepestQueue(t *testing.T) {
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
	p, err := d.ctl.GetParams(ctx, d.Info().ID)
	must(t, err)
	if p != d.Params() {
		t.Errorf("parameters\n%+v, want\n%+v", p, d.Params())
	}
	ids, err := List()
	must(t, err)
	if !slices.Contains(ids, d.Info().ID) {
		t.Errorf("device %d is not in %v", d.Info().ID, ids)
	}
	for name, want := range map[string]string{
		"logical_block_size": "512", "physical_block_size": "4096", "minimum_io_size": "4096", "optimal_io_size": "65536",
		"discard_granularity": "4096", "discard_max_bytes": "16777216", "write_zeroes_max_bytes": "16777216",
		"max_hw_sectors_kb": "256", "write_cache": "write back", "fua": "1", "dma_alignment": "511",
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

// ranges for BLKDISCARD and BLKZEROOUT.
func blkRange(t *testing.T, f *os.File, request uintptr, off, length uint64) {
	t.Helper()
	r := [2]uint64{off, length}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&r))); errno != 0 {
		t.Fatalf("ioctl %#x: %v", request, errno)
	}
}

const (
	blkDiscard = 0x1277
	blkZeroout = 0x127f
)

// TestOperations: what a client does and what arrives.
func TestOperations(t *testing.T) {
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
		{"BLKDISCARD", func() error { blkRange(t, f, blkDiscard, mib, 2*mib); return nil },
			[]Desc{{Op: OpDiscard, Sector: 2048, NrSectors: 4096}}},
		{"BLKZEROOUT", func() error { blkRange(t, f, blkZeroout, mib, 8192); return nil },
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
			got = append(got, r.Desc)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s arrived as %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestErrors: what a target answers and what the client gets.
func TestErrors(t *testing.T) {
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

// TestStopWithIO: what is outstanding is answered by the target before the device goes.
func TestStopWithIO(t *testing.T) {
	m := newMemory(64 * mib)
	o := testOptions(2)
	ctl := openTestControl(t)
	d, err := Create(ctl, o)
	must(t, err)
	must(t, d.Start(m.target))
	m.mu.Lock()
	m.mu.hold, m.mu.held = true, 0
	m.mu.Unlock()
	const writers = 8
	f := openBlock(t, d)
	results := make(chan error, writers)
	for i := range writers {
		b := pattern(alignedBuffer(t, 4096), i+1)
		go func() {
			_, err := f.WriteAt(b, int64(i)*4096)
			results <- err
		}()
	}
	waitFor(t, "requests to be held", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.mu.held == writers
	})
	var timeout *TimeoutError
	if err := d.Stop(300 * time.Millisecond); !errors.As(err, &timeout) || timeout.Command != "STOP_DEV" {
		t.Fatalf("stop with requests held back: %v, want a TimeoutError", err)
	}
	if err := d.Delete(time.Second); !errors.Is(err, ErrState) {
		t.Errorf("delete of a live device: %v", err)
	}
	m.release()
	must(t, d.Stop(testLimit))
	for range writers {
		if err := <-results; err != nil {
			t.Errorf("a write that was outstanding: %v", err)
		}
	}
	want := make([]byte, 4096)
	for i := range writers {
		if !bytes.Equal(m.disk[i*4096:(i+1)*4096], pattern(want, i+1)) {
			t.Errorf("write %d is not on the disk", i)
		}
	}
	f.Close()
	must(t, d.Delete(testLimit))
	must(t, d.Delete(testLimit))
	if err := d.Start(m.target); !errors.Is(err, ErrState) {
		t.Errorf("start of a deleted device: %v", err)
	}
}

// waitFor asks until done, which comes about in another thread or in the kernel.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for limit := time.Now().Add(testLimit); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("waited %v for %s", testLimit, what)
		}
	}
}

// TestDeleteWaitsForOpeners: a device that somebody has open is deleted when they close it, and Delete does not wait longer than it was told.
func TestDeleteWaitsForOpeners(t *testing.T) {
	m := newMemory(64 * mib)
	d, err := Create(openTestControl(t), testOptions(1))
	must(t, err)
	must(t, d.Start(m.target))
	f := openBlock(t, d)
	must(t, d.Stop(testLimit))
	begin := time.Now()
	var timeout *TimeoutError
	if err := d.Delete(300 * time.Millisecond); !errors.As(err, &timeout) || timeout.Command != "DEL_DEV" {
		t.Fatalf("delete of a device that is open: %v, want a TimeoutError", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	f.Close()
	must(t, d.Delete(testLimit))
	waitFor(t, "the device to go", func() bool {
		ids, err := List()
		must(t, err)
		return !slices.Contains(ids, d.Info().ID)
	})
}

func TestTryStop(t *testing.T) {
	m := newMemory(64 * mib)
	ctl := openTestControl(t)
	d, err := Create(ctl, testOptions(1))
	must(t, err)
	must(t, d.Start(m.target))
	features, err := ctl.Features(context.Background())
	must(t, err)
	f := openBlock(t, d)
	err = ctl.TryStop(context.Background(), d.Info().ID)
	if features.SafeStop && !errors.Is(err, unix.EBUSY) {
		t.Errorf("with the device open: %v, want EBUSY", err)
	}
	f.Close()
	if !features.SafeStop {
		if !errors.Is(err, ErrNotSupported) {
			t.Errorf("a driver without it: %v, want a FeatureError", err)
		}
	} else {
		must(t, ctl.TryStop(context.Background(), d.Info().ID))
	}
	must(t, d.Stop(testLimit))
	must(t, d.Delete(testLimit))
}

// resources is what a device takes: descriptors, threads, nodes, ids.
type resources struct {
	descriptors, threads int
	nodes                []string
	ids                  []int
}

func resourcesNow(t *testing.T) resources {
	t.Helper()
	count := func(dir string) int {
		e, err := os.ReadDir(dir)
		must(t, err)
		return len(e)
	}
	nodes, err := filepath.Glob("/dev/ublk[bc][0-9]*")
	must(t, err)
	ids, err := List()
	must(t, err)
	return resources{count("/proc/self/fd"), count("/proc/self/task"), nodes, ids}
}

// leftBehind compares what there is with before. Threads may be threadSlack more: the runtime makes and keeps some, and the kernel's workers go a little later.
func leftBehind(t *testing.T, before resources) {
	t.Helper()
	const threadSlack = 8
	now := resourcesNow(t)
	if now.descriptors != before.descriptors || now.threads > before.threads+threadSlack ||
		!slices.Equal(now.nodes, before.nodes) || !slices.Equal(now.ids, before.ids) {
		t.Errorf("left behind: before %+v, now %+v", before, now)
	}
}

func TestCyclesLeaveNothing(t *testing.T) {
	ctl := openTestControl(t)
	m := newMemory(64 * mib)
	b := alignedBuffer(t, 4096)
	cycle := func(i int) {
		d, err := Create(ctl, testOptions(2))
		must(t, err)
		must(t, d.Start(m.target))
		f, err := os.OpenFile(d.BlockPath(), os.O_RDWR|unix.O_DIRECT, 0)
		must(t, err)
		if _, err := f.WriteAt(pattern(b, i), int64(i)*4096); err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		must(t, f.Close())
		must(t, d.Stop(testLimit))
		must(t, d.Delete(testLimit))
		if !bytes.Equal(m.disk[i*4096:(i+1)*4096], b) {
			t.Fatalf("cycle %d: the write did not arrive", i)
		}
	}
	cycle(0)
	before := resourcesNow(t)
	for i := range 50 {
		cycle(i)
	}
	leftBehind(t, before)
}

// TestFailureLeavesNothing: whatever step fails, nothing is left, and the next device works.
func TestFailureLeavesNothing(t *testing.T) {
	ctl := openTestControl(t)
	m := newMemory(64 * mib)
	wanted := errors.New("wanted")
	failAt := func(step string) func(string) error {
		return func(s string) error {
			if s == step {
				return wanted
			}
			return nil
		}
	}
	before := resourcesNow(t)
	for _, c := range []struct {
		name   string
		change func(*Options)
		target func(*Queue) Target
		want   string
	}{
		{"add", func(o *Options) { o.fail = failAt("add") }, nil, "wanted"},
		{"compare", func(o *Options) { o.fail = failAt("compare") }, nil, "wanted"},
		{"open", func(o *Options) { o.fail = failAt("open") }, nil, "wanted"},
		{"params", func(o *Options) { o.fail = failAt("params") }, nil, "wanted"},
		{"first queue", func(o *Options) { o.fail = failAt("queue 0") }, m.target, "wanted"},
		{"second queue", func(o *Options) { o.fail = failAt("queue 1") }, m.target, "wanted"},
		{"start", func(o *Options) { o.fail = failAt("start") }, m.target, "wanted"},
		{"no target", func(o *Options) {}, func(*Queue) Target { return nil }, "queue 0: no target"},
		{"no target for the second queue", func(o *Options) {}, func(q *Queue) Target {
			if q.Index() == 1 {
				return nil
			}
			return m.target(q)
		}, "queue 1: no target"},
		{"ring of a queue", func(o *Options) {}, func(q *Queue) Target {
			if q.Index() == 1 {
				q.Loop().Fail(wanted)
			}
			return m.target(q)
		}, "wanted"},
		{"panic in set-up", func(o *Options) { o.Fatal = func(error) {} }, func(*Queue) Target { panic("wanted") }, "queue 0 ended"},
		{"parameters that the driver refuses", func(o *Options) { o.Params.LogicalBlockSize, o.Params.Size = 4096, 3*512 },
			nil, "size 1536"},
		{"an id that is taken", nil, nil, "file exists"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := testOptions(2)
			if c.change == nil { // the id
				d, err := Create(ctl, o)
				must(t, err)
				defer func() { must(t, d.Delete(testLimit)) }()
				o.ID = d.Info().ID
			} else {
				c.change(&o)
			}
			d, err := Create(ctl, o)
			if err == nil && c.target != nil {
				err = d.Start(c.target)
				must(t, d.Stop(testLimit))
				must(t, d.Delete(testLimit))
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
		leftBehind(t, before)
	}
	d := startDevice(t, testOptions(2), m.target)
	if _, err := openBlock(t, d).ReadAt(alignedBuffer(t, 4096), 0); err != nil {
		t.Error(err)
	}
}

// TestPanicEndsTheProcess runs a server in a process of its own, whose target panics at a sector.
func TestPanicEndsTheProcess(t *testing.T) {
	const variable = "UBLK_TEST_SERVER"
	if os.Getenv(variable) != "" {
		servePanic(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPanicEndsTheProcess$")
	cmd.Env = append(os.Environ(), variable+"=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var id int
	if _, err := fmt.Fscanf(out, "device %d\n", &id); err != nil {
		t.Fatalf("server: %v: %s", err, stderr.String())
	}
	f, err := os.OpenFile(BlockPath(id), os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	if _, err := f.ReadAt(alignedBuffer(t, 4096), 8*mib); err == nil {
		t.Error("a read whose server died succeeded")
	}
	f.Close()
	err = cmd.Wait()
	if cmd.ProcessState.String() != "signal: killed" {
		t.Errorf("the server ended with %v, want SIGKILL", err)
	}
	if got := stderr.String(); !strings.Contains(got, "fatal: queue 0: panic: sector 16384") {
		t.Errorf("its message: %q", got)
	}
	ctl := openTestControl(t)
	must(t, ctl.DelDev(context.Background(), id))
}

// panicTarget panics when it is asked for 8 MiB.
type panicTarget struct{ memoryTarget }

func (p *panicTarget) Request(tag uint16, d Desc) {
	if d.Sector == 8*mib/512 {
		panic("sector " + strconv.FormatUint(d.Sector, 10))
	}
	p.memoryTarget.Request(tag, d)
}

func servePanic(t *testing.T) {
	m := newMemory(64 * mib)
	o := testOptions(1)
	o.Fatal = nil
	d := startDevice(t, o, func(q *Queue) Target { return &panicTarget{memoryTarget{m: m, q: q}} })
	fmt.Printf("device %d\n", d.Info().ID)
	select {}
}
