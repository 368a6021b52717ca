package clone

import (
	"cmp"
	"sync"
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

// MaxSpan is the most bytes that a request may cover; the frontend advertises it. It bounds how many
// pages of the map one claim may mark (18 at 4 KiB regions), and with them the pools (I9).
const MaxSpan = MaxRegionSize

// deltaPages is how many pages of the region map may hold marks that are not committed yet. At 4 KiB
// regions a page stands for 63 MiB of the device, so this is 252 GiB of scattered writes between two
// commits; a request that finds the pool full waits for a commit.
const deltaPages = 4096

// Config is what a Core is made from.
type Config struct {
	Geometry Geometry
	// Map holds what is durable already, and what a process that died had marked (Uncommitted).
	Map *bitmap.Map
	// Uncommitted are the marks of Map that are not durable: those of a process that died on this boot; perhaps
	// empty. nil: Map holds what the metadata say and there was no such process. The core takes it over.
	Uncommitted *bitmap.Delta
	// Doubt: nobody knows which marks of Map are durable, because the metadata that would say so cannot be used (I11).
	// The mode is ro at best, and no mark counts as durable before a Repair.
	Doubt bool
	// Mode that the clone was left in, and whether a flush of the destination had failed: a restart
	// starts no better (I10).
	Mode      Mode
	FlushLost bool
	// Kick tells the committer that somebody waits for a commit. It must not block.
	Kick func()
	// Event tells of a change of mode or of completion. It must not block. May be nil.
	Event func()
	// State keeps the mode, and whether a flush of the destination has failed, where a process that dies leaves them to
	// the next one. Called at the start and with each change, under the core's lock: the calls come in the order of the
	// changes, so the last one is how things are. It must not block. May be nil.
	State func(mode Mode, flushLost bool)
	// Release gives the memory of a page of the map back, which may read as zeros from then on: all of its
	// regions are durably hydrated, and it is not looked at again; or all are durably zero (Map.KeepZeros), and it is
	// not looked at before Touch. Called under the core's lock; it must not block for long. May be nil.
	Release func(page uint64, memory *bitmap.Page)
	// Touch takes the memory of a page of the map, so that a mark in it cannot fail: called before the first
	// claim in a page that marks part of it, and again after a Release, from any lane's thread, perhaps more than
	// once. A request that needs the page fails with its error. May be nil.
	Touch func(page uint64) error
	// DeltaPages is how many pages of the region map may hold marks that are not committed yet; 0 is the
	// default. Half of it is the users'; neither a request nor a Hydration may touch more pages than that.
	DeltaPages int
	// LeastZeros is from how many bytes on zeros that were read from the source in the background, or for a user whose
	// READ is kept, are written as zeros and not as data: the destination may have a cheaper way, and give up the space.
	// 0 = never.
	LeastZeros int64
	// Classify tells of a backend's error what it means, from any thread. nil: all are Local.
	Classify func(error) ErrorClass
	// Now is the clock. nil: time.Now.
	Now func() time.Time
}

// Core is the state that all lanes share. See the package comment for who may touch what.
type Core struct {
	geo     Geometry
	regions *bitmap.Map
	kick    func()
	event   func()
	keep    func(Mode, bool)
	release func(page uint64, memory *bitmap.Page)
	touch   func(page uint64) error
	touched []atomic.Bool // by page of the map
	// touching is held while a page's memory is taken or given back, and touched set; a leaf.
	touching sync.Mutex

	classify func(error) ErrorClass
	now      func() time.Time

	leastZeros int64

	// poolBounds: the map has more pages than the pool, which can therefore be full.
	poolBounds bool

	// lanes is set up before the first request and not changed afterwards.
	lanes []*Lane

	mode     atomic.Uint32 // a copy of mu.mode, to be read without the lock
	complete atomic.Bool   // the durable H plane is full (I12)

	readThrough atomic.Bool   // what users read from the source is kept
	passdown    atomic.Bool   // the destination is told of discards
	spares      atomic.Uint32 // a Spare: before which zeros are written the destination is read (spare.go)

	period atomic.Uint64 // of the time of users' reads of the source, from 1 on

	// mu is held for a few map operations, never across an I/O or a callback into a frontend or
	// backend. A lane's inbox lock may be taken under it (a leaf).
	mu struct {
		sync.Mutex
		mode   Mode
		claims claimTable

		// Marks since the last commit: active collects them, frozen is being committed (I4). A mark
		// is recorded here before it shows in the map.
		active, frozen *bitmap.Delta
		// reserved is how many pages of active the open claims may still need. active.Used() +
		// reserved never exceeds the pool, so a settle always finds room, also right after a freeze.
		reserved int

		// waiters wait for a commit that freezes after they came (H6).
		waiters requestList

		// flushing: a flush of the destination is in flight, a lane's or a commit's.
		flushing bool
		// flushWanted: the next commit is to flush the destination in any case.
		flushWanted bool
		// durable is how many durable writes of lanes are in flight; putOff: a commit waits for their end.
		durable int
		putOff  bool
		// flushLost: a flush of the destination has failed. It never becomes false again.
		flushLost bool
		// doubt: nobody knows which marks are durable, so none counts: the metadata cannot be read (Config.Doubt), or a
		// Repair has given up the set of the commit that failed.
		doubt bool
	}
}

// New makes a core. Lanes are added with NewLane before any of them gets a request.
func New(cfg Config) *Core {
	pages := bitmap.PagesFor(cfg.Geometry.Regions())
	pool := int(min(cmp.Or(uint64(cfg.DeltaPages), deltaPages), pages))
	c := &Core{geo: cfg.Geometry, regions: cfg.Map, kick: cfg.Kick, event: cfg.Event, release: cfg.Release, touch: cfg.Touch}
	c.classify, c.now, c.leastZeros, c.keep = cfg.Classify, cfg.Now, cfg.LeastZeros, cfg.State
	if c.now == nil {
		c.now = time.Now
	}
	c.period.Store(1)
	c.touched = make([]atomic.Bool, pages)
	c.mu.active = cfg.Uncommitted
	if c.mu.active == nil {
		c.mu.active = bitmap.NewDelta(pages, pool)
	}
	c.mu.active.Reserve(pool)
	pool = c.mu.active.Cap()
	c.mu.frozen = bitmap.NewDelta(pages, pool)
	c.poolBounds = pages > uint64(pool)
	c.mu.flushLost = cfg.FlushLost
	c.setMode(cfg.Mode)
	if cfg.FlushLost || cfg.Doubt {
		c.setMode(ReadOnly)
	}
	c.keepState()
	c.mu.doubt = cfg.Doubt
	c.complete.Store(c.durableHydrated() == c.geo.Regions())
	return c
}

// Geometry gives the sizes.
func (c *Core) Geometry() Geometry { return c.geo }

// Regions is the live region map, for lock-free looks from any thread.
func (c *Core) Regions() *bitmap.Map { return c.regions }

// Mode may be asked from any thread.
func (c *Core) Mode() Mode { return Mode(c.mode.Load()) }

// Complete says that every region is durably hydrated. It stays so.
func (c *Core) Complete() bool { return c.complete.Load() }

// SetMode makes the mode worse, never better, and tells (I10).
func (c *Core) SetMode(m Mode) {
	c.mu.Lock()
	changed := c.setMode(m)
	c.mu.Unlock()
	if changed {
		c.tell()
	}
}

// setMode: mu must be held (or nobody else know the core yet).
func (c *Core) setMode(m Mode) bool {
	if m <= c.mu.mode {
		return false
	}
	c.mu.mode = m
	c.mode.Store(uint32(m))
	c.keepState()
	return true
}

// keepState hands the state to whoever keeps it. mu must be held (or nobody else know the core yet).
func (c *Core) keepState() {
	if c.keep != nil {
		c.keep(c.mu.mode, c.mu.flushLost)
	}
}

// SetReadThrough says whether what users read from the source is kept in the destination. At any time,
// from any thread.
func (c *Core) SetReadThrough(on bool) { c.readThrough.Store(on) }

// SetDiscardPassdown says whether the destination is told of discards, and may give up the space. At any
// time, from any thread.
func (c *Core) SetDiscardPassdown(on bool) { c.passdown.Store(on) }

// SetSpareZeros says what of that which is to become zero in the destination is read first, and left as it is where it
// is zero already: for a destination where zeros that are written take space, and zeros that are read stay. At any
// time, from any thread.
func (c *Core) SetSpareZeros(s Spare) { c.spares.Store(uint32(s)) }

func (c *Core) tell() {
	if c.event != nil {
		c.event()
	}
}

// uncommitted says whether a mark of H in [first, end) is not durable yet. mu must be held.
func (c *Core) uncommitted(first, end uint64) bool {
	return c.mu.doubt || c.mu.active.Any(bitmap.PlaneHydrated, first, end) || c.mu.frozen.Any(bitmap.PlaneHydrated, first, end)
}

// clean says that no mark waits for a commit. mu must be held.
func (c *Core) clean() bool {
	return !c.mu.doubt && c.mu.active.Empty() && c.mu.frozen.Empty()
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
	return c.durableHydrated()
}

func (c *Core) durableHydrated() uint64 {
	if c.mu.doubt {
		return 0
	}
	return c.regions.NrHydrated() - c.mu.active.Count(bitmap.PlaneHydrated) - c.mu.frozen.Count(bitmap.PlaneHydrated)
}
