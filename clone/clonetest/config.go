package clonetest

import (
	"math/rand/v2"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
)

// kind is the kind of a backend I/O, or of a place where an error can be.
type kind uint8

const (
	readSource kind = iota
	readDest
	writeDest
	zeroDest
	discardDest
	flushDest
	writeMeta
	flushMeta
	touchMap // memory of the live map, of which there may be none left
	nrKinds
)

func (k kind) String() string {
	return [...]string{"read source", "read destination", "write destination", "zero destination", "discard destination",
		"flush destination", "write metadata", "flush metadata", "take memory for the map"}[k]
}

// disk is the one that I/O of the kind goes to, by its first kind.
func (k kind) disk() kind {
	switch k {
	case readSource:
		return readSource
	case writeMeta, flushMeta:
		return writeMeta
	case touchMap:
		return touchMap
	}
	return readDest
}

// background says what hydrates while requests come.
type background uint8

const (
	noBackground   background = iota
	policy                    // package hydrate
	wildBackground            // runs of regions at random
)

// Step is one operation of a script, on the sectors [First, End).
type Step struct {
	Op         clone.Op
	FUA        bool
	First, End int64
	NoUnmap    bool
}

// spread is how far an injected error goes.
type spread uint8

const (
	failOnce spread = iota
	failKind        // all later I/O of its kind fails too
	failDisk        // all later I/O of its disk
)

// fate is what becomes of the I/O that is in flight when the daemon dies.
type fate uint8

const (
	anyFate fate = iota // drawn for each
	allLost
	someLand
	allLand
)

// Config is one run. All that is random in it is drawn from Seed. Its parts are one record where it
// is printed and read again.
type Config struct {
	Seed uint64
	device
	pools
	requests
	ends
	hydration
	switches
	faults
	schedule

	// Brief ends the run when all is answered and read once more.
	Brief bool
}

// device is what is cloned.
type device struct {
	Size       int64 // of the device, bytes
	RegionSize int64 // bytes
	Windows    []Window
	Large      bool // takes too long to hydrate
}

// pools are what lanes and core have to work with.
type pools struct {
	Lanes      int // of users; the hydrator has one more
	Depth      int // requests a lane
	Ops        int
	Buffers    int
	BufferSize int64 // bytes
	DeltaPages int   // 0: the core's own
	MaxIO      int64 // bytes of a READ or WRITE
}

// requests are what users ask for.
type requests struct {
	Requests int
	// Script are the requests, in the order in which they are issued. nil: they are drawn.
	Script   []Step
	OpWeight [clone.OpWriteZeroes + 1]int
}

// ends are how often the daemon ends, and what becomes of it then.
type ends struct {
	PowerCuts int
	Deaths    int // of the daemon
	Restarts  int // of the daemon, in order
	Repairs   int // of metadata that has failed
	// CutOpens is how often an open after the first one is cut short, by the daemon's death or a
	// power loss.
	CutOpens float64
	// Unreadable is how often the metadata cannot be read after a death.
	Unreadable float64
	// DieAt is the event, from 1, before which the daemon dies, once and besides Deaths; 0: none.
	DieAt int
	Fate  fate
}

// hydration is what happens in the background.
type hydration struct {
	Background background
	Threshold  uint64 // of the hydrator
	Batch      uint64
}

// switches are the core's.
type switches struct {
	// ReadThrough and Passdown are turned over now and then if Switch.
	ReadThrough, Passdown, Switch bool
	// LeastZeros is in bytes.
	LeastZeros int64
	// Spares: the destination is read before zeros are written to it; a switch as well.
	Spares bool
}

// faults are the errors that disks return.
type faults struct {
	BadSectors int // of the source, until the end
	// FailAt is the number of a piece of backend I/O, from 1, that fails, with FailSpread; 0: none.
	FailAt     int
	FailSpread spread
	// Failure is how often an I/O of a kind fails.
	Failure [nrKinds]float64
}

// schedule is in which order things happen.
type schedule struct {
	// Weight is how often an event is picked, and Slow how often an I/O of a kind, once picked, is
	// put off.
	Weight [nrEvents]int
	Slow   [nrKinds]float64
}

