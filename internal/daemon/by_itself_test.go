package daemon

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// newSelfFinisher is a daemon whose clone is complete, with a definition in /etc.
func newSelfFinisher(t *testing.T, dm string) (*daemon, *fakeEngine) {
	e := newFakeEngine()
	e.shown.Store(&control.Status{Condition: control.Condition{State: control.StateHydrated}, Settings: definition.Settings{FinishAuto: true}})
	defined := etc.Dir(t.TempDir())
	if err := os.WriteFile(defined.Path("c"), []byte("dm = \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := New(control.Dir(t.TempDir()), definition.Start{Definition: definition.Definition{Name: "c", DM: dm, Dest: "/nowhere/d"}}, e, zerolog.Nop())
	d.byItself.defined = defined
	d.life.enter(phaseUp)
	return d, e
}

// TestFinishByItself: only a clone that is complete, has a layer and is told so finishes by itself,
// and not while somebody changes it.
func TestFinishByItself(t *testing.T) {
	for _, c := range []struct {
		name, dm string
		change   func(*daemon, *control.Status)
		waits    string // "": it finishes
	}{
		{name: "complete", dm: "x"},
		{name: "manual", dm: "x", change: func(_ *daemon, st *control.Status) { st.Settings.FinishAuto = false }, waits: "-"},
		{name: "without layer", waits: "--dm"},
		{name: "incomplete", dm: "x", change: func(_ *daemon, st *control.Status) { st.Regions.Total = 1 }, waits: "hydrated"},
		{name: "a change under way", dm: "x", change: func(d *daemon, _ *control.Status) { d.life.places <- struct{}{} }, waits: "a second"},
	} {
		d, e := newSelfFinisher(t, c.dm)
		e.handing = func() { // from here on a power cut must find no definition
			if !d.byItself.defined.Finished("c") {
				t.Errorf("%s: the definition is there when the clone is handed over", c.name)
			}
		}
		st := *e.shown.Load()
		if c.change != nil {
			c.change(d, &st)
		}
		e.shown.Store(&st)
		if got := d.byItself.finish(); got != (c.waits == "") || e.finished != got || e.handed > 1 {
			t.Errorf("%s: it finishes: %t, %d times handed over", c.name, got, e.handed)
		}
		if e.finished {
			continue
		}
		shown := d.status(phaseUp)
		if c.waits == "-" && shown.FinishWaits != "" || c.waits != "-" && !strings.Contains(shown.FinishWaits, c.waits) {
			t.Errorf("%s: it waits for %q", c.name, shown.FinishWaits)
		}
	}
}

// TestFinishByItselfLater: what fails leaves the clone and its definition as they were, is told
// once for each reason, and is tried again, less and less often; users wait longer if that is why it
// failed.
func TestFinishByItselfLater(t *testing.T) {
	d, e := newSelfFinisher(t, "x")
	d.byItself.soon()
	late := &exit.Error{Code: exit.Timeout, Doing: "suspend", Object: "x", Cause: errors.New("too late"), Next: "Wait."}
	for i, c := range []struct {
		err    error
		events uint64
		pause  time.Duration
		hold   time.Duration
	}{
		{late, 1, 2 * time.Second, 2 * firstHold}, {late, 1, 4 * time.Second, 4 * firstHold},
		{&exit.Error{Code: exit.Busy, Doing: "hand over"}, 2, 8 * time.Second, 4 * firstHold}, {late, 3, 16 * time.Second, 8 * firstHold},
		{late, 3, 32 * time.Second, 16 * firstHold}, {late, 3, itselfPauses, longestHold}, {late, 3, itselfPauses, longestHold},
	} {
		e.busy = c.err
		if d.byItself.finish() {
			t.Fatal("it has finished")
		}
		if got := e.log.LastSeq(); got != c.events || d.byItself.pause != c.pause || d.byItself.hold != c.hold {
			t.Errorf("try %d: %d events, the next pause is %s, users wait for %s", i, got, d.byItself.pause, d.byItself.hold)
		}
		if _, err := os.Stat(d.byItself.defined.Path("c")); err != nil || d.life.mu.phase != phaseUp {
			t.Fatalf("try %d: phase %d, definition: %v", i, d.life.mu.phase, err)
		}
	}
	if st := d.status(phaseUp); !strings.Contains(st.FinishWaits, "too late") || st.Action != "Wait." {
		t.Errorf("status: %q, %q", st.FinishWaits, st.Action)
	}
	d.byItself.soon()
	if st := d.status(phaseUp); strings.Contains(st.FinishWaits, "too late") || d.byItself.hold != firstHold {
		t.Errorf("after a change: %q, users wait for %s", st.FinishWaits, d.byItself.hold)
	}
	d.byItself.defined = etc.Dir(d.byItself.defined.Path("c")) // a file, where a directory is to be
	handed := e.handed
	if d.byItself.finish() || e.handed != handed {
		t.Error("it goes on though the definition cannot be taken away")
	}
}

// TestFinishDue: a daemon that is told that all is hydrated finishes, and ends.
func TestFinishDue(t *testing.T) {
	d, e := newSelfFinisher(t, "x")
	complete := *e.shown.Load()
	begun := complete
	begun.Regions.Total = 1
	e.shown.Store(&begun)
	ended := make(chan error, 1)
	go func() { ended <- d.live(make(chan os.Signal, 1)) }()
	time.Sleep(3 * itselfSoon / 2)
	if e.handed != 0 {
		t.Error("it was handed over before it was complete")
	}
	e.shown.Store(&complete)
	e.due <- struct{}{}
	select {
	case err := <-ended:
		if err != nil || !e.finished {
			t.Errorf("it ends with %v, finished: %t", err, e.finished)
		}
	case <-time.After(time.Minute):
		t.Fatal("it does not finish")
	}
}
