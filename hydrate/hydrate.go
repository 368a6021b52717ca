package hydrate

import (
	"cmp"
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
)

const (
	// zeroSpan is the most bytes that one background zeroing covers. It needs no buffer, but its regions
	// are claimed meanwhile.
	zeroSpan = 8 << 20
	// yieldPause is how often it is looked whether users' requests are still in flight, or their claims
	// still open, when no end of a batch makes it look sooner.
	yieldPause = 5 * time.Millisecond
	// stallPause is how often a stalled hydrator looks whether users have healed what failed.
	stallPause = time.Second
	// yieldBytes is a small batch, which is where it begins among users' requests (yield.go).
	yieldBytes = 256 << 10
	// batchesASecond bounds a batch under a cap: a slow cap is not kept by a long copy every few seconds.
	batchesASecond = 8
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
	// Rate is the most that is copied, MinRate what is copied also under steady requests of users, where
	// the devices can; bytes a second, 0 = none. The smaller one holds.
	Rate, MinRate int64
	// Retries is how often a region is tried before it waits for a Resume; 0 = as often as the default.
	Retries uint32
}

// Holes tells of holes in the source, in bytes. NextData gives the first offset from off on that is not
// in a hole, NextHole the first that is; both the source's size if there is none. They must not block
// for long.
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
	// Request is the most that the source is asked for at a time, in bytes, as the kernel cuts what is larger, and Depth
	// how many such requests it takes; 0 = anything. See Hydrator.whole.
	Request int64
	Depth   int
	// Align is what the end of a batch is a multiple of where it can be, in bytes; 0 = nothing. What the destination gives
	// up in such units only should not be cut by batches.
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
	cfg     Config
	geo     clone.Geometry
	regions *bitmap.Map

	free   []*batch
	flying []*batch
	inWork uint64 // regions in flight
	cursor uint64
	split  []span
	// retrying: a region that has failed before is in flight.
	retrying bool
	bad      badRanges
	again    time.Time     // not before: a commit comes first
	cap      pace          // no more than that is copied
	floor    pace          // no less than that, where the devices can
	yield    yield         // how much there is beside users
	nap      time.Duration // until the next Pump, as far as this one has found; 0: none needed

	shared struct {
		sync.Mutex
		settings Settings
		resume   bool
		status   Status
	}
}

// Status is a snapshot.
type Status struct {
	State    State
	InFlight uint64 // regions
	Bad      []BadRange
	// LastError is why the newest failed batch failed, at byte LastErrorAt; nil after a Resume.
	LastError   error
	LastErrorAt int64
	Failures    uint64 // failed copies since the start
}

// State is what the hydrator does.
type State uint8

const (
	Paused State = iota
	Hydrating
	Yielding
	Stalled
	Done
)

func (s State) String() string {
	return [...]string{"paused", "hydrating", "yielding", "stalled", "done"}[s]
}

// span is the regions [first, end).
type span struct{ first, end uint64 }

// batch is one Hydration in flight.
type batch struct {
	clone.Hydration
	at    int // place in flying
	retry bool
}

// New makes a hydrator; nothing happens before the first Pump.
func New(cfg Config) *Hydrator {
	h := &Hydrator{cfg: cfg, geo: cfg.Core.Geometry(), regions: cfg.Core.Regions()}
	h.bad.now = cfg.Now
	h.yield.forget()
	for range cfg.Batches {
		b := &batch{}
		b.Done = func(*clone.Hydration, error) { panic("unset") }
		h.free = append(h.free, b)
	}
	for _, b := range h.free {
		b.Done = func(_ *clone.Hydration, err error) { h.done(b, err) }
	}
	h.shared.settings = cfg.Settings
	return h
}

// Configure changes the settings, from any thread.
func (h *Hydrator) Configure(s Settings) {
	h.shared.Lock()
	h.shared.settings = s
	h.shared.Unlock()
	h.cfg.Wake()
}

// Settings may be asked from any thread.
func (h *Hydrator) Settings() Settings {
	h.shared.Lock()
	defer h.shared.Unlock()
	return h.shared.settings
}

// Resume forgets what has failed and tries again, from any thread.
func (h *Hydrator) Resume() {
	h.shared.Lock()
	h.shared.resume = true
	h.shared.Unlock()
	h.cfg.Wake()
}

