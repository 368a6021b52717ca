package control

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// testServer serves on the socket of clone "c" in a directory of its own.
func testServer(t *testing.T, answer func(context.Context, Request) Answer) (Dir, *Server) {
	t.Helper()
	return testServerWithin(t, LineLimit, answer)
}

// testServerWithin is testServer with a limit for a line.
func testServerWithin(t *testing.T, limit time.Duration, answer func(context.Context, Request) Answer) (Dir, *Server) {
	t.Helper()
	dir := Dir(t.TempDir())
	if err := dir.Store(&definition.Definition{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	s, err := Listen(dir.SocketPath("c"), zerolog.Nop(), answer)
	if err != nil {
		t.Fatal(err)
	}
	s.Limit = limit
	go s.Serve()
	t.Cleanup(func() { _ = s.Close() })
	return dir, s
}

func echo(_ context.Context, req Request) Answer {
	if req.Verb == VerbStop {
		return Answer{Error: ToWire(&exit.Error{Code: exit.Busy, Doing: "delete", Object: "c", Cause: errors.New("mounted on /mnt"), Next: "umount /mnt"})}
	}
	return Answer{Status: &Status{Identity: Identity{Name: req.Verb}}}
}

func TestAskAndAnswer(t *testing.T) {
	dir, _ := testServer(t, echo)
	st, err := dir.Ask("c", Request{Verb: VerbStatus}, time.Minute)
	if err != nil || st == nil || st.Name != VerbStatus {
		t.Errorf("ask: %+v, %v", st, err)
	}
	_, err = dir.Ask("c", Request{Verb: VerbStop}, time.Minute)
	if exit.Code(err) != exit.Busy || err.Error() != "delete c: mounted on /mnt" || exit.Next(err) != "umount /mnt" {
		t.Errorf("error over the socket: %v, code %d, next %q", err, exit.Code(err), exit.Next(err))
	}
	info, err := os.Stat(dir.SocketPath("c"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
}

func TestGarbageIsAnsweredAndServingGoesOn(t *testing.T) {
	dir, _ := testServer(t, echo)
	for name, send := range map[string]string{
		"no JSON":       "hello\n",
		"half a value":  `{"verb":"stat` + "\n",
		"two values":    `{"verb":"status"}{"verb":"stop"}` + "\n",
		"unknown field": `{"verb":"status","force":true}` + "\n",
		"wrong type":    `{"verb":7}` + "\n",
		"zero bytes":    "\x00\x00\x00\n",
		"no line end":   `{"verb":"status"}`,
		"nothing":       "",
		"too long":      strings.Repeat("x", maxRequest+1),
	} {
		conn, err := net.Dial("unix", dir.SocketPath("c"))
		if err != nil {
			t.Fatal(err)
		}
		// The server may have answered and closed before all of it is sent.
		_, _ = io.WriteString(conn, send)
		_ = conn.(*net.UnixConn).CloseWrite()
		var ans Answer
		err = ReadAnswer(conn, time.Now().Add(time.Minute), &ans)
		if name == "too long" && err != nil {
			err, ans.Error = nil, &WireError{Code: exit.Usage} // reset: unread data was left
		}
		if err != nil || ans.Error == nil || ans.Error.Code != exit.Usage {
			t.Errorf("%s: answer %+v, %v", name, ans, err)
		}
		conn.Close()
	}
	if _, err := dir.Ask("c", Request{Verb: VerbStatus}, time.Minute); err != nil {
		t.Errorf("after garbage: %v", err)
	}
}

func TestSilentClientsDoNotBlockOthers(t *testing.T) {
	dir, _ := testServer(t, echo)
	for range MaxConnections - 1 {
		conn, err := net.Dial("unix", dir.SocketPath("c"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if _, err := dir.Ask("c", Request{Verb: VerbStatus}, time.Minute); err != nil {
		t.Error(err)
	}
}

func TestDaemonThatDoesNotAnswer(t *testing.T) {
	release := make(chan struct{})
	dir, _ := testServer(t, func(context.Context, Request) Answer { <-release; return Answer{} })
	_, err := dir.Ask("c", Request{Verb: VerbStatus}, 50*time.Millisecond)
	close(release)
	if exit.Code(err) != exit.NoAnswer || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("silent daemon: %v", err)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := Dir(t.TempDir())
	_, err := dir.Ask("c", Request{Verb: VerbStatus}, time.Second)
	if exit.Code(err) != exit.NoClone {
		t.Errorf("no clone: %v", err)
	}
	if err := dir.Store(&definition.Definition{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	// A socket that nobody listens on, as a killed daemon leaves it.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir.SocketPath("c"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	_, err = dir.Ask("c", Request{Verb: VerbStatus}, time.Second)
	if exit.Code(err) != exit.NoAnswer || !strings.Contains(err.Error(), "daemon is dead") {
		t.Errorf("stale socket: %v", err)
	}
	s, err := Listen(dir.SocketPath("c"), zerolog.Nop(), echo)
	if err != nil {
		t.Fatalf("listen over a stale socket: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir.SocketPath("c")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after close: %v", err)
	}
}
