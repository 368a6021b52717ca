//go:build device

package ublk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
	"golang.org/x/sys/unix"
)

// passthrough serves each request by one I/O to a backend, on the queue's own ring; the token is
// the tag.
type passthrough struct {
	q    *Queue
	file *uring.Port
}

func (p *passthrough) Request(tag uint16, d Desc) {
	token := uint32(tag)
	switch d.Op {
	case OpRead:
		p.file.Read(token, d.Offset(), p.q.Data(tag))
	case OpWrite:
		p.file.Write(token, d.Offset(), p.q.Data(tag), d.FUA())
	case OpFlush:
		p.file.Flush(token)
	case OpDiscard:
		p.file.Discard(token, d.Offset(), d.Length())
	case OpWriteZeroes:
		p.file.Zero(token, d.Offset(), d.Length(), d.Flags&FlagNoUnmap == 0)
	}
}

func (p *passthrough) EndIO(token uint32, err error) { p.q.Commit(uint16(token), err) }

func (p *passthrough) Drain() {}

// makeNullBlk makes a null_blk device in memory of 64 MiB with the given attributes, until the test
// ends.
func makeNullBlk(t testing.TB, name string, attributes map[string]string) *os.File {
	t.Helper()
	dir := filepath.Join("/sys/kernel/config/nullb", name)
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { must(t, os.Remove(dir)) })
	set := func(attribute, value string) {
		must(t, os.WriteFile(filepath.Join(dir, attribute), []byte(value), 0))
	}
	set("size", "64")
	set("memory_backed", "1")
	for attribute, value := range attributes {
		set(attribute, value)
	}
	set("power", "1")
	t.Cleanup(func() { set("power", "0") })
	f, err := os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// startPassthrough starts a device over backend with at most limit I/Os at a time of each queue.
func startPassthrough(t testing.TB, o Options, backend *os.File, limit int) *Device {
	t.Helper()
	file, err := uring.NewFile(backend)
	must(t, err)
	return startDevice(t, o, func(q *Queue) Target { return &passthrough{q: q, file: q.Loop().Open(file, limit)} })
}

// TestPassthrough does random operations from several clients, each in its own part of the device,
// and compares with a model; at the end also the backend by itself. The backends differ in what
// they offer: block devices with and without discard, files on a file system that knows how to zero
// and one that does not.
func TestPassthrough(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Sampled)
	for _, c := range []struct {
		name    string
		backend func(*testing.T) *os.File
	}{
		{"null_blk", func(t *testing.T) *os.File { return makeNullBlk(t, "plain", nil) }},
		{"null_blk with discard, a short queue", func(t *testing.T) *os.File {
			return makeNullBlk(t, "short", map[string]string{
				"discard": "1", "hw_queue_depth": "4", "irqmode": "2", "completion_nsec": "20000",
			})
		}},
		{"file on tmpfs", func(t *testing.T) *os.File { return fileBackend(t, t.TempDir(), 0) }},
	} {
		for _, limit := range []int{0, 3} {
			t.Run(fmt.Sprintf("%s, limit %d", c.name, limit), func(t *testing.T) { testPassthrough(t, c.backend(t), limit, nil) })
		}
		// Where the driver registers no requests these are the same as above.
		t.Run(c.name+", copied", func(t *testing.T) { testPassthrough(t, c.backend(t), 0, func(o *Options) { o.Copy = true }) })
		t.Run(c.name+", bounced", func(t *testing.T) { testPassthrough(t, c.backend(t), 0, func(o *Options) { o.bounce = true }) })
		t.Run(c.name+", few registered", func(t *testing.T) { testPassthrough(t, c.backend(t), 0, func(o *Options) { o.table = 2 }) })
	}
}

func fileBackend(t *testing.T, dir string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "backend"), os.O_RDWR|os.O_CREATE|flags, 0o600)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	must(t, f.Truncate(64*mib))
	return f
}

