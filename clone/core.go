package clone

import (
	"cmp"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// Mode is what may be done with the metadata. It only gets worse, but for a Repair (I10).
type Mode uint8

const (
	ReadWrite Mode = iota
	ReadOnly
	Fail
)

func (m Mode) String() string {
	switch m {
	case ReadWrite:
		return "rw"
	case ReadOnly:
		return "ro"
	}
	return "Fail"
}

// MaxSpan is the most bytes that a request may cover; the frontend advertises it. It bounds how
// many pages of the map one claim may mark (18 at 4 KiB regions), and with them the pools (I9).
const MaxSpan = MaxRegionSize

// deltaPages is how many pages of the region map may hold marks that are not committed yet. At 4
// KiB regions a page stands for 63 MiB of the device, so this is 252 GiB of scattered writes
// between two commits; a request that finds the pool full waits for a commit.
const deltaPages = 4096

// Config is what a Core is made from.
type Config struct {
	Geometry Geometry
	// Map holds what is durable already, and what a process that died had marked (Uncommitted).
	Map *bitmap.Map
	// Uncommitted are the marks of Map that are not durable: those of a process that died on this
	// boot; perhaps empty. nil: Map holds what the metadata says and there was no such process. The
	// core takes it over.
	Uncommitted *bitmap.Delta
	// Doubt: nobody knows which marks of Map are durable, because the metadata that would say so
	// cannot be used (I11). The mode is ro at best, and no mark counts as durable before a Repair.
	Doubt bool
	// Mode that the clone was left in, and whether a flush of the destination had failed: a restart
	// starts no better (I10).
	Mode      Mode
	FlushLost bool
	// Kick tells the committer that somebody waits for a commit. It must not block.
	Kick func()
	// Event tells of a change of mode or of completion. It must not block. May be nil.
	Event func()
	// State keeps the mode, and whether a flush of the destination has failed, where a process that
	// dies leaves them to the next one. Called at the start and with each change, under the core's
	// lock: the calls come in the order of the changes, so the last one is how things are. It must
	// not block. May be nil.
	State func(mode Mode, flushLost bool)
	// Release gives the memory of a page of the map back, which may read as zeros from then on: all
	// of its regions are durably hydrated, and it is not looked at again; or all are durably zero
	// (Map.KeepZeros), and it is not looked at before Touch. Called under the core's lock; it must
	// not block for long. May be nil.
	Release func(page uint64, memory *bitmap.Page)
	// Touch takes the memory of a page of the map, so that a mark in it cannot fail: called before
	// the first claim in a page that marks part of it, and again after a Release, from any lane's
	// thread, perhaps more than once. A request that needs the page fails with its error. May be
	// nil.
	Touch func(page uint64) error
	Delta DeltaConfig
	// LeastZeros is from how many bytes on zeros that were read from the source in the background,
	// or for a user whose READ is kept, are written as zeros and not as data: the destination may
	// have a cheaper way, and give up the space. 0 = never.
	LeastZeros int64
	// Classify tells of a backend's error what it means, from any thread. nil: all are Local.
	Classify func(error) ErrorClass
	// Now is the clock. nil: time.Now.
	Now func() time.Time
}

// Core is the state that all lanes share. See the package comment for who may touch what.
type Core struct {
	view
	lanes
	switches
	memory mapMemory
	mu     guarded

	unflushed unflushed // writes of the destination

	complete atomic.Bool // the durable H plane is full (I12)

	kick       func()
	event      func()
	classify   func(error) ErrorClass
	now        func() time.Time
	leastZeros int64
}

// New makes a core. Lanes are added with NewLane before any of them gets a request.
func New(cfg Config) *Core {
	pages := bitmap.PagesFor(cfg.Geometry.Regions())
	most := int(min(cmp.Or(uint64(cfg.Delta.Pages), deltaPages), pages))
	c := &Core{view: view{geo: cfg.Geometry, regions: cfg.Map}, kick: cfg.Kick, event: cfg.Event, classify: cfg.Classify, now: cfg.Now, leastZeros: cfg.LeastZeros}
	if c.event == nil {
		c.event = func() {}
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.period.Store(1)
	c.memory.view, c.memory.release, c.memory.touch = &c.view, cfg.Release, cfg.Touch
	c.memory.touched = make([]atomic.Bool, pages)
	c.mu.marks.init(&cfg.Delta, cfg.Uncommitted, pages, most)
	c.mu.keep, c.mu.flushLost = cfg.State, cfg.FlushLost
	c.mu.setMode(cfg.Mode)
	if cfg.FlushLost || cfg.Doubt {
		c.mu.setMode(ReadOnly)
	}
	c.mu.keepState()
	c.mu.doubt = cfg.Doubt
	c.unflushed.changed() // a process that died may have written
	c.complete.Store(c.mu.nrDurable(c.regions) == c.geo.Regions())
	return c
}

// Mode may be asked from any thread.
func (c *Core) Mode() Mode { return Mode(c.mu.shown.Load()) }

// Complete says that every region is durably hydrated. It stays so.
func (c *Core) Complete() bool { return c.complete.Load() }

// SetMode makes the mode worse, never better, and tells (I10).
func (c *Core) SetMode(m Mode) {
	c.mu.Lock()
	changed := c.mu.setMode(m)
	c.mu.Unlock()
	if changed {
		c.event()
	}
}

// Dirty says that there is something for a commit to do, though nobody waits for one.
func (c *Core) Dirty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.mu.active.Empty() || c.mu.flushWanted
}

// DurableHydrated counts the regions that a power cut now would leave hydrated, at least.
func (c *Core) DurableHydrated() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.nrDurable(c.regions)
}
