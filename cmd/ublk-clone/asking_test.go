package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// goneSoon is how long the daemon of a test may take to see that a client has gone.
const goneSoon = 10 * time.Second

// dial connects to the clone "c" and sends a request.
func dial(t *testing.T, dir runDir, req request) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", dir.socket("c"))
	if err == nil {
		err = writeLine(conn, req, time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}

// TestRequestEndsWithItsClient: whoever waits for a request learns that its client has gone, or that its time has
// passed. A client that has only shut down its sending still waits.
func TestRequestEndsWithItsClient(t *testing.T) {
	ended := make(chan error, 1)
	dir, _ := testServer(t, func(ctx context.Context, req request) answer {
		if req.Verb == verbStatus {
			return echo(ctx, req)
		}
		select {
		case <-ctx.Done():
		case <-time.After(goneSoon):
		}
		ended <- context.Cause(ctx)
		return answer{Error: toWire(still(ctx))}
	})
	check := func(what string, want error) {
		t.Helper()
		if got := <-ended; !errors.Is(got, want) || want == nil && got != nil {
			t.Errorf("%s: the request ends with %v", what, got)
		}
	}
	dial(t, dir, request{Verb: verbPause}).Close()
	check("hung up", errHungUp)

	conn := dial(t, dir, request{Verb: verbPause, LimitMS: 100})
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	check("too late", errLate)
	var ans answer
	if err := readAnswer(conn, time.Now().Add(time.Minute), &ans); err != nil || ans.Error == nil || ans.Error.Code != exit.Timeout {
		t.Errorf("too late: answer %+v, %v", ans.Error, err)
	}
	conn.Close()

	conn = dial(t, dir, request{Verb: verbPause, LimitMS: 500})
	_ = conn.CloseWrite()
	time.Sleep(5 * hangUpPause)
	if len(ended) > 0 {
		t.Error("a client that has only shut down its sending is taken for one that has gone")
	}
	check("half closed", errLate)
	conn.Close()
}

// TestStopEndsWithItsClient: a stop that waits for users is not carried out when its client has gone, or too late.
func TestStopEndsWithItsClient(t *testing.T) {
	for what, leave := range map[string]func(*net.UnixConn){
		"hung up":     func(conn *net.UnixConn) { conn.Close() },
		"late":        func(*net.UnixConn) {}, // it stays, as a process that was stopped does
		"half closed": func(conn *net.UnixConn) { _ = conn.CloseWrite(); time.Sleep(5 * hangUpPause); conn.Close() },
	} {
		for _, verb := range []string{verbStop, verbFinish} {
			e, d, dir := liveDaemon(t)
			e.busy.Store(true)
			conn := sendRequest(t, dir, request{Verb: verb, WaitMS: 3600_000, LimitMS: 1000})
			for e.tries.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			leave(conn)
			for len(d.stopping) > 0 {
				time.Sleep(time.Millisecond)
			}
			tries := e.tries.Load()
			e.busy.Store(false) // the device is free, and nobody wants its end any more
			time.Sleep(5 * holderPause)
			if e.tries.Load() != tries || e.stopped.Load() {
				t.Errorf("%s, %s: the device is taken away", what, verb)
			}
			conn.Close()
		}
	}
}

// TestLeaveEndsWithItsClient: a daemon that was busy does not leave its device for a successor that has given up.
func TestLeaveEndsWithItsClient(t *testing.T) {
	e := &stopEngine{fakeEngine: newFakeEngine()}
	d := newDaemon("", start{Definition: definition{Name: "c"}}, e, zerolog.Nop())
	d.enter(phaseUp)
	ctx, cancel := context.WithCancelCause(t.Context())
	left := make(chan answer, 1)
	go func() { left <- d.answer(ctx, request{Verb: verbLeave}) }()
	r := <-d.stops // it was taken up
	cancel(errHungUp)
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
	case <-time.After(5 * holderPause):
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

func (e *stopEngine) status(*cloneStatus) {}

func (e *stopEngine) tryStop(context.Context, bool) error {
	e.tries.Add(1)
	if e.busy.Load() {
		return notFree
	}
	e.stopped.Store(true)
	return nil
}

func (e *stopEngine) configure(ctx context.Context, _ change) error { return e.configuring(ctx) }

// liveDaemon is a daemon that is up, with its socket.
func liveDaemon(t *testing.T) (*stopEngine, *daemon, runDir) {
	t.Helper()
	e := &stopEngine{fakeEngine: newFakeEngine()}
	e.path = t.TempDir() // nobody has it open
	dir := runDir(t.TempDir())
	d := newDaemon(dir, start{Definition: definition{Name: "c"}}, e, zerolog.Nop())
	if err := dir.store(&d.start.Definition); err != nil {
		t.Fatal(err)
	}
	s, err := listen(dir.socket("c"), zerolog.Nop(), d.answer)
	if err != nil {
		t.Fatal(err)
	}
	d.server = s
	go s.serve()
	d.enter(phaseUp)
	signals, ended := make(chan os.Signal, 1), make(chan error, 1)
	go func() { ended <- d.live(signals) }()
	t.Cleanup(func() {
		signals <- syscall.SIGTERM
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = s.close()
	})
	return e, d, dir
}

// TestStatusBesideChangesThatHang: as many changes as there may be wait for metadata that hang. Status and events are
// answered at once, further changes refused; clients that have gone leave their places to others.
func TestStatusBesideChangesThatHang(t *testing.T) {
	e, d, dir := liveDaemon(t)
	var free atomic.Bool
	e.configuring = func(ctx context.Context) error {
		if free.Load() {
			return nil
		}
		<-ctx.Done()
		return still(ctx)
	}
	quick := func(when string) {
		t.Helper()
		begin := time.Now()
		if _, err := dir.ask("c", request{Verb: verbStatus}, time.Minute); err != nil {
			t.Errorf("%s: status: %v", when, err)
		}
		if _, err := dir.call("c", request{Verb: verbEvents}, time.Minute); err != nil {
			t.Errorf("%s: events: %v", when, err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("%s: status and events took %s", when, took)
		}
	}
	var waiting []*net.UnixConn
	for range maxChanges {
		waiting = append(waiting, sendRequest(t, dir, request{Verb: verbPause}))
	}
	zero := uint64(0)
	for range 2 * maxPolls {
		waiting = append(waiting, sendRequest(t, dir, request{Verb: verbEvents, After: &zero, WaitMS: 60_000}))
	}
	for len(d.changing) < maxChanges {
		time.Sleep(time.Millisecond)
	}
	quick("full")
	if _, err := dir.ask("c", request{Verb: verbPause}, time.Minute); exit.Code(err) != exit.Busy {
		t.Errorf("one change too many: %v", err)
	}
	for _, conn := range waiting {
		conn.Close()
	}
	settled(t, "changes that wait", 0, func() int { return len(d.changing) })
	free.Store(true)
	if _, err := dir.ask("c", request{Verb: verbPause}, time.Minute); err != nil {
		t.Errorf("a change afterwards: %v", err)
	}
	quick("afterwards")
}

// TestStopEndsChanges: a change that hangs does not keep the daemon from its end.
func TestStopEndsChanges(t *testing.T) {
	e := &stopEngine{fakeEngine: newFakeEngine()}
	e.configuring = func(ctx context.Context) error { <-ctx.Done(); return still(ctx) }
	d := newDaemon("", start{Definition: definition{Name: "c"}}, e, zerolog.Nop())
	d.enter(phaseUp)
	changed := make(chan answer)
	go func() { changed <- d.answer(context.Background(), request{Verb: verbPause}) }()
	for len(d.changing) == 0 {
		time.Sleep(time.Millisecond)
	}
	d.enter(phaseStopping)
	if ans := <-changed; ans.Error == nil || ans.Error.Code != exit.Busy {
		t.Errorf("the change is answered with %+v", ans.Error)
	}
}

// TestEarlierDaemon: a daemon of a release without limits refuses a request that has one, and is asked again without.
func TestEarlierDaemon(t *testing.T) {
	dir := runDir(t.TempDir())
	if err := dir.store(&definition{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir.socket("c"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var seen []string
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := receive(conn, time.Now().Add(time.Minute), maxRequest)
			seen = append(seen, string(line))
			ans := `{"status":{"name":"c"}}`
			if strings.Contains(string(line), "limit_ms") { // as 7d69acc words it
				ans = `{"error":{"code":2,"doing":"read control request","cause":"json: unknown field \"limit_ms\""}}`
			}
			_, _ = io.WriteString(conn, ans+"\n")
			conn.Close()
		}
	}()
	st, err := dir.ask("c", request{Verb: verbPause}, time.Minute)
	if err != nil || st == nil || st.Name != "c" {
		t.Errorf("ask: %+v, %v", st, err)
	}
	if len(seen) != 2 || strings.Contains(seen[1], "limit") {
		t.Errorf("it was sent %q", seen)
	}
}

// TestNewerDaemon: what a newer daemon says besides is no reason not to hear it.
func TestNewerDaemon(t *testing.T) {
	near, far := net.Pipe()
	go func() {
		_, _ = io.WriteString(far, `{"status":{"name":"c","mood":{"good":true},"regions":{"total":7,"asleep":1}},"more":[1]}`+"\n")
	}()
	var ans answer
	if err := readAnswer(near, time.Now().Add(time.Minute), &ans); err != nil || ans.Status.Name != "c" || ans.Status.Regions.Total != 7 {
		t.Errorf("answer %+v, %v", ans.Status, err)
	}
}
