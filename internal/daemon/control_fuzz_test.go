package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/holders"
	"github.com/ublk-clone/ublk-clone/internal/steps"
)

// fakeEngine keeps what it is asked to change.
type fakeEngine struct {
	warned  bool
	changes []definition.Change
	retries int
	asked   int // for the status
	log     *events.Log
	waiting error // what waits gives
	path    string
	busy    error // what TryStop and HandOver give

	drained    int   // calls of drain
	former     int   // those for a daemon of the previous release
	hangs      error // what drain gives
	unfit      error // what MayReplace gives
	unfinished error // what finishable gives
	handed     int   // calls of HandOver
	handing    func()
	finished   bool
	due        chan struct{}
	shown      atomic.Pointer[control.Status] // what Status gives
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{log: events.NewLog("c", zerolog.Nop()), path: "/dev/ublkb7", due: make(chan struct{}, 1)}
}

func (e *fakeEngine) Opens() []steps.Step                 { return nil }
func (e *fakeEngine) Cookie() uint64                      { return 0 }
func (e *fakeEngine) Steps() []steps.Step                 { return nil }
func (e *fakeEngine) LayerSteps() []steps.Step            { return nil }
func (e *fakeEngine) Device() string                      { return e.path }
func (e *fakeEngine) FillIn(*definition.Definition)       {}
func (e *fakeEngine) Farewell() []string                  { return nil }
func (e *fakeEngine) TryStop(context.Context, bool) error { return e.busy }
func (e *fakeEngine) FinishDue() <-chan struct{}          { return e.due }
func (e *fakeEngine) Status(st *control.Status) {
	e.asked++
	if shown := e.shown.Load(); shown != nil {
		st.Settings, st.Regions, st.State = shown.Settings, shown.Regions, shown.State
	}
}
func (e *fakeEngine) Configure(_ context.Context, c definition.Change) error {
	e.changes = append(e.changes, c)
	return nil
}
func (e *fakeEngine) Events() *events.Log          { return e.log }
func (e *fakeEngine) Repair(context.Context) error { return nil }
func (e *fakeEngine) Retry(context.Context) error  { e.retries++; return nil }
func (e *fakeEngine) Finishable() error            { return e.unfinished }
func (e *fakeEngine) HandOver(context.Context, time.Duration) error {
	if e.handed++; e.handing != nil {
		e.handing()
	}
	return e.busy
}
func (e *fakeEngine) Finish(bool)         { e.finished = true }
func (e *fakeEngine) KeepDevice(bool)     {}
func (e *fakeEngine) WarmUp() error       { return nil }
func (e *fakeEngine) Warn(string, ...any) { e.warned = true }
func (e *fakeEngine) Answers() bool       { return true }
func (e *fakeEngine) Waits() error        { return e.waiting }

// wire is a connection that has said all that it will.
type wire struct {
	net.Conn
	in     io.Reader
	out    bytes.Buffer
	closed bool
}

func (w *wire) Read(b []byte) (int, error)       { return w.in.Read(b) }
func (w *wire) Write(b []byte) (int, error)      { return w.out.Write(b) }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }
func (w *wire) Close() error                     { w.closed = true; return nil }

// FuzzControl gives a daemon a line. It never panics, the answer is one line that a command can
// read, and the connection is closed behind it. What is answered with an error has changed nothing,
// and no other change is made than one that the settings allow.
func FuzzControl(f *testing.F) {
	for _, line := range []string{
		`{"verb":"status"}`, `{"verb":"pause"}`, `{"verb":"resume"}`, `{"verb":"stop","wait_ms":-1}`, `{"verb":"finish","keep":true}`, `{"verb":"stop","keep":true}`, `{"verb":"events","after":3}`,
		`{"verb":"message","message":{"word":"hydration_batch_size","regions":0}}`, `{"verb":"message","message":{"word":"x"}}`,
		`{"verb":"message","message":{"word":"hydration_threshold","regions":4294967296}}`, `{"verb":"message","message":null}`,
		`{"verb":"set","change":{"rate":-1}}`, `{"verb":"set","change":{"retries":0}}`, `{"verb":"set","change":{}}`,
		`{"verb":"set","change":{"rate":50,"read_through":false},"after":1}`, `{"verb":"set"}`, `{"verb":"status","force":1}`,
		`{"verb":"set","change":{"hydration":true,"hydration_batch_size":0}}`, `[]`, `{`, ``,
	} {
		f.Add([]byte(line + "\n"))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e := newFakeEngine()
		d := New("", definition.Start{Definition: definition.Definition{Name: "c"}}, e, zerolog.Nop())
		d.life.enter(phaseUp)
		go func() { // the daemon's own goroutine: somebody has the device open
			for r := range d.stops {
				r.reply <- notFree
			}
		}()
		defer close(d.stops)
		conn := &wire{in: bytes.NewReader(line)}
		(&control.Server{Log: zerolog.Nop(), Answer: d.answer, Limit: time.Hour}).Converse(conn)

		var ans control.Answer
		text, rest, _ := strings.Cut(conn.out.String(), "\n")
		if err := json.Unmarshal([]byte(text), &ans); err != nil || rest != "" || !conn.closed {
			t.Fatalf("%q is answered with %q, closed: %t: %v", line, conn.out.String(), conn.closed, err)
		}
		if ans.Error != nil && (len(e.changes) > 0 || e.retries > 0) {
			t.Errorf("%q is refused, %+v, and has changed %+v", line, ans.Error, e.changes)
		}
		for _, c := range e.changes {
			if !possible(c) {
				t.Errorf("%q has changed the settings to %v", line, &c)
			}
		}
	})
}

var notFree = holders.Busy("/dev/ublkb7", nil)

// possible says whether a change is one that `set`, pause and resume make.
func possible(c definition.Change) bool {
	return c != (definition.Change{}) && between(c.Rate, 0, math.MaxInt64) && between(c.MinRate, 0, math.MaxInt64) &&
		between(c.Threshold, 0, math.MaxUint32) && between(c.Batch, 1, math.MaxUint32) && between(c.Retries, 1, definition.MaxRetries)
}

func between[T int64 | uint64 | uint32](v *T, least, most T) bool {
	return v == nil || least <= *v && *v <= most
}

// FuzzMessage: what is taken is dm-clone's, is a possible change, and passes the daemon's own
// check.
func FuzzMessage(f *testing.F) {
	for _, text := range []string{"0 enable_hydration", "hydration_threshold 256", "HYDRATION_batch_size 1", "hydration_batch_size 0", "0", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := definition.ParseMessage(strings.Fields(text))
		if err != nil {
			if len(err.Error()) > 8*len(text)+200 {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if c := m.Change(); !possible(c) || m.Check() != nil {
			t.Errorf("%q makes the change %v, %v", text, &c, m.Check())
		}
		b, err := json.Marshal(m)
		var again definition.Message
		if err != nil || control.DecodeKnown(b, &again) != nil || again != m {
			t.Errorf("%q: %+v travels as %s", text, m, b)
		}
	})
}
