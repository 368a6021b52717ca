package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
)

func TestEventLogKeepsTheLast(t *testing.T) {
	var log bytes.Buffer
	l := newEventLog("c", zerolog.New(&log))
	if ans := l.answer(t.Context(), nil, 0); ans.Last != 0 || len(ans.Events) != 0 {
		t.Errorf("nothing has happened: %+v", ans)
	}
	for range keptEvents + 10 {
		l.add(eventSettings, "text")
	}
	kept, last, _ := l.since(0)
	if len(kept) != keptEvents || kept[0].Seq != 11 || last != keptEvents+10 || kept[keptEvents-1].Seq != last {
		t.Errorf("%d kept kept, from %d to %d", len(kept), kept[0].Seq, last)
	}
	for seq, want := range map[uint64]int{last: 0, last - 1: 1, last - 3: 3, 10: keptEvents, last + 1: keptEvents} {
		if kept, _, _ := l.since(seq); len(kept) != want {
			t.Errorf("behind %d of %d: %d kept, want %d", seq, last, len(kept), want)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != keptEvents+10 {
		t.Errorf("%d lines in the log", n)
	}
}

// TestEventNumbersOutliveTheDaemon: who waits behind a number misses nothing of the next daemon.
func TestEventNumbersOutliveTheDaemon(t *testing.T) {
	live, err := livemap.Create(t.TempDir(), livemap.Identity{Regions: 1}, livemap.State{})
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	first := newEventLog("c", zerolog.Nop())
	first.keepIn(live)
	first.add(eventStarted, "")
	first.add(eventSettings, "")
	next := newEventLog("c", zerolog.Nop())
	seen := uint64(1)
	if ans := next.answer(t.Context(), &seen, 0); len(ans.Events) != 0 { // asked before the map is there
		t.Errorf("nothing has happened: %+v", ans)
	}
	next.keepIn(live)
	next.add(eventStarted, "")
	for _, seen := range []uint64{1, 2} {
		if ans := next.answer(t.Context(), &seen, 0); len(ans.Events) != 1 || ans.Events[0].Seq != 3 || ans.Last != 3 {
			t.Errorf("behind %d: %+v", seen, ans)
		}
	}
	next.keepIn(nil)
	next.add(eventSettings, "")
	if live.Events() != 3 {
		t.Errorf("the map was written after it was given up: %d", live.Events())
	}
}

func TestEventLogWaits(t *testing.T) {
	l := newEventLog("c", zerolog.Nop())
	zero := uint64(0)
	if ans := l.answer(t.Context(), &zero, time.Millisecond); len(ans.Events) != 0 {
		t.Errorf("nothing has happened: %+v", ans)
	}
	var waiting sync.WaitGroup
	for range maxPolls {
		waiting.Go(func() {
			if ans := l.answer(t.Context(), &zero, time.Minute); kindsOf(ans.Events) != eventMode || ans.Last != 1 {
				t.Errorf("waited for %+v", ans)
			}
		})
	}
	for len(l.polls) < maxPolls {
		time.Sleep(time.Millisecond) // they are goroutines that nothing tells of
	}
	if ans := l.answer(t.Context(), &zero, time.Minute); len(ans.Events) != 0 { // at once: too many wait
		t.Errorf("one too many: %+v", ans)
	}
	l.add(eventMode, "text")
	waiting.Wait()
}

func TestWatcher(t *testing.T) {
	broken := errors.New("Input/output error")
	failing := func(state hydrate.State, failures uint64, bad ...hydrate.BadRange) condition {
		return condition{hydration: hydrate.Status{State: state, Failures: failures, Bad: bad, LastError: broken, LastErrorAt: 4096}}
	}
	bad := hydrate.BadRange{First: 1, End: 2, Attempts: 1}
	hydrated := 0
	l := newEventLog("c", zerolog.Nop())
	w := newWatcher(l, nil, func() { hydrated++ })
	w.was = condition{hydration: hydrate.Status{State: hydrate.Hydrating}}
	now := time.Unix(1000, 0)
	for _, step := range []struct {
		what  string
		after time.Duration
		is    condition
		want  string
	}{
		{"nothing", time.Second, condition{hydration: hydrate.Status{State: hydrate.Yielding}}, ""},
		{"first failure", time.Second, failing(hydrate.Hydrating, 1, bad), eventSourceError},
		{"one more of the burst", time.Second, failing(hydrate.Hydrating, 5, bad), ""},
		{"nothing else left", time.Second, failing(hydrate.Stalled, 5, bad), eventStalled},
		{"tried again", time.Second, failing(hydrate.Hydrating, 5, bad), ""},
		{"failed again", time.Second, failing(hydrate.Stalled, 6, bad), ""},
		{"another burst", burstGap, failing(hydrate.Stalled, 7, bad), eventSourceError},
		{"repaired", time.Second, failing(hydrate.Hydrating, 7), eventResumed},
		{"stalled anew", time.Second, failing(hydrate.Stalled, 8, bad), eventStalled},
		{"the source is away", time.Second, condition{away: broken, hydration: hydrate.Status{State: hydrate.Paused, Failures: 8}}, ""},
		{"it has come back", time.Second, condition{hydration: hydrate.Status{State: hydrate.Paused, Failures: 8}}, eventResumed},
		{"away again", time.Second, condition{away: broken, hydration: hydrate.Status{State: hydrate.Hydrating, Failures: 8}}, eventStalled},
		{"still away", time.Second, condition{away: broken, hydration: hydrate.Status{State: hydrate.Stalled, Failures: 8}}, ""},
		{"complete", time.Second, condition{complete: true, hydration: hydrate.Status{State: hydrate.Done, Failures: 8}}, eventResumed + " " + eventHydrated},
		{"still complete", time.Second, condition{complete: true, hydration: hydrate.Status{State: hydrate.Done, Failures: 8}}, ""},
		{"metadata lost", time.Second, condition{complete: true, mode: clone.ReadOnly, hydration: hydrate.Status{State: hydrate.Done}}, eventMode},
		{"destination lost", time.Second, condition{complete: true, mode: clone.ReadOnly, flushLost: true, hydration: hydrate.Status{State: hydrate.Done}}, eventMode},
	} {
		_, before, _ := l.since(0)
		now = now.Add(step.after)
		w.compare(now, step.is)
		if got, _, _ := l.since(before); kindsOf(got) != step.want {
			t.Errorf("%s: %q, want %q", step.what, kindsOf(got), step.want)
		}
	}
	if hydrated != 1 {
		t.Errorf("told %d times that all is hydrated", hydrated)
	}
}

// eventServer answers as a daemon does that has only events.
func eventServer(t *testing.T) (*program, *eventLog, *bytes.Buffer) {
	t.Helper()
	l := newEventLog("c", zerolog.Nop())
	dir := serveRequests(t, func(ctx context.Context, req request) answer {
		return l.answer(ctx, req.After, time.Duration(req.WaitMS)*time.Millisecond)
	})
	out := &bytes.Buffer{}
	return &program{out: out, errs: out, dir: dir}, l, out
}

func TestWaitForEvent(t *testing.T) {
	p, l, out := eventServer(t)
	if code := p.run(strings.Fields("ublk-clone wait c --for event --timeout 1ms")); code != exit.Timeout {
		t.Errorf("nothing happens: exit code %d: %s", code, out)
	}
	l.add(eventStalled, "the source is away")
	l.add(eventResumed, "again")
	out.Reset()
	if code := p.run(strings.Fields("ublk-clone wait c --for event --after 1")); code != 0 || !strings.HasSuffix(out.String(), "  c  resumed  again\n") {
		t.Errorf("exit code %d: %s", code, out)
	}
	out.Reset()
	code := p.run(strings.Fields("ublk-clone wait c --for event --after 0 -o json"))
	var got struct {
		Schema, Clone, Kind, Text string
		Seq                       uint64
		Time                      time.Time
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || code != 0 || got.Schema != schema || got.Clone != "c" || got.Seq != 1 || got.Kind != eventStalled || got.Time.IsZero() {
		t.Errorf("exit code %d: %s (%v)", code, out, err)
	}
}

// A follower sees every event once and in order, also those that come while it prints.
func TestFollow(t *testing.T) {
	p, l, _ := eventServer(t)
	const n = 20
	l.add(eventStarted, "first")
	var seen []uint64
	err := p.dir.follow(t.Context(), "c", new(uint64), func(ev event) error {
		seen = append(seen, ev.Seq)
		if ev.Seq == n {
			return errSeen
		}
		l.add(eventSettings, "next")
		return nil
	})
	if !errors.Is(err, errSeen) || len(seen) != n || seen[0] != 1 || seen[n-1] != n {
		t.Errorf("followed %v, %v", seen, err)
	}
}

// A clone that is deleted ends its followers in order, one whose daemon dies does not.
func TestFollowUntilDeleted(t *testing.T) {
	for _, deleted := range []bool{true, false} {
		var dir runDir
		dir = serveRequests(t, func(context.Context, request) answer { // the last answer
			err := os.Remove(dir.socket("c"))
			if deleted {
				err = errors.Join(err, os.Remove(dir.definition("c")))
			}
			return answer{Last: 1, Error: toWire(err)}
		})
		p := &program{dir: dir}
		want := exit.NoAnswer
		if deleted {
			want = exit.NoClone
		}
		after := uint64(1)
		if err := p.dir.follow(t.Context(), "c", &after, nil); exit.Code(err) != want || errors.Is(err, errDeleted) != deleted {
			t.Errorf("deleted %v: follow: %v", deleted, err)
		}
	}
}

// `events` shows those of every clone whose daemon lives, until it is interrupted.
func TestFollowAll(t *testing.T) {
	p, l, _ := eventServer(t)
	lock, err := p.dir.acquire("c") // as its daemon does
	if err != nil {
		t.Fatal(err)
	}
	defer lock.release()
	ctx, interrupt := context.WithCancel(t.Context())
	tell := func() { l.add(eventMode, "text") }
	asked := time.AfterFunc(0, func() {
		for len(l.polls) == 0 { // until it follows
			time.Sleep(time.Millisecond)
		}
		tell()
	})
	defer asked.Stop()
	var seen []event
	err = p.dir.followAll(ctx, func(ev event) error {
		seen = append(seen, ev)
		interrupt()
		return nil
	})
	if !errors.Is(err, context.Canceled) || kindsOf(seen) != eventMode {
		t.Errorf("followed %v, %v", seen, err)
	}
}