func testPassthrough(t *testing.T, backend *os.File, limit int, set func(*Options)) {
	o := testOptions(2)
	o.Tokens = o.Depth
	if set != nil {
		set(&o)
	}
	d := startPassthrough(t, o, backend, limit)
	const clients, each = 4, 4 * mib
	models := make([][]byte, clients)
	var wg sync.WaitGroup
	for i := range clients {
		models[i] = make([]byte, each)
		wg.Go(func() { randomClient(t, d, rand.New(rand.NewPCG(uint64(i), 1)), int64(i)*each, models[i]) })
	}
	wg.Wait()
	b := alignedBuffer(t, each)
	for i := range clients {
		if _, err := backend.ReadAt(b, int64(i)*each); err != nil || !bytes.Equal(b, models[i]) {
			t.Errorf("part %d of the backend is not what its client wrote (%v), limit %d", i, err, limit)
		}
	}
}

// randomClient works on one part of the device; model is its content at the end. Before its first
// operation it writes the whole part. Discards are left unread until written again, because their
// content is not defined: they are followed by a write at once.
func randomClient(t *testing.T, d *Device, random *rand.Rand, base int64, model []byte) {
	f, err := os.OpenFile(d.BlockPath(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	b := alignedBuffer(t, len(model))
	write := func(off, length int64) error {
		part := pattern(b[off:off+length], random.IntN(1<<20))
		copy(model[off:], part)
		_, err := f.WriteAt(part, base+off)
		return err
	}
	if err := write(0, int64(len(model))); err != nil {
		t.Error(err)
		return
	}
	for step := range 150 {
		off := random.Int64N(int64(len(model))/512) * 512
		length := min((1+random.Int64N(512))*512, int64(len(model))-off)
		var err error
		switch kind := random.IntN(10); kind {
		case 0, 1, 2:
			err = write(off, length)
		case 3:
			err = f.Sync()
		case 4, 5:
			mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
			if kind == 5 {
				mode = unix.FALLOC_FL_PUNCH_HOLE
			}
			clear(model[off : off+length])
			err = unix.Fallocate(int(f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, base+off, length)
		case 6:
			off, length = off/4096*4096, 4096
			err = errors.Join(blockRange(f, blkDiscard, base+off, length), write(off, length))
		default:
			got := b[off : off+length]
			if _, err = f.ReadAt(got, base+off); err == nil && !bytes.Equal(got, model[off:off+length]) {
				t.Errorf("step %d: %d bytes at %d differ from what was written", step, length, base+off)
				return
			}
		}
		if err != nil {
			t.Errorf("step %d, %d bytes at %d: %v", step, length, base+off, err)
			return
		}
	}
}

// TestBackendCapabilities: what a block device does not offer is found out once, and done in
// another way.
func TestBackendCapabilities(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	o := testOptions(1)
	o.Tokens = o.Depth
	backend := makeNullBlk(t, "bare", nil) // it has neither discard nor write-zeroes
	d := startPassthrough(t, o, backend, 0)
	f, b := openBlock(t, d), alignedBuffer(t, mib)
	if _, err := f.WriteAt(pattern(b, 1), 0); err != nil {
		t.Fatal(err)
	}
	must(t, blockRange(f, blkDiscard, 0, 4096))
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 65536))
	if _, err := backend.ReadAt(b, 0); err != nil || !bytes.Equal(b[:65536], make([]byte, 65536)) {
		t.Errorf("zeroed bytes of the backend are not zeros (%v)", err)
	}
	want := pattern(make([]byte, mib), 1)
	if !bytes.Equal(b[65536:], want[65536:]) {
		t.Error("bytes behind the zeroed ones were changed")
	}
}

// BenchmarkPassthrough is one 4 KiB write at a time through the device to a null_blk that answers
// at once.
func BenchmarkPassthrough(b *testing.B) {
	o := testOptions(1)
	o.Tokens = o.Depth
	backend := makeNullBlk(b, "bench", nil)
	d := startPassthrough(b, o, backend, 0)
	f, buf := openBlock(b, d), alignedBuffer(b, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.WriteAt(buf, 0); err != nil {
			b.Fatal(err)
		}
	}
}
