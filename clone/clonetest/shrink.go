package clonetest

// Bounds of a Shrink: events of the simulator in all, far more than any failing run needs, and runs
// of a smaller configuration, as another schedule may be needed for it to fail.
const (
	shrinkEvents = 4 << 20
	shrinkSeeds  = 12
)

// simpler are the steps to a smaller configuration, the largest first. One that changes nothing is
// not tried.
var simpler = []func(*Config){
	func(c *Config) { c.Failure, c.BadSectors = [nrKinds]float64{}, 0 },
	func(c *Config) { c.Requests /= 2 },
	func(c *Config) { c.PowerCuts /= 2 },
	func(c *Config) { c.Deaths /= 2 },
	func(c *Config) { c.Restarts = 0 },
	func(c *Config) { c.Unreadable = 0 },
	func(c *Config) { c.CutOpens = 0 },
	func(c *Config) { c.Repairs /= 2 },
	func(c *Config) { c.Background = noBackground },
	func(c *Config) { c.cut(c.Size / 2) },
	func(c *Config) { c.Lanes = 1 },
	func(c *Config) { c.Depth = (c.Depth + 1) / 2 },
	func(c *Config) { c.Slow = [nrKinds]float64{} },
	func(c *Config) { c.ReadThrough, c.Switch = false, false },
	func(c *Config) { c.Passdown, c.Switch = false, false },
	func(c *Config) { c.Threshold, c.Batch = 1, 1 },
	func(c *Config) { c.MaxIO = max(c.RegionSize, c.MaxIO/2) },
	func(c *Config) { c.cut(c.Size - c.RegionSize) },
	func(c *Config) { c.BadSectors = 0 },
	func(c *Config) { c.Failure[readSource], c.Failure[readDest] = 0, 0 },
	func(c *Config) { c.Failure[writeDest], c.Failure[zeroDest], c.Failure[discardDest] = 0, 0, 0 },
	func(c *Config) { c.Failure[flushDest] = 0 },
	func(c *Config) { c.Failure[writeMeta], c.Failure[flushMeta] = 0, 0 },
	func(c *Config) { c.Buffers, c.Ops = 1, c.Depth },
	func(c *Config) { c.PowerCuts = max(0, c.PowerCuts-1) },
	func(c *Config) { c.Deaths = max(0, c.Deaths-1) },
	func(c *Config) { c.Restarts = max(0, c.Restarts-1) },
	func(c *Config) { c.Requests -= (c.Requests + 9) / 10 },
}

// cut makes a small device smaller.
func (c *Config) cut(size int64) {
	if size = size / sectorBytes * sectorBytes; !c.Large && size > 0 {
		c.Size, c.Windows = size, []Window{{0, size / sectorBytes}}
	}
}

// Shrink looks for a smaller configuration that fails too, step by step while one does, and gives
// it with its failure, which may be another one. The same configuration always gives the same. run
// is a run of one, with the number of its events.
func Shrink(c Config, failure error, run func(Config) (int, error)) (Config, error) {
	events := 0
	for again := true; again; {
		again = false
		for _, simplify := range simpler {
			small := c
			simplify(&small)
			if small.String() == c.String() {
				continue
			}
			for range shrinkSeeds {
				if events > shrinkEvents {
					return c, failure
				}
				n, err := run(small)
				events += n
				if err != nil {
					c, failure, again = small, err, true
					break
				}
				small.Seed++
			}
		}
	}
	return c, failure
}

// runCounted is Run, with the number of events.
func runCounted(c Config) (int, error) {
	s := newSim(c)
	err := s.report()
	return s.step, err
}
