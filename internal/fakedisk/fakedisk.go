// Package fakedisk is a disk in memory with a volatile write cache, for tests: it loses
// and tears what was not flushed, fails where it is told to, and counts.
//
// # Fault model
//
//   - The unit of atomicity is a sector of 512 bytes. A larger write may be torn anywhere.
//   - A write goes to the cache. Reads see it at once. A crash (CrashClone) keeps, for each
//     sector by itself, the durable version or any of the versions in the cache.
//   - Flush makes durable what was in the cache when it was issued. Issue and end can be
//     told apart (Position, FlushTo), so that a simulator decides what happens in between.
//   - A failed flush is reported once. What it should have made durable stays visible, may
//     or may not survive a crash, and no later flush makes it durable: only a new write of
//     the sector does.
//   - A call that a fault makes fail may have been executed or not, as the fault says.
//   - Discarded sectors hold their old bytes, zeros or noise, by the disk's seed.
//   - Death of the process is no crash: the same Disk goes on.
//
// Time is none of its business: a call takes effect when it is made. It is sparse, in
// blocks of 4 KiB, and safe for concurrent use.
package fakedisk

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// SectorBytes is the unit of atomicity, BlockBytes that of the sparse store.
const (
	SectorBytes = 512
	BlockBytes  = 4096
)

// ErrPowerCut is what every call returns once the power was cut (CutPower).
var ErrPowerCut = errors.New("fakedisk: power is cut")

// Stats are totals of successful calls and of the bytes that they moved.
type Stats struct {
	Reads, Writes, Zeroes, Discards, Flushes int
	BytesRead, BytesWritten                  int64
}

// Disk is a fake disk.
type Disk struct {
	size int64
	seed uint64

	mu sync.Mutex // guards all below
	media
	rng   *rand.Rand
	dense bool
	fault func(Call) *Fault
	calls int
	cut   bool
	stats Stats
}

// New returns a disk of size bytes, all zero. Size is a multiple of SectorBytes. The seed
// decides what discarded sectors hold.
func New(size int64, seed uint64) *Disk {
	if size%SectorBytes != 0 {
		panic(fmt.Sprintf("fakedisk: size %d is no multiple of %d", size, SectorBytes))
	}
	return &Disk{
		size:  size,
		seed:  seed,
		media: media{durable: map[int64]*block{}, cache: map[int64][]version{}},
		rng:   rand.New(rand.NewPCG(seed, 0)),
	}
}

// Size returns the size in bytes.
func (d *Disk) Size() int64 { return d.size }

// SetDense makes NextData behave as on a block device, which knows no holes.
func (d *Disk) SetDense(dense bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dense = dense
}

// Stats returns the totals so far.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// ReadAt reads what was written last, durable or not.
func (d *Disk) ReadAt(b []byte, off int64) error {
	return d.call(OpRead, off, int64(len(b)), func() {
		d.read(b, off)
		d.stats.Reads++
		d.stats.BytesRead += int64(len(b))
	})
}

// WriteAt writes to the cache.
func (d *Disk) WriteAt(b []byte, off int64) error {
	return d.call(OpWrite, off, int64(len(b)), func() {
		d.write(off, int64(len(b)), func(s *sector, at int64) { copy(s[:], b[at:]) })
		d.stats.Writes++
		d.stats.BytesWritten += int64(len(b))
	})
}

// ZeroRange zeroes a range, in the cache like a write.
func (d *Disk) ZeroRange(off, length int64) error {
	return d.call(OpZero, off, length, func() {
		d.write(off, length, func(*sector, int64) {})
		d.stats.Zeroes++
	})
}

// Discard gives a range up: each sector holds its old bytes, zeros or noise afterwards.
func (d *Disk) Discard(off, length int64) error {
	return d.call(OpDiscard, off, length, func() {
		d.write(off, length, func(s *sector, at int64) { d.discarded(s, off+at) })
		d.stats.Discards++
	})
}

func (d *Disk) discarded(s *sector, off int64) {
	switch d.rng.IntN(3) {
	case 0:
		d.read(s[:], off)
	case 1:
		for i := range s {
			s[i] = byte(d.rng.Uint32())
		}
	}
}

// Flush makes everything in the cache durable: FlushTo(Position()).
func (d *Disk) Flush() error {
	d.mu.Lock()
	position := d.order
	d.mu.Unlock()
	return d.FlushTo(position)
}

// Position returns the place in the order of writes that a flush issued now would cover.
func (d *Disk) Position() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.order
}

// FlushTo ends a flush that was issued at position.
func (d *Disk) FlushTo(position uint64) error {
	err := d.call(OpFlush, 0, 0, func() {
		for s := range d.cache {
			d.harden(s, position)
		}
		d.stats.Flushes++
	})
	if err != nil && !errors.Is(err, ErrPowerCut) { // a cut tells nobody that the flush failed
		d.mu.Lock()
		defer d.mu.Unlock()
		d.lose(position)
	}
	return err
}

// Persist makes a range durable as it is now: the end of a write with FUA.
func (d *Disk) Persist(off, length int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := off / SectorBytes; s < (off+length)/SectorBytes; s++ {
		d.harden(s, d.order)
	}
}

// NextData returns the first offset >= off at or behind which something was ever written.
func (d *Disk) NextData(off int64) (int64, error) {
	next := d.size
	err := d.call(OpNextData, off, 0, func() {
		if d.dense {
			next = min(off, d.size)
			return
		}
		next = d.nextWritten(off, d.size)
	})
	return next, err
}

// Unflushed is a sector that has versions in the cache.
type Unflushed struct {
	Sector   int64 // sector number
	Versions int   // how many, at least 1
}

// Unflushed returns the sectors that a crash can lose, in order.
func (d *Disk) Unflushed() []Unflushed {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]Unflushed, 0, len(d.cache))
	for _, s := range slices.Sorted(maps.Keys(d.cache)) {
		list = append(list, Unflushed{Sector: s, Versions: len(d.cache[s])})
	}
	return list
}

// Versions returns how many versions of a sector a crash can leave, the durable one included.
func (d *Disk) Versions(sector int64) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return 1 + len(d.cache[sector])
}

// Version puts into b what a sector holds if a crash keeps version i of it: 0 is the durable
// one, the others are those in the cache, oldest first.
func (d *Disk) Version(sector int64, i int, b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i > 0 {
		copy(b, d.cache[sector][i-1].data[:])
		return
	}
	d.readDurable(b, sector*SectorBytes)
}

// CrashClone returns the disk as it is after a power loss now: without a cache, without
// faults, with power. For each unflushed sector, in order, keep returns which version
// survived: 0 the durable one, i the i-th of those in the cache. The same choices give the
// same disk. The disk itself does not change.
func (d *Disk) CrashClone(keep func(u Unflushed) int) *Disk {
	unflushed := d.Unflushed()
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New(d.size, d.seed+1)
	c.dense = d.dense
	for n, b := range d.durable {
		blk := *b
		c.durable[n] = &blk
	}
	for _, u := range unflushed {
		if i := keep(u); i > 0 {
			off := u.Sector * SectorBytes
			copy(c.block(off)[off%BlockBytes:], d.cache[u.Sector][i-1].data[:])
		}
	}
	return c
}

// KeepNone is a crash that loses all that was not flushed.
func KeepNone(Unflushed) int { return 0 }

// KeepAll is a crash that loses nothing.
func KeepAll(u Unflushed) int { return u.Versions }

// KeepRandom returns a crash that keeps a random version of each sector.
func KeepRandom(rng *rand.Rand) func(Unflushed) int {
	return func(u Unflushed) int { return rng.IntN(u.Versions + 1) }
}
