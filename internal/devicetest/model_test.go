//go:build device

package devicetest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A sector of the tests carries its number and a version, and is filled with words made from both:
//
//	0         8         16                             512
//	+---------+---------+-------------------------------+
//	| sector  | version | 62 words                      |
//	+---------+---------+-------------------------------+
//
// So a wrong sector tells which write it is the content of.
type version uint32

const (
	zeros    version = 0 // all zero, also in place of number and version
	original version = 1 // the source's
	// junk is what the destination holds before: bytes 0xa5.
	junk version = 1<<32 - 1
)

// junkByte is every byte of junk.
const junkByte = 0xa5

var le = binary.LittleEndian

// word is word i of a sector.
func word(n int64, v version, i int) uint64 {
	return (uint64(n)*0x9e3779b97f4a7c15 ^ uint64(v)*0xbf58476d1ce4e5b9) + uint64(i)*0x94d049bb133111eb
}

// fill makes the content of the sectors from byte off on.
func fill(b []byte, off int64, v version) {
	switch v {
	case zeros:
		clear(b)
		return
	case junk:
		for i := range b {
			b[i] = junkByte
		}
		return
	}
	for n := off / sector; len(b) > 0; n++ {
		le.PutUint64(b, uint64(n))
		le.PutUint64(b[8:], uint64(v))
		for i := 2; i < sector/8; i++ {
			le.PutUint64(b[8*i:], word(n, v, i))
		}
		b = b[sector:]
	}
}

// holds reports whether b is the content of one sector.
func holds(b []byte, n int64, v version) bool {
	if v == zeros || v == junk {
		return b[0] == byte(v&junkByte) && bytes.Equal(b[1:sector], b[:sector-1])
	}
	if le.Uint64(b) != uint64(n) || le.Uint64(b[8:]) != uint64(v) {
		return false
	}
	for i := 2; i < sector/8; i++ {
		if le.Uint64(b[8*i:]) != word(n, v, i) {
			return false
		}
	}
	return true
}

func (v version) String() string {
	switch v {
	case zeros:
		return "zeros"
	case original:
		return "the source's content"
	case junk:
		return "the destination's old content"
	}
	return fmt.Sprintf("write %d", uint32(v))
}

// describe says what a sector holds.
func describe(b []byte) string {
	n, v := int64(le.Uint64(b)), version(le.Uint64(b[8:]))
	switch {
	case holds(b, 0, zeros):
		return zeros.String()
	case holds(b, 0, junk):
		return junk.String()
	case holds(b, n, v):
		return fmt.Sprintf("%v, of sector %d", v, n)
	}
	return fmt.Sprintf("unknown bytes %x...", b[:16])
}

// fillDisk writes one version over a whole device.
func (m *machine) fillDisk(d *disk, v version) {
	m.Helper()
	m.fillPart(d, 0, d.size, v)
}

// fillPart writes one version over bytes [first, end) of a device.
func (m *machine) fillPart(d *disk, first, end int64, v version) {
	m.Helper()
	out := m.open(d.path, os.O_WRONLY)
	defer out.close()
	buf, free := m.scratch(ioSize)
	defer free()
	for off := first; off < end; off += ioSize {
		b := buf[:min(ioSize, end-off)]
		fill(b, off, v)
		if err := out.write(b, off); err != nil {
			m.Fatalf("%s: %v", d.path, err)
		}
	}
}

// model is what every sector of a clone must hold. Requests of several threads go through it at the
// same time; those that overlap wait for each other, so that the answer is never open. Neighbours in
// one region do not.
type model struct {
	region int64 // bytes
	size   int64 // bytes

	mu       sync.Mutex
	changed  sync.Cond // busy has lost an entry
	busy     map[[2]int64]bool
	versions []version // by sector
	last     version
	slowest  time.Duration // of the requests of loads
	requests int64         // of loads
}

// newModel is the model of a clone nobody has written.
func newModel(size, region int64) *model {
	w := &model{region: region, size: size, busy: map[[2]int64]bool{}, versions: make([]version, size/sector), last: original}
	w.changed.L = &w.mu
	for i := range w.versions {
		w.versions[i] = original
	}
	return w
}

