package events

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
)

// Log keeps the last events of a clone. Any thread may add one: it takes a leaf lock for a moment.
type Log struct {
	clone string
	log   zerolog.Logger // never blocks
	Polls chan struct{}  // a place for each who waits

	mu struct {
		sync.Mutex
		last uint64
		kept []control.Event
		more chan struct{} // closed by the next event
		// error is when each side has failed last.
		error [blockdev.Dest + 1]time.Time
		live  *livemap.Map // keeps last over the daemon's death
	}
}

func NewLog(clone string, log zerolog.Logger) *Log {
	l := &Log{clone: clone, log: log, Polls: make(chan struct{}, control.MaxPolls)}
	l.mu.more = make(chan struct{})
	return l
}

// Add notes an event and tells whoever waits.
func (l *Log) Add(kind, text string) {
	l.mu.Lock()
	l.mu.last++
	ev := control.Event{Seq: l.mu.last, Time: time.Now().UTC(), Clone: l.clone, Kind: kind, Text: text}
	l.mu.kept = append(l.mu.kept[max(0, len(l.mu.kept)-control.KeptEvents+1):], ev)
	close(l.mu.more)
	l.mu.more = make(chan struct{})
	if l.mu.live != nil {
		l.mu.live.SetEvents(ev.Seq)
	}
	l.mu.Unlock()
	l.log.Info().Uint64("seq", ev.Seq).Str("event", kind).Msg(text)
}

// KeepIn goes on from the number that a dead daemon has left in the live map, and keeps it there;
// nil: the map is about to go.
func (l *Log) KeepIn(live *livemap.Map) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.live = live
	if live != nil {
		l.mu.last = max(l.mu.last, live.Events())
	}
}

// DeviceError notes an error of a side at byte off, unless it belongs to a burst that was noted.
func (l *Log) DeviceError(now time.Time, side blockdev.Role, off int64, err error) {
	kind := control.EventSourceError
	if side == blockdev.Dest {
		kind = control.EventDestError
	}
	l.mu.Lock()
	first := now.Sub(l.mu.error[side]) >= control.BurstGap
	l.mu.error[side] = now
	l.mu.Unlock()
	if first {
		l.Add(kind, fmt.Sprintf("an error at byte %d: %v", off, err))
	}
}

// since gives the kept events behind number seq, the last number, and what is closed by the next
// one. A number that is yet to come is of a former daemon: all that is kept is new then.
func (l *Log) since(seq uint64) (events []control.Event, last uint64, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq > l.mu.last {
		seq = 0
	}
	missing := min(l.mu.last-seq, uint64(len(l.mu.kept)))
	return append(events, l.mu.kept[uint64(len(l.mu.kept))-missing:]...), l.mu.last, l.mu.more
}

// Answer gives the events behind after; if there are none it waits for one, at most wait. Without
// after it tells the last number at once.
func (l *Log) Answer(ctx context.Context, after *uint64, wait time.Duration) control.Answer {
	if after == nil {
		return control.Answer{Last: l.LastSeq()}
	}
	events, last, more := l.since(*after)
	if len(events) == 0 && l.await(ctx, more, wait) {
		events, last, _ = l.since(*after)
	}
	return control.Answer{Events: events, Last: last}
}

// await says whether more was closed within wait. It does not wait where too many do already.
func (l *Log) await(ctx context.Context, more <-chan struct{}, wait time.Duration) bool {
	select {
	case l.Polls <- struct{}{}:
	default:
		return false
	}
	defer func() { <-l.Polls }()
	timer := time.NewTimer(min(wait, control.PollLimit))
	defer timer.Stop()
	select {
	case <-more:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

func (l *Log) LastSeq() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.last
}
