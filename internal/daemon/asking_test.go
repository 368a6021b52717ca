package daemon

import (
	"context"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/testkit"
)

// TestStopEndsWithItsClient: a stop that waits for users is not carried out when its client has
// gone, or too late.
func TestStopEndsWithItsClient(t *testing.T) {
	for what, leave := range map[string]func(*net.UnixConn){
		"hung up":     func(conn *net.UnixConn) { conn.Close() },
		"late":        func(*net.UnixConn) {}, // it stays, as a process that was stopped does
		"half closed": func(conn *net.UnixConn) { _ = conn.CloseWrite(); time.Sleep(5 * control.HangUpPause); conn.Close() },
	} {
		for _, verb := range []string{control.VerbStop, control.VerbFinish} {
			e, d, dir := liveDaemon(t)
			e.busy.Store(true)
			conn := testkit.SendRequest(t, dir, control.Request{Verb: verb, WaitMS: 3600_000, LimitMS: 1000})
			for e.tries.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			leave(conn)
			for len(d.stopping) > 0 {
				time.Sleep(time.Millisecond)
			}
			tries := e.tries.Load()
			e.busy.Store(false) // the device is free, and nobody wants its end any more
			time.Sleep(5 * control.HolderPause)
			if e.tries.Load() != tries || e.stopped.Load() {
				t.Errorf("%s, %s: the device is taken away", what, verb)
			}
			conn.Close()
		}
	}
}

// TestLeaveEndsWithItsClient: a daemon that was busy does not leave its device for a successor that
// has given up.
func TestLeaveEndsWithItsClient(t *testing.T) {
	e := &stopEngine{fakeEngine: newFakeEngine()}
	d := New("", definition.Start{Definition: definition.Definition{Name: "c"}}, e, zerolog.Nop())
	d.life.enter(phaseUp)
	ctx, cancel := context.WithCancelCause(t.Context())
	left := make(chan control.Answer, 1)
	go func() { left <- d.answer(ctx, control.Request{Verb: control.VerbLeave}) }()
	r := <-d.stops // it was taken up
	cancel(control.ErrHungUp)
	ended := make(chan error, 1)
	signals := make(chan os.Signal, 1)
	go func() { ended <- d.live(signals) }()
	d.stops <- r // and comes to its turn after the client has gone
	if ans := <-left; ans.Error == nil || ans.Error.Code != exit.Timeout {
		t.Errorf("the leave is answered with %+v", ans.Error)
	}
	select {
	case err := <-ended:
		t.Fatalf("the daemon has left: %v", err)
	case <-time.After(5 * control.HolderPause):
	}
	signals <- syscall.SIGTERM
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// stopEngine counts what a daemon does to end its device.
type stopEngine struct {
	*fakeEngine
	busy, stopped atomic.Bool
	tries         atomic.Int32
	configuring   func(context.Context) error
}

func (e *stopEngine) Status(*control.Status) {}

func (e *stopEngine) TryStop(context.Context, bool) error {
	e.tries.Add(1)
	if e.busy.Load() {
		return notFree
	}
	e.stopped.Store(true)
	return nil
}

func (e *stopEngine) Configure(ctx context.Context, _ definition.Change) error {
	return e.configuring(ctx)
}

// liveDaemon is a daemon that is up, with its socket.
func liveDaemon(t *testing.T) (*stopEngine, *daemon, control.Dir) {
	t.Helper()
	e := &stopEngine{fakeEngine: newFakeEngine()}
	e.path = t.TempDir() // nobody has it open
	dir := control.Dir(t.TempDir())
	d := New(dir, definition.Start{Definition: definition.Definition{Name: "c"}}, e, zerolog.Nop())
	if err := dir.Store(&d.start.Definition); err != nil {
		t.Fatal(err)
	}
	s, err := control.Listen(dir.SocketPath("c"), zerolog.Nop(), d.answer)
	if err != nil {
		t.Fatal(err)
	}
	d.server = s
	go s.Serve()
	d.life.enter(phaseUp)
	signals, ended := make(chan os.Signal, 1), make(chan error, 1)
	go func() { ended <- d.live(signals) }()
	t.Cleanup(func() {
		signals <- syscall.SIGTERM
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = s.Close()
	})
	return e, d, dir
}

// TestStatusBesideChangesThatHang: as many changes as there may be wait for metadata that hang.
// Status and events are answered at once, further changes refused; clients that have gone leave
// their places to others.
func TestStatusBesideChangesThatHang(t *testing.T) {
	e, d, dir := liveDaemon(t)
	var free atomic.Bool
	e.configuring = func(ctx context.Context) error {
		if free.Load() {
			return nil
		}
		<-ctx.Done()
		return control.Still(ctx)
	}
	quick := func(when string) {
		t.Helper()
		begin := time.Now()
		if _, err := dir.Ask("c", control.Request{Verb: control.VerbStatus}, time.Minute); err != nil {
			t.Errorf("%s: status: %v", when, err)
		}
		if _, err := dir.Call("c", control.Request{Verb: control.VerbEvents}, time.Minute); err != nil {
			t.Errorf("%s: events: %v", when, err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("%s: status and events took %s", when, took)
		}
	}
	var waiting []*net.UnixConn
	for range control.MaxChanges {
		waiting = append(waiting, testkit.SendRequest(t, dir, control.Request{Verb: control.VerbPause}))
	}
	zero := uint64(0)
	for range 2 * control.MaxPolls {
		waiting = append(waiting, testkit.SendRequest(t, dir, control.Request{Verb: control.VerbEvents, After: &zero, WaitMS: 60_000}))
	}
	for len(d.life.places) < control.MaxChanges {
		time.Sleep(time.Millisecond)
	}
	quick("full")
	if _, err := dir.Ask("c", control.Request{Verb: control.VerbPause}, time.Minute); exit.Code(err) != exit.Busy {
		t.Errorf("one change too many: %v", err)
	}
	for _, conn := range waiting {
		conn.Close()
	}
	testkit.AwaitCount(t, "changes that wait", 0, func() int { return len(d.life.places) })
	free.Store(true)
	if _, err := dir.Ask("c", control.Request{Verb: control.VerbPause}, time.Minute); err != nil {
		t.Errorf("a change afterwards: %v", err)
	}
	quick("afterwards")
}

// TestStopEndsChanges: a change that hangs does not keep the daemon from its end.
func TestStopEndsChanges(t *testing.T) {
	e := &stopEngine{fakeEngine: newFakeEngine()}
	e.configuring = func(ctx context.Context) error { <-ctx.Done(); return control.Still(ctx) }
	d := New("", definition.Start{Definition: definition.Definition{Name: "c"}}, e, zerolog.Nop())
	d.life.enter(phaseUp)
	changed := make(chan control.Answer)
	go func() { changed <- d.answer(context.Background(), control.Request{Verb: control.VerbPause}) }()
	for len(d.life.places) == 0 {
		time.Sleep(time.Millisecond)
	}
	d.life.enter(phaseStopping)
	if ans := <-changed; ans.Error == nil || ans.Error.Code != exit.Busy {
		t.Errorf("the change is answered with %+v", ans.Error)
	}
}
