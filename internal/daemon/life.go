package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// The life of a clone. This drawing is the one place that says what a clone can be, what leads from
// one to the other, and who may do that. A phase is what a living daemon knows of it; the rest is
// seen by whoever finds no daemon (package leftover).
//
//	                 any step fails, add again
//	        +------------------------------------------+
//	        v           1 add                          |
//	    no clone ---------------------------------> starting
//	     ^  ^  ^                                       | all steps are done
//	     |  |  |            2 del, nobody uses it      v            4 finish
//	     |  |  +-- stopping <------------------------ up <---------------------+
//	     |  |         |                              |  ^ |   a step fails     |
//	     |  |         |            3 leave, or death |  | +---------------> finishing
//	     |  |         | death                        |  |                      |    | users are on
//	     |  |         v                              v  | all steps           |    | the destination
//	     |  +----- waiting: no daemon, the device <--+  | are done            |    v
//	     |   6 --force, or  users of it wait     <-----------------------------+  stopping, and no clone
//	     |     nobody uses it  | 5 recover    ^         |       death
//	     |                     v              |         |
//	     |                recovering ---------+---------+
//	     |                              any step fails, or death
//	     +-- 1 to 6 by root only: by a command, the service manager, for 3 and 5 a successor (succession.go), or for 4 the
//	         daemon itself, once it was told so (by_itself.go)
//
// What is durable or outlives the daemon at each arrow, when the next state begins:
//
//	1  the superblock without a clean flag, flushed, before the first request is answered; the live map and the
//	   definition are on tmpfs
//	2  the last commit, then the clean flag; then the live map goes, and the definition last
//	3  a leave: nothing is at work, and all marks are committed. A death: all marks are in the live map. The block device,
//	   the live map and the definition stay in both
//	4  the list in internal/engine/finish.go says it for each step
//	5  nothing is changed until metadata, live map and device are found to belong together, and all locks are held; what is in
//	   the live map only is committed by the next FLUSH
//	6  nothing is committed: the next add takes the live map over, which stays
//
// Two rules hold at every arrow (I13). Nobody leaves "up" for a successor before that is known to
// be able to serve (package preflight) and nothing keeps the daemon from ending
// (internal/engine/leave.go). And from "waiting" and "recovering" only `del` or `prune` lead to "no
// clone", with --force if somebody uses the device: a recovery that fails leads back to "waiting".

// phase is how far a daemon is. The engine is asked and changed in phaseUp only.
type phase uint8

const (
	phaseStarting phase = iota // or recovering
	phaseUp                    // bringing all to rest for a leave is part of it: it may come to nothing
	phaseFinishing
	phaseStopping // for good, or for the next daemon
)

// after is what a daemon can be next, as it is drawn above.
var after = [...][]phase{
	phaseStarting:  {phaseUp, phaseStopping},
	phaseUp:        {phaseFinishing, phaseStopping},
	phaseFinishing: {phaseUp, phaseStopping},
	phaseStopping:  nil,
}

// leadsTo says whether that phase can follow.
func (p phase) leadsTo(next phase) bool { return p == next || slices.Contains(after[p], next) }

// life is the phase that a daemon is in, and the requests that rely on it.
type life struct {
	name string // of the clone
	log  zerolog.Logger

	// places has one for each request that changes something, and changes counts them: the engine
	// is taken down when none is left.
	places  chan struct{}
	changes sync.WaitGroup

	// mu is held, for reading, while a status is made, which waits for nothing.
	mu struct {
		sync.RWMutex
		phase phase
		// serving ends with phaseUp, by endServing: so do the changes under way.
		serving    context.Context
		endServing context.CancelCauseFunc
	}
}

func newLife(name string, log zerolog.Logger) *life {
	return &life{name: name, log: log, places: make(chan struct{}, control.MaxChanges)}
}

// enter begins a phase. Behind phaseUp it waits for the changes under way, which it has ended.
func (l *life) enter(p phase) {
	l.mu.Lock()
	if !l.mu.phase.leadsTo(p) {
		l.log.Error().Uint8("from", uint8(l.mu.phase)).Uint8("to", uint8(p)).Msg("a phase that cannot follow")
	}
	l.mu.phase = p
	if l.mu.endServing != nil {
		l.mu.endServing(l.notUp())
	}
	if p == phaseUp {
		l.mu.serving, l.mu.endServing = context.WithCancelCause(context.Background())
	}
	l.mu.Unlock()
	if p != phaseUp {
		l.changes.Wait()
	}
}

// during calls f, which waits for nothing, with the phase. The next one begins when f has returned.
func (l *life) during(f func(now phase)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	f(l.mu.phase)
}

// show calls f, which changes what is shown in every phase: no status is made meanwhile.
func (l *life) show(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// change calls do, which changes the clone and may wait for its devices: as long as the clone is up
// and the client is there.
func (l *life) change(ctx context.Context, do func(context.Context) error) error {
	select {
	case l.places <- struct{}{}:
		defer func() { <-l.places }()
	default:
		return &exit.Error{Code: exit.Busy, Doing: "change clone", Object: l.name,
			Cause: fmt.Errorf("%d other commands wait for it", control.MaxChanges), Next: "See `ublk-clone status " + l.name + "` for what they wait for."}
	}
	l.mu.RLock()
	serving, up := l.mu.serving, l.mu.phase == phaseUp
	if up {
		l.changes.Add(1)
		defer l.changes.Done()
	}
	l.mu.RUnlock()
	if !up {
		return l.notUp()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(serving, guard.Wrap("end a change", func() { cancel(context.Cause(serving)) }))()
	return do(ctx)
}

// changing is how many requests change something now.
func (l *life) changing() int { return len(l.places) }

// notUp is the answer to what needs the clone, which is not there yet or any more.
func (l *life) notUp() error {
	return &exit.Error{Code: exit.Busy, Doing: "ask clone", Object: l.name, Cause: errors.New("it is starting or stopping"),
		Next: "See `ublk-clone status " + l.name + "`, then try again."}
}

// awaitUp waits for the end of the start, at most limit. With an error the clone is not up.
func (l *life) awaitUp(ctx context.Context, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; {
		l.mu.RLock()
		now := l.mu.phase
		l.mu.RUnlock()
		switch {
		case now == phaseUp:
			return nil
		case now != phaseStarting || time.Now().After(deadline):
			return l.notUp()
		}
		if err := control.PauseWith(ctx, control.HolderPause); err != nil {
			return err
		}
	}
}
