package harness

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Version says what a sector was last filled with. A sector of the tests carries its number and its
// version, and is filled with words made from both:
//
//	0         8         16                             512
//	+---------+---------+-------------------------------+
//	| sector  | version | 62 words                      |
//	+---------+---------+-------------------------------+
//
// So a wrong sector tells which write it is the content of.
type Version uint32

// Versions that no write of a test has.
const (
	Zeros    Version = 0 // all zero, also in place of number and version
	Original Version = 1 // the source's
	// Junk is what the destination holds before: bytes 0xa5.
	Junk Version = 1<<32 - 1
)

// junkByte is every byte of junk.
const junkByte = 0xa5

// LittleEndian is the byte order of the words in a sector.
var LittleEndian = binary.LittleEndian

// word is word i of a sector.
func word(n int64, v Version, i int) uint64 {
	return (uint64(n)*0x9e3779b97f4a7c15 ^ uint64(v)*0xbf58476d1ce4e5b9) + uint64(i)*0x94d049bb133111eb
}

// Fill makes the content of the sectors from byte off on.
func Fill(b []byte, off int64, v Version) {
	switch v {
	case Zeros:
		clear(b)
		return
	case Junk:
		for i := range b {
			b[i] = junkByte
		}
		return
	}
	for n := off / Sector; len(b) > 0; n++ {
		LittleEndian.PutUint64(b, uint64(n))
		LittleEndian.PutUint64(b[8:], uint64(v))
		for i := 2; i < Sector/8; i++ {
			LittleEndian.PutUint64(b[8*i:], word(n, v, i))
		}
		b = b[Sector:]
	}
}

// Holds reports whether b is the content of one sector.
func Holds(b []byte, n int64, v Version) bool {
	if v == Zeros || v == Junk {
		return b[0] == byte(v&junkByte) && bytes.Equal(b[1:Sector], b[:Sector-1])
	}
	if LittleEndian.Uint64(b) != uint64(n) || LittleEndian.Uint64(b[8:]) != uint64(v) {
		return false
	}
	for i := 2; i < Sector/8; i++ {
		if LittleEndian.Uint64(b[8*i:]) != word(n, v, i) {
			return false
		}
	}
	return true
}

// String names the version in messages.
func (v Version) String() string {
	switch v {
	case Zeros:
		return "zeros"
	case Original:
		return "the source's content"
	case Junk:
		return "the destination's old content"
	}
	return fmt.Sprintf("write %d", uint32(v))
}

// Describe says what a sector holds.
func Describe(b []byte) string {
	n, v := int64(LittleEndian.Uint64(b)), Version(LittleEndian.Uint64(b[8:]))
	switch {
	case Holds(b, 0, Zeros):
		return Zeros.String()
	case Holds(b, 0, Junk):
		return Junk.String()
	case Holds(b, n, v):
		return fmt.Sprintf("%v, of sector %d", v, n)
	}
	return fmt.Sprintf("unknown bytes %x...", b[:16])
}

// FillDisk writes one version over a whole device.
func (m *Contents) FillDisk(d *Disk, v Version) {
	m.Helper()
	m.FillPart(d, 0, d.Size, v)
}

// FillPart writes one version over bytes [first, end) of a device.
func (m *Contents) FillPart(d *Disk, first, end int64, v Version) {
	m.Helper()
	out := m.Open(d.Path, os.O_WRONLY)
	defer out.Close()
	buf, free := m.Scratch(IOSize)
	defer free()
	for off := first; off < end; off += IOSize {
		b := buf[:min(IOSize, end-off)]
		Fill(b, off, v)
		if err := out.Write(b, off); err != nil {
			m.Fatalf("%s: %v", d.Path, err)
		}
	}
}

// Model is what every sector of a clone must hold. Requests of several threads go through it at the
// same time; those that overlap wait for each other, so that the answer is never open. Neighbours
// in one region do not.
type Model struct {
	region int64 // bytes
	Size   int64 // bytes

	mu       sync.Mutex
	changed  sync.Cond // busy has lost an entry
	busy     map[[2]int64]bool
	Versions []Version // by sector
	Last     Version
	slowest  time.Duration // of the requests of loads
	requests int64         // of loads
}

// NewModel is the model of a clone nobody has written.
func NewModel(size, region int64) *Model {
	w := &Model{region: region, Size: size, busy: map[[2]int64]bool{}, Versions: make([]Version, size/Sector), Last: Original}
	w.changed.L = &w.mu
	for i := range w.Versions {
		w.Versions[i] = Original
	}
	return w
}

