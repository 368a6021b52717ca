package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// fakeEngine keeps what it is asked to change.
type fakeEngine struct {
	warned  bool
	changes []change
	retries int
	asked   int // for the status
	log     *eventLog
	waiting error // what waits gives
	path    string
	busy    error // what tryStop and handOver give

	drained    int   // calls of drain
	hangs      error // what drain gives
	unfit      error // what mayReplace gives
	unfinished error // what finishable gives
	handed     int   // calls of handOver
	finished   bool
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{log: newEventLog("c", zerolog.Nop()), path: "/dev/ublkb7"}
}

func (e *fakeEngine) opens() []step                       { return nil }
func (e *fakeEngine) mark() uint64                        { return 0 }
func (e *fakeEngine) steps() []step                       { return nil }
func (e *fakeEngine) top() []step                         { return nil }
func (e *fakeEngine) device() string                      { return e.path }
func (e *fakeEngine) note(*definition)                    {}
func (e *fakeEngine) farewell() []string                  { return nil }
func (e *fakeEngine) tryStop(context.Context, bool) error { return e.busy }
func (e *fakeEngine) status(*cloneStatus)                 { e.asked++ }
func (e *fakeEngine) configure(_ context.Context, c change) error {
	e.changes = append(e.changes, c)
	return nil
}
func (e *fakeEngine) events() *eventLog                             { return e.log }
func (e *fakeEngine) repair(context.Context) error                  { return nil }
func (e *fakeEngine) retry(context.Context) error                   { e.retries++; return nil }
func (e *fakeEngine) finishable() error                             { return e.unfinished }
func (e *fakeEngine) handOver(context.Context, time.Duration) error { e.handed++; return e.busy }
func (e *fakeEngine) finish(bool)                                   { e.finished = true }
func (e *fakeEngine) keepDevice(bool)                               {}
func (e *fakeEngine) warmUp() error                                 { return nil }
func (e *fakeEngine) warn(string, ...any)                           { e.warned = true }
func (e *fakeEngine) answers() bool                                 { return true }
func (e *fakeEngine) waits() error                                  { return e.waiting }

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

// FuzzControl gives a daemon a line. It never panics, the answer is one line that a command can read, and the
// connection is closed behind it. What is answered with an error has changed nothing, and no other change is
// made than one that the settings allow.
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
		d := newDaemon("", start{Definition: definition{Name: "c"}}, e, zerolog.Nop())
		d.enter(phaseUp)
		go func() { // the daemon's own goroutine: somebody has the device open
			for r := range d.stops {
				r.reply <- notFree
			}
		}()
		defer close(d.stops)
		conn := &wire{in: bytes.NewReader(line)}
		(&server{log: zerolog.Nop(), answer: d.answer, limit: time.Hour}).converse(conn)

		var ans answer
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

var notFree = heldError("/dev/ublkb7", nil)

// possible says whether a change is one that `set`, pause and resume make.
func possible(c change) bool {
	return c != (change{}) && between(c.Rate, 0, math.MaxInt64) && between(c.MinRate, 0, math.MaxInt64) &&
		between(c.Threshold, 0, math.MaxUint32) && between(c.Batch, 1, math.MaxUint32) && between(c.Retries, 1, maxRetries)
}

func between[T int64 | uint64 | uint32](v *T, least, most T) bool {
	return v == nil || least <= *v && *v <= most
}

// FuzzMessage: what is taken is dm-clone's, is a possible change, and passes the daemon's own check.
func FuzzMessage(f *testing.F) {
	for _, text := range []string{"0 enable_hydration", "hydration_threshold 256", "HYDRATION_batch_size 1", "hydration_batch_size 0", "0", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseMessage(strings.Fields(text))
		if err != nil {
			if len(err.Error()) > 8*len(text)+200 {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if c := m.change(); !possible(c) || m.check() != nil {
			t.Errorf("%q makes the change %v, %v", text, &c, m.check())
		}
		b, err := json.Marshal(m)
		var again message
		if err != nil || decodeKnown(b, &again) != nil || again != m {
			t.Errorf("%q: %+v travels as %s", text, m, b)
		}
	})
}
