package events

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
)

// StalledReason: away is why there is no source, if so.
func StalledReason(away error, h hydrate.Status) string {
	const unreadable = "What is hydrated is served, and whole regions can be written; reads of others fail."
	switch {
	case dataplane.IsRenamed(away):
		return fmt.Sprintf("Hydration waits for `ublk-clone resume`: %v. Reads are served.", away)
	case errors.Is(away, blockdev.ErrChanged):
		return fmt.Sprintf("The source is not read any more: %v. %s", away, unreadable)
	case errors.Is(away, syscall.ETIMEDOUT):
		return fmt.Sprintf("The source does not answer: %v. %s", away, unreadable)
	case away != nil:
		return fmt.Sprintf("There is no source: %v. %s", away, unreadable)
	}
	text := fmt.Sprintf("%d copies failed, the last at byte %d: %v. ", h.Failures, h.LastErrorAt, h.LastError)
	if side, ok := dataplane.SideOf(h.LastError); ok && side == blockdev.Dest {
		return text + "What could not be copied is read from the source; writes to it may fail."
	}
	return text + "What is hydrated is served; reads of what could not be copied fail."
}

// Condition is what events tell the changes of.
type Condition struct {
	Mode      clone.Mode
	FlushLost bool
	Complete  bool
	Hydration hydrate.Status
	Away      error // why there is no source, if one is needed
}

// Watcher turns changes of the clone's condition into events: core and hydrator only tell that
// something has changed, on threads that must not wait. It is a goroutine of its own and may block.
type Watcher struct {
	events *Log
	look   func() Condition
	// hydrated is called once when all is durably hydrated.
	hydrated func()

	Was     Condition
	stalled bool // and told so

	changed chan struct{}
	quit    chan struct{}
	left    chan struct{}
}

func NewWatcher(events *Log, look func() Condition, hydrated func()) *Watcher {
	return &Watcher{
		events: events, look: look, hydrated: hydrated,
		changed: make(chan struct{}, 1), quit: make(chan struct{}), left: make(chan struct{}),
	}
}

// Kick says that something may have changed. It never blocks.
func (w *Watcher) Kick() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// watchPause is how often it is looked besides: failed copies alone change no state.
const watchPause = time.Second

func (w *Watcher) Run() {
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

func (w *Watcher) Stop() {
	close(w.quit)
	<-w.left
}

// compare tells what is otherwise than at the last look.
func (w *Watcher) compare(now time.Time, is Condition) {
	h := &is.Hydration
	if h.Failures > w.Was.Hydration.Failures && h.LastError != nil {
		side, _ := dataplane.SideOf(h.LastError)
		w.events.DeviceError(now, side, h.LastErrorAt, h.LastError)
	}
	if is.Mode != w.Was.Mode || is.FlushLost != w.Was.FlushLost {
		w.events.Add(control.EventMode, ModeText(is))
	}
	w.compareStalled(&is)
	if is.Complete && !w.Was.Complete {
		w.events.Add(control.EventHydrated, "everything is in the destination and durable")
		w.hydrated()
	}
	w.Was = is
}

// compareStalled: a region that is tried again is no end of a stall; one ends when nothing is known
// to fail.
func (w *Watcher) compareStalled(is *Condition) {
	h := &is.Hydration
	stalls := h.State == hydrate.Stalled || is.Away != nil
	switch {
	case stalls && !w.stalled:
		w.stalled = true
		w.events.Add(control.EventStalled, StalledReason(is.Away, *h))
	case !stalls && w.stalled && len(h.Bad) == 0:
		w.stalled = false
		w.events.Add(control.EventResumed, "what had failed is copied, or about to be")
	}
}

func ModeText(is Condition) string {
	text := fmt.Sprintf("the mode of the metadata is %s", is.Mode)
	if is.FlushLost {
		text += ": a flush of the destination failed"
	}
	return text
}
