package hydrate

import (
	"cmp"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
)

const (
	// yieldPause is how often it is looked whether users' requests are still in flight, or their
	// claims still open, when no end of a batch makes it look sooner.
	yieldPause = 5 * time.Millisecond
	// stallPause is how often a stalled hydrator looks whether users have healed what failed.
	stallPause = time.Second
	// commitPause is the time given to a commit that has to come first.
	commitPause = 10 * time.Millisecond
)

// Settings may change at any time.
type Settings struct {
	Enabled bool
	// Threshold is the most regions that are hydrated at a time; 0 stops hydration.
	Threshold uint64
	// Batch is the most contiguous regions in one copy; one larger than Threshold is cut to it.
	Batch uint64
	// Rate is the most that is copied, MinRate what is copied also under steady requests of users,
	// where the devices can; bytes a second, 0 = none. The smaller one holds.
	Rate, MinRate int64
	// Retries is how often a region is tried before it waits for a Resume; 0 = as often as the
	// default.
	Retries uint32
}

// Holes tells of holes in the source, in bytes. NextData gives the first offset from off on that is
// not in a hole, NextHole the first that is; both the source's size if there is none. They must not
// block for long.
type Holes interface {
	NextData(off int64) (int64, error)
	NextHole(off int64) (int64, error)
}

// Config is what a Hydrator is made from.
type Config struct {
	Core *clone.Core
	Lane *clone.Lane
	// Holes may be nil: the source has none.
	Holes Holes
	// Request is the most that the source is asked for at a time, in bytes, as the kernel cuts what
	// is larger, and Depth how many such requests it takes; 0 = anything. See quota.whole.
	Request int64
	Depth   int
	// Align is what the end of a batch is a multiple of where it can be, in bytes; 0 = nothing.
	// What the destination gives up in such units only should not be cut by batches.
	Align int64
	// Batches is the most batches in flight: the operations and buffers of the lane.
	Batches int
	// Now is the clock; After makes Pump run again after d.
	Now   func() time.Time
	After func(d time.Duration)
	// Wake makes Pump run soon, from any thread. Event tells of a change of state; must not block.
	Wake  func()
	Event func()

	Settings Settings
}

// Hydrator is the background. See the package comment.
type Hydrator struct {
	cfg    Config
	flight flight
	search search
	quota  quota
	shared board

	again time.Time     // not before: a commit comes first
	nap   time.Duration // until the next Pump, as far as this one has found; 0: none needed
}

// Configure changes the settings, from any thread.
func (h *Hydrator) Configure(s Settings) {
	h.shared.configure(s)
	h.cfg.Wake()
}

// Settings may be asked from any thread.
func (h *Hydrator) Settings() Settings { return h.shared.wanted() }

// Resume forgets what has failed and tries again, from any thread.
func (h *Hydrator) Resume() {
	h.shared.askResume()
	h.cfg.Wake()
}

// Status may be asked from any thread.
func (h *Hydrator) Status() Status { return h.shared.current() }

// InFlight is the number of batches in flight. On the lane's thread.
func (h *Hydrator) InFlight() int { return len(h.flight.flying) }

// Pump starts what may be started now. On the lane's thread, after completions.
func (h *Hydrator) Pump() {
	s := h.take()
	h.nap = 0
	state := h.pump(s)
	if h.nap > 0 {
		h.cfg.After(h.nap)
	}
	if h.shared.publish(state, h.flight.inWork, &h.search.bad) && h.cfg.Event != nil {
		h.cfg.Event()
	}
}

// take gives the settings, and acts on a Resume.
func (h *Hydrator) take() Settings {
	s, resume := h.shared.take()
	if resume {
		h.search.bad.forget()
		h.search.cursor = 0
	}
	now := h.cfg.Now()
	h.quota.cap.set(s.Rate, now)
	h.quota.floor.set(s.MinRate, now)
	h.search.bad.limit = int(cmp.Or(s.Retries, defaultRetries))
	if !s.Enabled || h.cfg.Core.Mode() != clone.ReadWrite {
		s.Threshold = 0
	}
	s.Batch = max(1, min(s.Batch, s.Threshold, h.cfg.Lane.CopyRegions()))
	return s
}

