package clone

import (
	"sync/atomic"
	"time"
)

// The hydrator competes with users for the source. For it to see what it costs them, each lane
// counts their reads of the source and the time that these take. Reads and writes of hydrated
// regions know nothing of that: they look at no clock.
//
// Time is counted by periods: a read counts only if it began and ended in the same one. So what
// changes with a new period, as hydration that has paused, has its own figure, and no read that saw
// both is in either.

// waits are written by their lane only and read by anybody.
type waits struct {
	reads, timed, time atomic.Int64
}

// Waits are sums over lanes since the start.
type Waits struct {
	Requests int64         // of users, of any kind
	Reads    int64         // of the source for users, that ended well at once
	Timed    int64         // those of Reads that began and ended in one period
	Time     time.Duration // of these together
}

// beginWait is the start of a read of the source for a user.
func (s *source) beginWait(o *op) { o.period, o.began = s.core.period.Load(), s.core.now() }

// endWait is its end. One that fails, or has failed before, says nothing about hydration.
func (s *source) endWait(o *op, err error) {
	period := o.period
	o.period = 0
	if err != nil {
		return
	}
	add(&s.waits.reads, 1)
	if period == s.core.period.Load() {
		add(&s.waits.timed, 1)
		add(&s.waits.time, s.core.now().Sub(o.began).Nanoseconds())
	}
}
