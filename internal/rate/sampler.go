package rate

import (
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// Sampler takes the rate of hydration once a second, on a goroutine of its own.
type Sampler struct {
	look func() (total int64, active bool)
	quit chan struct{}
	left chan struct{}

	mu struct {
		sync.Mutex
		meter   Meter
		rate    int64
		seconds uint64 // in which hydration was active
	}
}

// Start begins. look gives the bytes that need no copy any more, and whether hydration is active.
func (s *Sampler) Start(look func() (total int64, active bool)) {
	s.look, s.quit, s.left = look, make(chan struct{}), make(chan struct{})
	guard.Go("sampler", s.run)
}

func (s *Sampler) Stop() {
	close(s.quit)
	<-s.left
}

func (s *Sampler) run() {
	defer close(s.left)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s.sample(time.Now())
		select {
		case <-tick.C:
		case <-s.quit:
			return
		}
	}
}

func (s *Sampler) sample(now time.Time) {
	total, active := s.look()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.rate = s.mu.meter.Add(now, total)
	if active {
		s.mu.seconds++
	}
}

// Rates are the rate of now and the last that was not zero, bytes a second, and for how many
// seconds hydration was active.
func (s *Sampler) Rates() (rate, last, active int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.rate, s.mu.meter.Last, int64(s.mu.seconds)
}