// pump starts batches until a bound is met and says in which state that leaves us.
func (h *Hydrator) pump(s Settings) State {
	if h.search.regions.NrHydrated() == h.search.geo.Regions() {
		return Done
	}
	if s.Threshold == 0 {
		return Paused
	}
	state := h.lookAtUsers(s)
	for len(h.flight.free) > 0 && !h.waits() {
		room := s.Threshold - min(s.Threshold, h.flight.inWork)
		n, wait := h.quota.batch(s, state, room, &h.flight, h.cfg.Now())
		if wait > 0 {
			h.sleep(wait)
		}
		if n == 0 {
			return state
		}
		if state == Yielding {
			room = n
		}
		next, ok := h.search.next(n, room)
		if !ok {
			return h.idle(state)
		}
		if !h.start(next) {
			return state
		}
	}
	return state
}

// lookAtUsers says whether they are there, and sees how they are.
func (h *Hydrator) lookAtUsers(s Settings) State {
	now := h.cfg.Now()
	reading := h.quota.yield.reading(now, h.cfg.Core.Waits())
	if !reading && h.cfg.Core.UserInFlight() == 0 {
		h.quota.yield.away()
		return Hydrating
	}
	h.sleep(yieldPause)
	most := min(s.Threshold, uint64(h.cfg.Batches)*s.Batch) / h.quota.small(s.Batch)
	h.quota.yield.look(now, h.cfg.Core, h.quota.bytes(h.flight.inWork), h.quota.bytes(h.quota.small(s.Batch)), float64(most))
	return Yielding
}

// waits says that a commit has to come first.
func (h *Hydrator) waits() bool {
	d := h.again.Sub(h.cfg.Now())
	if d > 0 {
		h.sleep(d)
	}
	return d > 0
}

// sleep asks for another Pump after d, at the latest.
func (h *Hydrator) sleep(d time.Duration) {
	if h.nap == 0 || d < h.nap {
		h.nap = max(d, time.Microsecond)
	}
}

// idle: nothing can be started. Batches in flight come back to Pump by themselves, what has failed
// by its back-off.
func (h *Hydrator) idle(state State) State {
	if len(h.flight.flying) > 0 {
		return state
	}
	h.search.bad.prune(h.search.regions)
	if h.search.bad.empty() { // claimed by users just now, or done
		h.sleep(yieldPause)
		return state
	}
	wait, tries := h.search.bad.nextTry()
	if !tries {
		wait = stallPause
	}
	h.sleep(min(wait, stallPause))
	if tries && !h.search.bad.away() {
		return state
	}
	return Stalled
}

// start gives a batch to the lane; false when it has no room, or nothing of the batch could be
// claimed now: going on at once would spin.
func (h *Hydrator) start(w work) bool {
	b := h.flight.start(w)
	n := len(h.flight.flying)
	if !h.cfg.Lane.Hydrate(&b.Hydration) {
		h.flight.land(b)
		h.search.putBack(w)
		return false
	}
	if w.kind == clone.CopySource {
		h.quota.spend(w.end-w.first, h.cfg.Now())
	}
	if len(h.flight.flying) < n {
		h.sleep(yieldPause)
		return false
	}
	return true
}

// done is the end of a batch.
func (h *Hydrator) done(b *batch, err error) {
	h.flight.land(b)
	switch {
	case err == nil:
		h.search.bad.succeeded(b.First, b.End)
	case err == clone.ErrCommitFirst:
		h.again = h.cfg.Now().Add(commitPause)
	case err == clone.ErrReadOnly:
	case b.End-b.First > 1:
		h.search.split = append(h.search.split, span{b.First, b.End})
		h.search.bad.row++
		h.noteFailure(b, err)
	default:
		h.search.bad.failed(b.First)
		h.noteFailure(b, err)
	}
}

// noteFailure keeps the error for the status. One that is not of these regions alone says that all others
// would fail too.
func (h *Hydrator) noteFailure(b *batch, err error) {
	if h.cfg.Core.Class(err) != clone.Local {
		h.search.bad.row = max(h.search.bad.row, awayAfter)
	}
	h.shared.failed(err, h.search.geo.Start(b.First))
}
