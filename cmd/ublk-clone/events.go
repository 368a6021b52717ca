package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
)

// The kinds of events.
const (
	eventStarted     = "started"
	eventSettings    = "settings"
	eventSource      = "source"       // it was opened again
	eventSourceError = "source-error" // the first of a burst
	eventDestError   = "dest-error"   // the same of the destination
	eventStalled     = "stalled"
	eventResumed     = "resumed" // after stalled
	eventMode        = "mode"
	eventHydrated    = "hydrated"
	eventFinished    = "finished"
)

// event is something that has happened to a clone.
type event struct {
	Seq   uint64    `json:"seq"` // from 1 without gaps; a daemon that recovers goes on where the dead one was
	Time  time.Time `json:"time"`
	Clone string    `json:"clone"`
	Kind  string    `json:"kind"`
	Text  string    `json:"text"`
}

// Limits of an eventLog.
const (
	keptEvents = 64
	burstGap   = time.Minute // without an error of a side ends a burst of them
	// maxPolls is how many connections may wait for an event at a time, and pollLimit for how long: the
	// other connections are for commands that are not to wait for them.
	maxPolls  = 8
	pollLimit = 5 * time.Second
)

// eventLog keeps the last events of a clone. Any thread may add one: it takes a leaf lock for a moment.
type eventLog struct {
	clone string
	log   zerolog.Logger // never blocks
	polls chan struct{}  // a place for each who waits

	mu struct {
		sync.Mutex
		last uint64
		kept []event
		more chan struct{} // closed by the next event
		// error is when each side has failed last.
		error [blockdev.Dest + 1]time.Time
		live  *livemap.Map // keeps last over the daemon's death
	}
}

func newEventLog(clone string, log zerolog.Logger) *eventLog {
	l := &eventLog{clone: clone, log: log, polls: make(chan struct{}, maxPolls)}
	l.mu.more = make(chan struct{})
	return l
}

// add notes an event and tells whoever waits.
func (l *eventLog) add(kind, text string) {
	l.mu.Lock()
	l.mu.last++
	ev := event{Seq: l.mu.last, Time: time.Now().UTC(), Clone: l.clone, Kind: kind, Text: text}
	l.mu.kept = append(l.mu.kept[max(0, len(l.mu.kept)-keptEvents+1):], ev)
	close(l.mu.more)
	l.mu.more = make(chan struct{})
	if l.mu.live != nil {
		l.mu.live.SetEvents(ev.Seq)
	}
	l.mu.Unlock()
	l.log.Info().Uint64("seq", ev.Seq).Str("event", kind).Msg(text)
}

// keepIn goes on from the number that a dead daemon has left in the live map, and keeps it there; nil: the map
// is about to go.
func (l *eventLog) keepIn(live *livemap.Map) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.live = live
	if live != nil {
		l.mu.last = max(l.mu.last, live.Events())
	}
}

// deviceError notes an error of a side at byte off, unless it belongs to a burst that was noted.
func (l *eventLog) deviceError(now time.Time, side blockdev.Role, off int64, err error) {
	kind := eventSourceError
	if side == blockdev.Dest {
		kind = eventDestError
	}
	l.mu.Lock()
	first := now.Sub(l.mu.error[side]) >= burstGap
	l.mu.error[side] = now
	l.mu.Unlock()
	if first {
		l.add(kind, fmt.Sprintf("an error at byte %d: %v", off, err))
	}
}

// since gives the kept events behind number seq, the last number, and what is closed by the next one. A
// number that is yet to come is of a former daemon: all that is kept is new then.
func (l *eventLog) since(seq uint64) (events []event, last uint64, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq > l.mu.last {
		seq = 0
	}
	missing := min(l.mu.last-seq, uint64(len(l.mu.kept)))
	return append(events, l.mu.kept[uint64(len(l.mu.kept))-missing:]...), l.mu.last, l.mu.more
}

// answer gives the events behind after; if there are none it waits for one, at most wait. Without after it
// tells the last number at once.
func (l *eventLog) answer(ctx context.Context, after *uint64, wait time.Duration) answer {
	if after == nil {
		return answer{Last: l.lastSeq()}
	}
	events, last, more := l.since(*after)
	if len(events) == 0 && l.await(ctx, more, wait) {
		events, last, _ = l.since(*after)
	}
	return answer{Events: events, Last: last}
}

// await says whether more was closed within wait. It does not wait where too many do already.
func (l *eventLog) await(ctx context.Context, more <-chan struct{}, wait time.Duration) bool {
	select {
	case l.polls <- struct{}{}:
	default:
		return false
	}
	defer func() { <-l.polls }()
	timer := time.NewTimer(min(wait, pollLimit))
	defer timer.Stop()
	select {
	case <-more:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

func (l *eventLog) lastSeq() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.last
}

// condition is what events tell the changes of.
type condition struct {
	mode      clone.Mode
	flushLost bool
	complete  bool
	hydration hydrate.Status
	away      error // why there is no source, if one is needed
}

// watcher turns changes of the clone's condition into events: core and hydrator only tell that something
// has changed, on threads that must not wait. It is a goroutine of its own and may block.
type watcher struct {
	events *eventLog
	look   func() condition
	// hydrated is called once when all is durably hydrated.
	hydrated func()

	was     condition
	stalled bool // and told so

	changed chan struct{}
	quit    chan struct{}
	left    chan struct{}
}

func newWatcher(events *eventLog, look func() condition, hydrated func()) *watcher {
	return &watcher{
		events: events, look: look, hydrated: hydrated,
		changed: make(chan struct{}, 1), quit: make(chan struct{}), left: make(chan struct{}),
	}
}

// kick says that something may have changed. It never blocks.
func (w *watcher) kick() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// watchPause is how often it is looked besides: failed copies alone change no state.
const watchPause = time.Second

func (w *watcher) run() {
	defer close(w.left)
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	for {
		select {
		case <-w.changed:
		case <-tick.C:
		case <-w.quit:
			return
		}
		w.compare(time.Now(), w.look())
	}
}

func (w *watcher) stop() {
	close(w.quit)
	<-w.left
}

// compare tells what is otherwise than at the last look.
func (w *watcher) compare(now time.Time, is condition) {
	h := &is.hydration
	if h.Failures > w.was.hydration.Failures && h.LastError != nil {
		side, _ := sideOf(h.LastError)
		w.events.deviceError(now, side, h.LastErrorAt, h.LastError)
	}
	if is.mode != w.was.mode || is.flushLost != w.was.flushLost {
		w.events.add(eventMode, modeText(is))
	}
	w.compareStalled(&is)
	if is.complete && !w.was.complete {
		w.events.add(eventHydrated, "everything is in the destination and durable")
		w.hydrated()
	}
	w.was = is
}

// compareStalled: a region that is tried again is no end of a stall; one ends when nothing is known to fail.
func (w *watcher) compareStalled(is *condition) {
	h := &is.hydration
	stalls := h.State == hydrate.Stalled || is.away != nil
	switch {
	case stalls && !w.stalled:
		w.stalled = true
		w.events.add(eventStalled, stalledReason(is.away, *h))
	case !stalls && w.stalled && len(h.Bad) == 0:
		w.stalled = false
		w.events.add(eventResumed, "what had failed is copied, or about to be")
	}
}

func modeText(is condition) string {
	text := fmt.Sprintf("the mode of the metadata is %s", is.mode)
	if is.flushLost {
		text += ": a flush of the destination failed"
	}
	return text
}
