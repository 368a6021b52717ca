package clonetest

import "github.com/ublk-clone/ublk-clone/internal/copybuffers"

// stocked are the copy buffers of a daemon. With every other seed lanes have few of their own and
// take more from a stock, which is filled late, or never, and emptied now and then.
type stocked struct {
	stock  *copybuffers.Stock
	wanted bool
	added  int
}

const (
	fillEvery  = 7 // steps of the scheduler
	emptyEvery = 61
	mostAdded  = 4
)

// fresh makes the stock of a daemon that starts.
func (b *stocked) fresh(cfg *Config) {
	*b = stocked{}
	if cfg.Seed%2 == 0 {
		b.stock = copybuffers.NewStock(cfg.BufferSize, func() { b.wanted = true })
	}
}

// forLane gives a lane its buffers.
func (b *stocked) forLane(cfg *Config) (c copybuffers.Config) {
	own := cfg.Buffers
	if b.stock != nil {
		own = min(own, 2)
		c = copybuffers.Config{Stock: b.stock, Most: cfg.Buffers + 1, Cut: own == 2}
		if cfg.Spares || cfg.Switch {
			c.Rest = 1
		}
	}
	for range own {
		c.Own = append(c.Own, make([]byte, cfg.BufferSize))
	}
	return c
}

// turn does what the daemon's goroutine may do at this step. A third of the daemons have no memory.
func (b *stocked) turn(cfg *Config, step int) {
	switch {
	case b.stock == nil || cfg.Seed%3 == 0:
	case b.wanted && step%fillEvery == 0 && b.added < mostAdded:
		b.wanted = false
		b.added++
		b.stock.Add(make([]byte, cfg.BufferSize))
	case step%emptyEvery == 0:
		for _, buf := range b.stock.Idle() {
			b.added--
			for i := range buf {
				buf[i] = 0xee // whoever uses it still shows that
			}
		}
	}
}
