package hydrate

import "sync"

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

// board is what the hydrator and other threads tell each other: settings and wishes come in, the
// status goes out. Its lock is a leaf. Any thread may call it, but for take, failed and publish,
// which are the hydrator's.
type board struct {
	sync.Mutex
	settings Settings
	resume   bool
	status   Status
}

func (b *board) configure(s Settings) {
	b.Lock()
	defer b.Unlock()
	b.settings = s
}

func (b *board) wanted() Settings {
	b.Lock()
	defer b.Unlock()
	return b.settings
}

func (b *board) askResume() {
	b.Lock()
	defer b.Unlock()
	b.resume = true
}

func (b *board) current() Status {
	b.Lock()
	defer b.Unlock()
	return b.status
}

// take gives the settings, and says once of a Resume that it was asked for.
func (b *board) take() (s Settings, resume bool) {
	b.Lock()
	defer b.Unlock()
	resume, b.resume = b.resume, false
	return b.settings, resume
}

// failed notes why the newest failed batch failed, which began at byte off.
func (b *board) failed(err error, off int64) {
	b.Lock()
	defer b.Unlock()
	b.status.LastError, b.status.LastErrorAt = err, off
	b.status.Failures++
}

// publish updates the status and says whether the state is another one.
func (b *board) publish(state State, inFlight uint64, bad *badRanges) (changed bool) {
	b.Lock()
	defer b.Unlock()
	st := &b.status
	changed = st.State != state
	st.State, st.InFlight = state, inFlight
	if bad.changed {
		st.Bad, bad.changed = bad.list(), false
	}
	if bad.empty() && state != Stalled {
		st.LastError = nil
	}
	return changed
}