// Enter waits until nobody else is at [off, off+length) and keeps others away until leave.
func (w *Model) Enter(off, length int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.taken(off, off+length) {
		w.changed.Wait()
	}
	w.busy[[2]int64{off, off + length}] = true
}

func (w *Model) taken(first, end int64) bool {
	for r := range w.busy {
		if r[0] < end && first < r[1] {
			return true
		}
	}
	return false
}

// Leave ends what Enter began.
func (w *Model) Leave(off, length int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.busy, [2]int64{off, off + length})
	w.changed.Broadcast()
}

// Set notes the version of the sectors in [off, end). Between enter and leave.
func (w *Model) Set(off, end int64, v Version) {
	for n := off / Sector; n < end/Sector; n++ {
		w.Versions[n] = v
	}
}

// NewVersion is a version that no sector had before.
func (w *Model) NewVersion() Version {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Last++
	return w.Last
}

// Took notes how long a request took.
func (w *Model) Took(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slowest = max(w.slowest, d)
	w.requests++
}

// Answered is how many requests loads have made.
func (w *Model) Answered() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests
}

// Longest is the longest time that a request took since Longest was last asked.
func (w *Model) Longest() (d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, w.slowest = w.slowest, 0
	return d
}

// Moved fails until so many requests more were answered.
func (w *Model) Moved(n int64) func() error {
	want := w.Answered() + n
	return func() error {
		if got := w.Answered(); got < want {
			return fmt.Errorf("%d were answered, not %d", got, want)
		}
		return nil
	}
}

// Compare checks what was read at off.
func (w *Model) Compare(b []byte, off int64) error {
	for i := int64(0); i < int64(len(b)); i += Sector {
		n := (off + i) / Sector
		if want := w.Versions[n]; !Holds(b[i:i+Sector], n, want) {
			return fmt.Errorf("sector %d (region %d): expected %v, found %s", n, n*Sector/w.region, want, Describe(b[i:i+Sector]))
		}
	}
	return nil
}

// Check reads all of a device, at least as large as the model, and compares.
func (w *Model) Check(m *Machine, path string) {
	m.Helper()
	m.Sweep(path, w.Size, func(off int64, b []byte) error { return w.Compare(b, off) })
}

// CheckBut is check without the range [off, end), which need not be readable.
func (w *Model) CheckBut(m *Machine, path string, off, end int64) {
	m.Helper()
	m.SweepRange(path, 0, off, func(at int64, b []byte) error { return w.Compare(b, at) })
	m.SweepRange(path, end, w.Size, func(at int64, b []byte) error { return w.Compare(b, at) })
}

// Write writes a new version.
func (w *Model) Write(v *Volume, buf []byte, off int64, durable bool) error {
	w.Enter(off, int64(len(buf)))
	defer w.Leave(off, int64(len(buf)))
	ver := w.NewVersion()
	Fill(buf, off, ver)
	write := v.Write
	if durable {
		write = v.WriteDurable
	}
	if err := write(buf, off); err != nil {
		return err
	}
	w.Set(off, off+int64(len(buf)), ver)
	return nil
}

// Read reads and compares.
func (w *Model) Read(v *Volume, buf []byte, off int64) error {
	w.Enter(off, int64(len(buf)))
	defer w.Leave(off, int64(len(buf)))
	if err := v.Read(buf, off); err != nil {
		return err
	}
	return w.Compare(buf, off)
}

// Zero makes a range zeros.
func (w *Model) Zero(v *Volume, off, length int64) error {
	w.Enter(off, length)
	defer w.Leave(off, length)
	if err := v.Zero(off, length); err != nil {
		return fmt.Errorf("zero %d bytes at %d: %w", length, off, err)
	}
	w.Set(off, off+length, Zeros)
	return nil
}

// Discard makes the regions that the range covers zeros and leaves its ragged ends; the end of the
// device ends a region (I2). Where a region is direct, its ends are the destination's to discard too,
// so that with a layer there are none.
func (w *Model) Discard(v *Volume, off, length int64) error {
	w.Enter(off, length)
	defer w.Leave(off, length) // of all of it, ends included
	first := (off + w.region - 1) / w.region * w.region
	end := (off + length) / w.region * w.region
	if off+length == w.Size {
		end = w.Size
	}
	if runs.Layer() {
		if off, length = first, end-first; length <= 0 {
			return nil
		}
	}
	if err := v.Discard(off, length); err != nil {
		return err
	}
	if first < end {
		w.Set(first, end, Zeros)
	}
	return nil
}
