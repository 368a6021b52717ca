//go:build device

package ublk

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/ublk-clone/ublk-clone/ublk/uring"
	"golang.org/x/sys/unix"
)

// These tests make real devices: they run as root in a guest whose kernel has the driver. They work
// on a machine of their own, where nobody else makes ublk devices.

func TestMain(m *testing.M) {
	if config := os.Getenv(serverVariable); config != "" {
		serverMain(config)
		return
	}
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

// memory is a disk in memory with a target for each queue. Requests may be held back, and made to
// fail.
type memory struct {
	disk []byte

	mu struct {
		sync.Mutex
		requests []seen
		hold     bool             // keep WRITEs until release
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
	hold, err := m.mu.hold && d.Op == OpWrite, m.mu.fail[d.Sector]
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
	var err error
	if d.Op != OpFlush {
		part := t.m.disk[d.Offset() : d.Offset()+d.Length()]
		switch d.Op {
		case OpRead:
			err = t.q.Store(tag, 0, part)
		case OpWrite:
			err = t.q.Fetch(tag, 0, part)
		case OpDiscard, OpWriteZeroes:
			clear(part)
		}
	}
	t.q.Commit(tag, err)
}

func (t *memoryTarget) EndIO(token uint32, err error) {}

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

// waitFor asks until done, which comes about in another thread or in the kernel.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for limit := time.Now().Add(testLimit); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("waited %v for %s", testLimit, what)
		}
	}
}
