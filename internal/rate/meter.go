package rate

import (
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
)

// rateSpan is the time over which the rate is taken: long enough that a figure
// can be read, short enough that a stop shows.
const rateSpan = 5 * time.Second

// Meter turns totals of hydrated bytes into a rate. It keeps a few samples
// of the last rateSpan.
type Meter struct {
	samples []rateSample
	Last    int64 // bytes a second, the last that was not zero
}

type rateSample struct {
	at    time.Time
	bytes int64
}

// Add notes the total at a time and returns the rate over the last rateSpan,
// bytes a second.
func (m *Meter) Add(at time.Time, total int64) int64 {
	m.samples = append(m.samples, rateSample{at, total})
	for len(m.samples) > 2 && at.Sub(m.samples[1].at) >= rateSpan {
		m.samples = m.samples[1:]
	}
	first := m.samples[0]
	seconds := at.Sub(first.at).Seconds()
	if seconds <= 0 {
		return 0
	}
	rate := int64(float64(total-first.bytes) / seconds)
	if rate > 0 {
		m.Last = rate
	}
	return rate
}

// ETA is the time left in seconds, nil where nobody can know.
func ETA(state string, remaining, rate int64) *int64 {
	if state == control.StateHydrated {
		return new(int64)
	}
	moving := state == control.StateHydrating || state == control.StateYielding
	if !moving || rate <= 0 {
		return nil
	}
	seconds := (remaining + rate - 1) / rate
	return &seconds
}
