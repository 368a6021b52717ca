package control

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// goneSoon is how long the daemon of a test may take to see that a client has gone.
const goneSoon = 10 * time.Second

// dial connects to the clone "c" and sends a request.
func dial(t *testing.T, dir Dir, req Request) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", dir.SocketPath("c"))
	if err == nil {
		err = WriteLine(conn, req, time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}

// TestRequestEndsWithItsClient: whoever waits for a request learns that its client has gone, or
// that its time has passed. A client that has only shut down its sending still waits.
func TestRequestEndsWithItsClient(t *testing.T) {
	ended := make(chan error, 1)
	dir, _ := testServer(t, func(ctx context.Context, req Request) Answer {
		if req.Verb == VerbStatus {
			return echo(ctx, req)
		}
		select {
		case <-ctx.Done():
		case <-time.After(goneSoon):
		}
		ended <- context.Cause(ctx)
		return Answer{Error: ToWire(Still(ctx))}
	})
	check := func(what string, want error) {
		t.Helper()
		if got := <-ended; !errors.Is(got, want) || want == nil && got != nil {
			t.Errorf("%s: the request ends with %v", what, got)
		}
	}
	dial(t, dir, Request{Verb: VerbPause}).Close()
	check("hung up", ErrHungUp)

	conn := dial(t, dir, Request{Verb: VerbPause, LimitMS: 100})
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	check("too late", errLate)
	var ans Answer
	if err := ReadAnswer(conn, time.Now().Add(time.Minute), &ans); err != nil || ans.Error == nil || ans.Error.Code != exit.Timeout {
		t.Errorf("too late: answer %+v, %v", ans.Error, err)
	}
	conn.Close()

	conn = dial(t, dir, Request{Verb: VerbPause, LimitMS: 500})
	_ = conn.CloseWrite()
	time.Sleep(5 * HangUpPause)
	if len(ended) > 0 {
		t.Error("a client that has only shut down its sending is taken for one that has gone")
	}
	check("half closed", errLate)
	conn.Close()
}

// TestEarlierDaemon: a daemon of a release without limits refuses a request that has one, and is
// asked again without.
func TestEarlierDaemon(t *testing.T) {
	dir := Dir(t.TempDir())
	if err := dir.Store(&definition.Definition{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir.SocketPath("c"))
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
	st, err := dir.Ask("c", Request{Verb: VerbPause}, time.Minute)
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
	var ans Answer
	if err := ReadAnswer(near, time.Now().Add(time.Minute), &ans); err != nil || ans.Status.Name != "c" || ans.Status.Regions.Total != 7 {
		t.Errorf("answer %+v, %v", ans.Status, err)
	}
}