// Random draws a configuration.
func Random(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 1))
	c := Config{Seed: seed, device: device{RegionSize: clone.MinRegionSize << rng.IntN(3)}}
	c.LeastZeros = int64(seed%3) * c.RegionSize // of a third of the seeds none
	c.Spares = seed/3%2 == 0
	if rng.IntN(8) == 0 {
		c.drawLarge(rng)
	} else {
		c.drawSmall(rng)
	}
	c.drawPools(rng)
	c.drawWork(rng)
	c.drawFaults(rng)
	c.drawSchedule(rng)
	return c
}

// drawSmall: a device of a few regions, of which the tail is mostly shorter.
func (c *Config) drawSmall(rng *rand.Rand) {
	c.Size = c.RegionSize * int64(1+rng.IntN(3<<rng.IntN(4)))
	if rng.IntN(4) > 0 {
		c.Size += sectorBytes * int64(rng.IntN(int(c.RegionSize/sectorBytes)))
	}
	c.Windows = []Window{{0, c.Size / sectorBytes}}
}

// drawLarge: a sparse device beyond 4 GiB, or of several pages of the region map with a pool that
// holds four of them. Requests go to windows around the boundaries.
func (c *Config) drawLarge(rng *rand.Rand) {
	const around = 16 // sectors
	c.Large = true
	page := bitmap.RegionsPerPage * c.RegionSize / sectorBytes
	edges := []int64{page, 2 * page, 3 * page, 4 * page}
	c.DeltaPages = 4
	if rng.IntN(2) == 0 {
		edges = []int64{1 << 32 / sectorBytes, 1 << 32 / sectorBytes * 3 / 2}
		c.DeltaPages = 0
	}
	end := edges[len(edges)-1] + around + int64(rng.IntN(int(c.RegionSize/sectorBytes)))
	c.Size = end * sectorBytes
	c.Windows = []Window{{0, 2 * around}}
	for _, e := range edges {
		c.Windows = append(c.Windows, Window{e - around, min(end, e+3*around)})
	}
}

func (c *Config) drawPools(rng *rand.Rand) {
	c.Lanes = 1 + rng.IntN(3)
	c.Depth = 1 + rng.IntN(6)
	c.Ops = c.Depth + rng.IntN(3)
	if rng.IntN(3) == 0 {
		c.Ops = 1
	}
	c.Buffers = 1 + rng.IntN(3)
	c.BufferSize = 4096 << rng.IntN(4)
	c.MaxIO = c.RegionSize * int64(1+rng.IntN(6))
}

func (c *Config) drawWork(rng *rand.Rand) {
	c.Requests = 30 + rng.IntN(30<<rng.IntN(5))
	for i := range c.OpWeight {
		c.OpWeight[i] = rng.IntN(4)
	}
	c.OpWeight[clone.OpRead]++
	c.OpWeight[clone.OpWrite] += 2
	c.PowerCuts = rng.IntN(8)
	c.Deaths = rng.IntN(8)
	c.Restarts = rng.IntN(3)
	if rng.IntN(2) == 0 {
		c.CutOpens = 0.4
	}
	c.Background = background(rng.IntN(3))
	if c.Large && rng.IntN(4) > 0 { // the hydrator has much to do there
		c.Background = wildBackground
	}
	c.Threshold = 1 + uint64(rng.IntN(8))
	c.Batch = 1 + uint64(rng.IntN(8))
	c.ReadThrough, c.Passdown, c.Switch = rng.IntN(2) == 0, rng.IntN(2) == 0, rng.IntN(4) == 0
}

func (c *Config) drawFaults(rng *rand.Rand) {
	if rng.IntN(2) == 0 {
		return
	}
	for k := range c.Failure {
		if rng.IntN(2) == 0 {
			c.Failure[k] = 0.2 * rng.Float64() * rng.Float64()
		}
	}
	c.BadSectors = rng.IntN(5)
	c.Repairs = rng.IntN(5)
	if rng.IntN(3) == 0 {
		c.Unreadable = 0.5
	}
}

// drawSchedule draws weights over two orders of magnitude, so that some seeds have a source that
// never answers, a committer that sleeps, completions that lag.
func (c *Config) drawSchedule(rng *rand.Rand) {
	for i := range c.Weight {
		c.Weight[i] = 1 << rng.IntN(7)
	}
	if rng.IntN(2) == 0 { // much happens within a commit
		c.Weight[evCommit] = 1 + rng.IntN(4)
	}
	for k := range c.Slow {
		if rng.IntN(3) == 0 {
			c.Slow[k] = 1 - 1/float64(int(1)<<rng.IntN(6))
		}
	}
}
