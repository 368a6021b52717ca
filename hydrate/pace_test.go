package hydrate

import (
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
)

// copyFor lets the clock run for span, in steps of a millisecond, while each backend I/O takes
// latency, and returns the bytes that were copied in it.
func (r *rig) copyFor(span, latency time.Duration) int64 {
	type flight struct {
		asked
		end time.Time
	}
	var flying []flight
	before := r.core.Stats().Copied
	for end := r.now.Add(span); r.now.Before(end); r.now = r.now.Add(time.Millisecond) {
		r.h.Pump()
		for _, a := range r.asked {
			flying = append(flying, flight{a, r.now.Add(latency)})
		}
		r.asked = nil
		for len(flying) > 0 && !r.now.Before(flying[0].end) {
			r.lane.EndIO(flying[0].token, nil)
			flying = flying[1:]
		}
	}
	return r.core.Stats().Copied - before
}

// read begins a read of a user's that never ends.
func (r *rig) read(region int64) {
	r.lane.Submit(&clone.Request{Op: clone.OpRead, Off: region * regionSize, Len: regionSize, End: func(*clone.Request, error) {}})
	r.asked = nil
}

// TestRate: the cap is kept to within a few percent, whatever it is to a batch, after an idle time
// too, and can be changed; without one everything is copied at once.
func TestRate(t *testing.T) {
	const span = 10 * time.Second
	for _, rate := range []int64{10 * regionSize, 1 << 20, 4 << 20} {
		s := on
		s.Rate = rate
		r := newRig(t, 200000, s, nil)
		r.now = r.now.Add(time.Hour)
		r.within(t, rate, r.copyFor(span, time.Millisecond)/10, "")
		s.Rate = 3 * rate
		r.h.Configure(s)
		r.within(t, 3*rate, r.copyFor(span, time.Millisecond)/10, "after a change")
	}
	r := newRig(t, 20000, on, nil)
	if n := r.copyFor(span, time.Millisecond); n != 20000*regionSize {
		t.Errorf("%d bytes copied without a cap", n)
	}
}

func (r *rig) within(t *testing.T, want, got int64, when string) {
	t.Helper()
	if got < want*95/100 || got > want*105/100 {
		t.Errorf("%d bytes a second %s, want %d", got, when, want)
	}
}

// TestFloor: with a user's request always in flight, one small batch at a time is what a slow
// source gives; the floor is reached by more of them, and no more than it.
func TestFloor(t *testing.T) {
	const latency = 50 * time.Millisecond // of a read, and of a write
	alone := int64(8*regionSize) * 10     // a batch every 100 ms
	for _, c := range []struct{ floor, cap, want int64 }{
		{0, 0, alone},
		{alone / 2, 0, alone},
		{alone * 5 / 4, 0, alone * 5 / 4},
		{2 * alone, 0, 2 * alone},
		{3 * alone, 0, 3 * alone},
		{100 * alone, 0, 4 * alone}, // all that threshold and buffers allow
		{3 * alone, alone / 2, alone / 2},
	} {
		s := on
		s.MinRate, s.Rate = c.floor, c.cap
		r := newRig(t, 200000, s, nil)
		r.read(199999)
		got := r.copyFor(20*time.Second, latency) / 20
		if got < c.want*9/10 || got > c.want*11/10 {
			t.Errorf("floor %d, cap %d: %d bytes a second, want %d", c.floor, c.cap, got, c.want)
		}
		if st := r.h.Status(); st.State != Yielding {
			t.Errorf("floor %d: %v", c.floor, st.State)
		}
	}
}

// TestNapIsTheShortest: of all reasons to look again later the first one counts.
func TestNapIsTheShortest(t *testing.T) {
	s := on
	s.Rate = 1 // for hours
	r := newRig(t, 1000, s, nil)
	r.h.Pump()
	r.asked = nil
	r.h.Pump()
	if r.wait < time.Minute {
		t.Fatalf("Pump again in %v under a cap of 1 byte a second", r.wait)
	}
	r.read(999)
	r.h.Pump()
	if r.wait != yieldPause {
		t.Errorf("Pump again in %v with a user's request in flight, want %v", r.wait, yieldPause)
	}
}

// TestRetries: the limit is a setting.
func TestRetries(t *testing.T) {
	for _, retries := range []uint32{1, 3} {
		s := on
		s.Retries, s.Batch = retries, 1
		r := newRig(t, 10, s, nil)
		reads := uint32(0)
		for range 50 {
			r.finish(func(a asked) error {
				if a.read && a.first == 4 {
					reads++
					return errBad
				}
				return nil
			})
			r.now = r.now.Add(time.Minute)
		}
		if reads != retries || r.h.Status().State != Stalled {
			t.Errorf("%d reads with %d retries, %v", reads, retries, r.h.Status().State)
		}
	}
}
