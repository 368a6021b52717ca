package clonetest

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// destSpare is how much larger the destination is than the device, bytes: nothing may be written
// there.
const destSpare = 64 << 10

// diskError is an error of a fake disk at a sector. A flush has none: -1.
type diskError struct {
	kind   kind
	sector int64
	// stale: of a read of the source, some of which was no longer in state Source when it ended.
	stale bool
	// tries is how often in a row the read of the source has failed.
	tries int
	away  bool // clone.Away
	full  bool // clone.Full
}

func (e *diskError) Error() string {
	if e.sector < 0 {
		return fmt.Sprintf("injected: %v", e.kind)
	}
	return fmt.Sprintf("injected: %v at sector %d", e.kind, e.sector)
}

// classify is the core's.
func classify(err error) clone.ErrorClass {
	switch e := asDiskError(err); {
	case e != nil && e.away:
		return clone.Away
	case e != nil && e.full:
		return clone.Full
	}
	return clone.Local
}

// disks outlive a core; the power cut replaces dest and meta.
type disks struct {
	source, dest, meta *fakedisk.Disk
	bad                map[int64]bool // sectors of the source
	failFlush          *diskError     // of the flush that is being executed
}

// newDisks makes a source with data and holes, a destination full of other content, metadata with
// nothing in it.
func newDisks(s *sim) (*disks, error) {
	cfg := &s.cfg
	d := &disks{bad: map[int64]bool{}}
	d.source = fakedisk.New(cfg.Size, cfg.Seed)
	d.dest = fakedisk.New((cfg.Size+destSpare)/4096*4096, cfg.Seed)
	d.meta = fakedisk.New(metadata.Size(s.geo.Regions()), cfg.Seed)
	for _, w := range s.area {
		d.fillSource(w, cfg.RegionSize/sectorBytes, s.rng)
		lay(d.dest, w.first, w.end, valueOldDest)
	}
	lay(d.dest, cfg.Size/sectorBytes, d.dest.Size()/sectorBytes, valueOldDest)
	for range cfg.BadSectors {
		w := s.area[s.rng.IntN(len(s.area))]
		d.bad[w.first+s.rng.Int64N(w.end-w.first)] = true
	}
	d.powerOn()
	sb := metadata.Superblock{UUID: metadata.UUID{1}, Geometry: metadata.Geometry{RegionSize: cfg.RegionSize, DeviceSize: cfg.Size, LogicalBlockSize: sectorBytes}}
	_, err := metadata.Create(metaDevice{d.meta, s}, &sb, metadata.CreateOptions{})
	return d, err
}

// scratch is a store's buffer: half a MiB, which thousands of short runs should not each make anew.
type scratch struct{ buf *[]byte }

var scratches sync.Pool

func (c *scratch) get(size int) []byte {
	if c.buf == nil {
		c.buf, _ = scratches.Get().(*[]byte)
	}
	if c.buf == nil || len(*c.buf) < size {
		c.buf = new(make([]byte, size))
	}
	return (*c.buf)[:size]
}

func (c *scratch) put() {
	if c.buf != nil {
		scratches.Put(c.buf)
	}
	c.buf = nil
}

// fillSource lays runs of data and holes over a window.
func (d *disks) fillSource(w window, regionSectors int64, rng *rand.Rand) {
	for s := w.first; s < w.end; {
		end := min(w.end, s+1+rng.Int64N(3*regionSectors))
		if rng.IntN(4) > 0 {
			lay(d.source, s, end, valueSource)
		}
		s = end
	}
	if err := d.source.Flush(); err != nil {
		panic(err)
	}
}

// lay writes a value over the sectors [first, end), durably.
func lay(d *fakedisk.Disk, first, end int64, v value) {
	buf := make([]byte, (end-first)*sectorBytes)
	fill(buf, first, v)
	if err := d.WriteAt(buf, first*sectorBytes); err != nil {
		panic(err)
	}
	if err := d.Flush(); err != nil {
		panic(err)
	}
}

func look(d *fakedisk.Disk, sector int64) (value, error) {
	var buf [sectorBytes]byte
	if err := d.ReadAt(buf[:], sector*sectorBytes); err != nil {
		return 0, err
	}
	return decode(buf[:], sector)
}

// powerOn makes flushes of the destination and metadata fail when failFlush says so.
func (d *disks) powerOn() {
	fault := func(c fakedisk.Call) *fakedisk.Fault {
		if c.Op == fakedisk.OpFlush && d.failFlush != nil {
			return &fakedisk.Fault{Err: d.failFlush}
		}
		return nil
	}
	d.dest.SetFault(fault)
	d.meta.SetFault(fault)
}

// flush ends a flush that was issued at position, well or with err.
func (d *disks) flush(disk *fakedisk.Disk, position uint64, err *diskError) error {
	d.failFlush = err
	defer func() { d.failFlush = nil }()
	return disk.FlushTo(position)
}

// powerCut loses part of what was not flushed: at random, all of it, or nothing. What finds most is
// a destination that lost all beside metadata that kept all.
func (d *disks) powerCut(rng *rand.Rand) {
	keepDest, keepMeta := fakedisk.KeepRandom(rng), fakedisk.KeepRandom(rng)
	switch rng.IntN(4) {
	case 0, 1:
		keepDest = fakedisk.KeepNone
	case 2:
		keepDest = fakedisk.KeepAll
	}
	switch rng.IntN(4) {
	case 0, 1:
		keepMeta = fakedisk.KeepAll
	case 2:
		keepMeta = fakedisk.KeepNone
	}
	d.dest, d.meta = d.dest.CrashClone(keepDest), d.meta.CrashClone(keepMeta)
	d.powerOn()
}

// untouched checks the source and the destination behind the device's end.
func (d *disks) untouched(cfg *Config, a area, initial func(int64) value) error {
	var first error
	check := func(disk *fakedisk.Disk, what string, sector int64, want value) {
		v, err := look(disk, sector)
		if first == nil && (err != nil || v != want) {
			first = fmt.Errorf("%s was changed at sector %d: holds %v (%v)", what, sector, v, err)
		}
	}
	a.each(func(s int64, _ int) { check(d.source, "source", s, initial(s)) })
	for s := cfg.Size / sectorBytes; s < d.dest.Size()/sectorBytes; s++ {
		check(d.dest, "destination behind the device's end", s, valueOldDest)
	}
	return first
}
