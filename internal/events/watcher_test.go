package events

import (
	"errors"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/testkit"
)

func TestWatcher(t *testing.T) {
	broken := errors.New("Input/output error")
	failing := func(state hydrate.State, failures uint64, bad ...hydrate.BadRange) Condition {
		return Condition{Hydration: hydrate.Status{State: state, Failures: failures, Bad: bad, LastError: broken, LastErrorAt: 4096}}
	}
	bad := hydrate.BadRange{First: 1, End: 2, Attempts: 1}
	hydrated := 0
	l := NewLog("c", zerolog.Nop())
	w := NewWatcher(l, nil, func() { hydrated++ })
	w.Was = Condition{Hydration: hydrate.Status{State: hydrate.Hydrating}}
	now := time.Unix(1000, 0)
	for _, step := range []struct {
		what  string
		after time.Duration
		is    Condition
		want  string
	}{
		{"nothing", time.Second, Condition{Hydration: hydrate.Status{State: hydrate.Yielding}}, ""},
		{"first failure", time.Second, failing(hydrate.Hydrating, 1, bad), control.EventSourceError},
		{"one more of the burst", time.Second, failing(hydrate.Hydrating, 5, bad), ""},
		{"nothing else left", time.Second, failing(hydrate.Stalled, 5, bad), control.EventStalled},
		{"tried again", time.Second, failing(hydrate.Hydrating, 5, bad), ""},
		{"failed again", time.Second, failing(hydrate.Stalled, 6, bad), ""},
		{"another burst", control.BurstGap, failing(hydrate.Stalled, 7, bad), control.EventSourceError},
		{"repaired", time.Second, failing(hydrate.Hydrating, 7), control.EventResumed},
		{"stalled anew", time.Second, failing(hydrate.Stalled, 8, bad), control.EventStalled},
		{"the source is away", time.Second, Condition{Away: broken, Hydration: hydrate.Status{State: hydrate.Paused, Failures: 8}}, ""},
		{"it has come back", time.Second, Condition{Hydration: hydrate.Status{State: hydrate.Paused, Failures: 8}}, control.EventResumed},
		{"away again", time.Second, Condition{Away: broken, Hydration: hydrate.Status{State: hydrate.Hydrating, Failures: 8}}, control.EventStalled},
		{"still away", time.Second, Condition{Away: broken, Hydration: hydrate.Status{State: hydrate.Stalled, Failures: 8}}, ""},
		{"complete", time.Second, Condition{Complete: true, Hydration: hydrate.Status{State: hydrate.Done, Failures: 8}}, control.EventResumed + " " + control.EventHydrated},
		{"still complete", time.Second, Condition{Complete: true, Hydration: hydrate.Status{State: hydrate.Done, Failures: 8}}, ""},
		{"metadata lost", time.Second, Condition{Complete: true, Mode: clone.ReadOnly, Hydration: hydrate.Status{State: hydrate.Done}}, control.EventMode},
		{"destination lost", time.Second, Condition{Complete: true, Mode: clone.ReadOnly, FlushLost: true, Hydration: hydrate.Status{State: hydrate.Done}}, control.EventMode},
	} {
		_, before, _ := l.since(0)
		now = now.Add(step.after)
		w.compare(now, step.is)
		if got, _, _ := l.since(before); testkit.KindsOf(got) != step.want {
			t.Errorf("%s: %q, want %q", step.what, testkit.KindsOf(got), step.want)
		}
	}
	if hydrated != 1 {
		t.Errorf("told %d times that all is hydrated", hydrated)
	}
}