// Status may be asked from any thread.
func (h *Hydrator) Status() Status {
	h.shared.Lock()
	defer h.shared.Unlock()
	return h.shared.status
}

// InFlight is the number of batches in flight. On the lane's thread.
func (h *Hydrator) InFlight() int { return len(h.flying) }

// Pump starts what may be started now. On the lane's thread, after completions.
func (h *Hydrator) Pump() {
	s := h.take()
	h.nap = 0
	state := h.pump(s)
	if h.nap > 0 {
		h.cfg.After(h.nap)
	}
	h.publish(state)
}

// take gives the settings, and acts on a Resume.
func (h *Hydrator) take() Settings {
	h.shared.Lock()
	s, resume := h.shared.settings, h.shared.resume
	h.shared.resume = false
	h.shared.Unlock()
	if resume {
		h.bad.forget()
		h.cursor = 0
	}
	now := h.cfg.Now()
	h.cap.set(s.Rate, now)
	h.floor.set(s.MinRate, now)
	h.bad.limit = int(cmp.Or(s.Retries, defaultRetries))
	if !s.Enabled || h.cfg.Core.Mode() != clone.ReadWrite {
		s.Threshold = 0
	}
	s.Batch = max(1, min(s.Batch, s.Threshold, h.cfg.Lane.CopyRegions()))
	return s
}