// enter waits until nobody else is at [off, off+length) and keeps others away until leave.
func (w *model) enter(off, length int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.taken(off, off+length) {
		w.changed.Wait()
	}
	w.busy[[2]int64{off, off + length}] = true
}

func (w *model) taken(first, end int64) bool {
	for r := range w.busy {
		if r[0] < end && first < r[1] {
			return true
		}
	}
	return false
}

func (w *model) leave(off, length int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.busy, [2]int64{off, off + length})
	w.changed.Broadcast()
}

// set notes the version of the sectors in [off, end). Between enter and leave.
func (w *model) set(off, end int64, v version) {
	for n := off / sector; n < end/sector; n++ {
		w.versions[n] = v
	}
}

func (w *model) newVersion() version {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	return w.last
}

// took notes how long a request took; longest is the longest since it was asked before.
func (w *model) took(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slowest = max(w.slowest, d)
	w.requests++
}

// answered is how many requests loads have made.
func (w *model) answered() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests
}

func (w *model) longest() (d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, w.slowest = w.slowest, 0
	return d
}

// moved fails until so many requests more were answered.
func (w *model) moved(n int64) func() error {
	want := w.answered() + n
	return func() error {
		if got := w.answered(); got < want {
			return fmt.Errorf("%d were answered, not %d", got, want)
		}
		return nil
	}
}

// compare checks what was read at off.
func (w *model) compare(b []byte, off int64) error {
	for i := int64(0); i < int64(len(b)); i += sector {
		n := (off + i) / sector
		if want := w.versions[n]; !holds(b[i:i+sector], n, want) {
			return fmt.Errorf("sector %d (region %d): expected %v, found %s", n, n*sector/w.region, want, describe(b[i:i+sector]))
		}
	}
	return nil
}

// check reads all of a device, at least as large as the model, and compares.
func (w *model) check(m *machine, path string) {
	m.Helper()
	m.sweep(path, w.size, func(off int64, b []byte) error { return w.compare(b, off) })
}

// checkBut is check without the range [off, end), which need not be readable.
func (w *model) checkBut(m *machine, path string, off, end int64) {
	m.Helper()
	m.sweepRange(path, 0, off, func(at int64, b []byte) error { return w.compare(b, at) })
	m.sweepRange(path, end, w.size, func(at int64, b []byte) error { return w.compare(b, at) })
}

// write writes a new version.
func (w *model) write(v *volume, buf []byte, off int64, durable bool) error {
	w.enter(off, int64(len(buf)))
	defer w.leave(off, int64(len(buf)))
	ver := w.newVersion()
	fill(buf, off, ver)
	write := v.write
	if durable {
		write = v.writeDurable
	}
	if err := write(buf, off); err != nil {
		return err
	}
	w.set(off, off+int64(len(buf)), ver)
	return nil
}

// read reads and compares.
func (w *model) read(v *volume, buf []byte, off int64) error {
	w.enter(off, int64(len(buf)))
	defer w.leave(off, int64(len(buf)))
	if err := v.read(buf, off); err != nil {
		return err
	}
	return w.compare(buf, off)
}

// zero makes a range zeros.
func (w *model) zero(v *volume, off, length int64) error {
	w.enter(off, length)
	defer w.leave(off, length)
	if err := v.zero(off, length); err != nil {
		return fmt.Errorf("zero %d bytes at %d: %w", length, off, err)
	}
	w.set(off, off+length, zeros)
	return nil
}

// discard makes the regions that the range covers zeros and leaves its ragged ends; the end of the
// device ends a region (I2).
func (w *model) discard(v *volume, off, length int64) error {
	w.enter(off, length)
	defer w.leave(off, length)
	if err := v.discard(off, length); err != nil {
		return err
	}
	first := (off + w.region - 1) / w.region * w.region
	end := (off + length) / w.region * w.region
	if off+length == w.size {
		end = w.size
	}
	if first < end {
		w.set(first, end, zeros)
	}
	return nil
}

// mix is how often a random request is of a kind.
type mix struct{ write, read, zero, discard, flush int }

var everything = mix{write: 50, read: 35, zero: 5, discard: 5, flush: 5}