// pump starts batches until a bound is met and says in which state that leaves us.
func (h *Hydrator) pump(s Settings) State {
	if h.regions.NrHydrated() == h.geo.Regions() {
		return Done
	}
	if s.Threshold == 0 {
		return Paused
	}
	state := h.lookAtUsers(s)
	for len(h.free) > 0 && !h.waits() {
		room := h.room(s)
		n := h.batchRegions(s, state, room)
		if n == 0 {
			return state
		}
		if state == Yielding {
			room = n
		}
		next, ok := h.next(n, room)
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
	reading := h.yield.reading(now, h.cfg.Core.Waits())
	if !reading && h.cfg.Core.UserInFlight() == 0 {
		h.yield.away()
		return Hydrating
	}
	h.sleep(yieldPause)
	most := min(s.Threshold, uint64(h.cfg.Batches)*s.Batch) / h.smallBatch(s.Batch)
	h.yield.look(now, h.cfg.Core, h.bytes(h.inWork), h.bytes(h.smallBatch(s.Batch)), float64(most))
	return Yielding
}

// room is how many regions may be started in all.
func (h *Hydrator) room(s Settings) uint64 { return s.Threshold - min(s.Threshold, h.inWork) }

// batchRegions is how many regions the next batch may copy, 0 = none now.
func (h *Hydrator) batchRegions(s Settings, state State, room uint64) uint64 {
	now := h.cfg.Now()
	if room == 0 || len(h.flying) > 0 && room < s.Batch/2 { // what is left of the threshold is not worth a request
		return 0
	}
	if debt := h.cap.debt(now); debt > 0 {
		h.sleep(debt)
		return 0
	}
	n := h.whole(min(s.Batch, room))
	if h.cap.rate > 0 {
		n = min(n, h.nrIn(h.cap.rate/batchesASecond))
	}
	if state == Yielding {
		return h.besideUsers(n, h.smallBatch(s.Batch), now)
	}
	return n
}

// besideUsers cuts a batch of n regions to what users leave us, but for the floor, which is kept with small batches (I12).
func (h *Hydrator) besideUsers(n, small uint64, now time.Time) uint64 {
	if h.yield.alone {
		return 0
	}
	allowed, flying := h.yield.allowed(h.bytes(small)), h.bytes(h.inWork)
	left := allowed - min(allowed, flying)
	switch {
	case flying == 0, left >= min(allowed, h.bytes(small))/2: // less is not worth a request
		return h.whole(min(n, h.nrIn(int64(left))))
	case h.floor.behind(h.bytes(min(n, small)), now):
		h.yield.forced = true
		return min(n, small)
	}
	return 0
}

// smallBatch is how many regions are a small batch.
func (h *Hydrator) smallBatch(batch uint64) uint64 { return h.whole(min(batch, h.nrIn(yieldBytes))) }

// whole cuts a batch to whole requests of the source, of those no more than it takes at a time. On a disk of depth 1 that
// takes 127 KiB, batches of 1 MiB end with a request of 8 KiB, which lasts as long as the others; and several of them take
// turns there, end together, and fill the destination's queue at once while it was idle before: 4 KiB writes of users
// waited for 2.2 ms at p99 (342 us without hydration).
func (h *Hydrator) whole(batch uint64) uint64 {
	bytes, request := int64(h.bytes(batch)), h.cfg.Request
	if request == 0 || bytes <= request {
		return batch
	}
	if h.cfg.Depth > 0 {
		bytes = min(bytes, request*int64(h.cfg.Depth))
	}
	return h.nrIn(bytes / request * request)
}

// nrIn is how many regions bytes are, at least 1.
func (h *Hydrator) nrIn(bytes int64) uint64 { return max(1, uint64(bytes/h.geo.RegionSize())) }

func (h *Hydrator) bytes(regions uint64) uint64 { return regions * uint64(h.geo.RegionSize()) }

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

// idle: nothing can be started. Batches in flight come back to Pump by themselves, what has failed by
// its back-off.
func (h *Hydrator) idle(state State) State {
	if len(h.flying) > 0 {
		return state
	}
	h.bad.prune(h.regions)
	if h.bad.empty() { // claimed by users just now, or done
		h.sleep(yieldPause)
		return state
	}
	wait, tries := h.bad.nextTry()
	if !tries {
		wait = stallPause
	}
	h.sleep(min(wait, stallPause))
	if tries && !h.bad.away() {
		return state
	}
	return Stalled
}

// start gives a batch to the lane; false when it has no room, or nothing of the batch could be claimed
// now: going on at once would spin.
func (h *Hydrator) start(w work) bool {
	b := h.free[len(h.free)-1]
	b.First, b.End, b.Kind = w.first, w.end, w.kind
	h.free = h.free[:len(h.free)-1]
	b.retry, b.Alone = w.retry, w.retry
	h.retrying = h.retrying || w.retry
	b.at = len(h.flying)
	h.flying = append(h.flying, b)
	h.inWork += w.end - w.first
	n := len(h.flying)
	if !h.cfg.Lane.Hydrate(&b.Hydration) {
		h.land(b)
		return false
	}
	if w.kind == clone.CopySource {
		h.spend(w.span)
	}
	if len(h.flying) < n {
		h.sleep(yieldPause)
		return false
	}
	return true
}

// spend books a copy to cap and floor.
func (h *Hydrator) spend(s span) {
	n, now := h.bytes(s.end-s.first), h.cfg.Now()
	h.cap.take(n, now)
	h.floor.take(n, now)
	h.floor.advance()
}

// land takes a batch out of flight.
func (h *Hydrator) land(b *batch) {
	last := h.flying[len(h.flying)-1]
	h.flying[b.at] = last
	last.at = b.at
	h.flying = h.flying[:len(h.flying)-1]
	h.inWork -= b.End - b.First
	h.retrying = h.retrying && !b.retry
	h.free = append(h.free, b)
}

// done is the end of a batch.
func (h *Hydrator) done(b *batch, err error) {
	h.land(b)
	switch {
	case err == nil:
		h.bad.succeeded(b.First, b.End)
	case err == clone.ErrCommitFirst:
		h.again = h.cfg.Now().Add(commitPause)
	case err == clone.ErrReadOnly:
	case b.End-b.First > 1:
		h.split = append(h.split, span{b.First, b.End})
		h.bad.row++
		h.note(b, err)
	default:
		h.bad.failed(b.First)
		h.note(b, err)
	}
}

// note keeps the error for the status. One that is not of these regions alone says that all others would fail too.
func (h *Hydrator) note(b *batch, err error) {
	if h.cfg.Core.Class(err) != clone.Local {
		h.bad.row = max(h.bad.row, awayAfter)
	}
	h.shared.Lock()
	h.shared.status.LastError = err
	h.shared.status.LastErrorAt = h.geo.Start(b.First)
	h.shared.status.Failures++
	h.shared.Unlock()
}

// publish updates the status and tells of a change of state.
func (h *Hydrator) publish(state State) {
	h.shared.Lock()
	st := &h.shared.status
	changed := st.State != state
	st.State, st.InFlight = state, h.inWork
	if h.bad.changed {
		st.Bad, h.bad.changed = h.bad.list(), false
	}
	if h.bad.empty() && state != Stalled {
		st.LastError = nil
	}
	h.shared.Unlock()
	if changed && h.cfg.Event != nil {
		h.cfg.Event()
	}
}