// request makes one random request in the range.
func (w *model) request(rng *rand.Rand, v *volume, buf []byte, off, length int64, kinds mix) error {
	pick := rng.IntN(kinds.write + kinds.read + kinds.zero + kinds.discard + kinds.flush)
	for _, kind := range []struct {
		weight int
		do     func() error
	}{
		{kinds.write, func() error { return w.write(v, buf[:length], off, rng.IntN(8) == 0) }},
		{kinds.read, func() error { return w.read(v, buf[:length], off) }},
		{kinds.zero, func() error { return w.zero(v, off, length) }},
		{kinds.discard, func() error { return w.discard(v, off, length) }},
		{kinds.flush, v.flush},
	} {
		if pick -= kind.weight; pick < 0 {
			return kind.do()
		}
	}
	return nil
}

// place chooses a range: mostly small, now and then up to ioSize, often at the end of the device or
// beside the border of a region.
func (w *model) place(rng *rand.Rand, block int64) (off, length int64) {
	blocks := w.size / block
	most := min(int64(ioSize)/block, blocks)
	n := min(most, 1+rng.Int64N(1+rng.Int64N(most)>>rng.IntN(12)))
	at := rng.Int64N(blocks - n + 1)
	switch rng.IntN(8) {
	case 0:
		at = blocks - n
	case 1, 2:
		border := (at * block / w.region) * w.region / block
		at = max(0, min(blocks-n, border-rng.Int64N(n+1)))
	}
	return at * block, n * block
}

// after is place for a thread whose requests follow each other: the range begins at off, or at the beginning
// where the device ends.
func (w *model) after(rng *rand.Rand, block, off int64) (from, length int64) {
	_, length = w.place(rng, block)
	if off >= w.size {
		off = 0
	}
	return off, min(length, w.size-off)
}

// load makes random requests from several threads.
type load struct {
	threads    int
	sequential int // of the threads, whose requests follow each other, from different places on
	requests   int // of each thread
	block      int64
	kinds      mix
	cached     bool          // through the page cache
	rest       time.Duration // of a thread after each request
}

// run carries out the load and returns when every thread has ended; the first error stops its thread.
func (w *model) run(m *machine, rng *rand.Rand, path string, l load) {
	m.Helper()
	wait := w.start(m, rng, path, l, nil)
	wait()
}

// start begins the load; it ends when the requests are made or, with stop, when that is closed. The
// returned function waits for it.
func (w *model) start(m *machine, rng *rand.Rand, path string, l load, stop <-chan struct{}) (wait func()) {
	m.Helper()
	var group sync.WaitGroup
	open := m.open
	if l.cached {
		open = m.openCached
	}
	for thread := range l.threads {
		v := open(path, os.O_RDWR)
		buf, free := m.scratch(ioSize)
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		next := w.size / l.block * int64(thread) / int64(l.threads) * l.block
		group.Go(func() {
			defer v.f.Close()
			defer free()
			for i := 0; i < l.requests || stop != nil; i++ {
				select {
				case <-stop:
					return
				default:
				}
				off, length := w.place(own, l.block)
				if thread < l.sequential {
					off, length = w.after(own, l.block, next)
					next = off + length
				}
				begin := time.Now()
				err := w.request(own, v, buf, off, length, l.kinds)
				w.took(time.Since(begin))
				if err != nil {
					m.Errorf("%s: request %d: %v", path, i, err)
					return
				}
				time.Sleep(l.rest)
			}
		})
	}
	return func() {
		m.Helper()
		group.Wait()
		if m.Failed() {
			m.FailNow()
		}
	}
}

// TestPattern checks the tests' own tool: what fill makes holds, and nothing else does.
func TestPattern(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	b := make([]byte, 4*sector)
	for _, v := range []version{zeros, original, 17, junk} {
		fill(b, 100*sector, v)
		for i := range int64(4) {
			s := b[i*sector : (i+1)*sector]
			if !holds(s, 100+i, v) {
				t.Errorf("sector %d of %v: %s", 100+i, v, describe(s))
			}
			if holds(s, 100+i, 18) || v == 17 && holds(s, 99, v) {
				t.Errorf("sector %d of %v holds something else too", 100+i, v)
			}
			s[sector-1] ^= 1
			if holds(s, 100+i, v) {
				t.Errorf("sector %d of %v: a wrong last byte is not seen", 100+i, v)
			}
		}
	}
}
