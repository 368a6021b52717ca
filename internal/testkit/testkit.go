package testkit

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// ServeRequests answers on the control socket of clone "c", in a directory of its own, until the
// test ends.
func ServeRequests(t *testing.T, answer func(context.Context, control.Request) control.Answer) control.Dir {
	t.Helper()
	return ServeWithin(t, control.LineLimit, answer)
}

// ServeWithin is ServeRequests with a limit for a line.
func ServeWithin(t *testing.T, limit time.Duration, answer func(context.Context, control.Request) control.Answer) control.Dir {
	t.Helper()
	dir := control.Dir(t.TempDir())
	if err := dir.Store(&definition.Definition{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	s, err := control.Listen(dir.SocketPath("c"), zerolog.Nop(), answer)
	if err != nil {
		t.Fatal(err)
	}
	s.Limit = limit
	go s.Serve()
	t.Cleanup(func() { _ = s.Close() })
	return dir
}

// EchoVerb answers with a status whose name is the verb, and a stop with an error.
func EchoVerb(_ context.Context, req control.Request) control.Answer {
	if req.Verb == control.VerbStop {
		return control.Answer{Error: control.ToWire(&exit.Error{Code: exit.Busy, Doing: "delete", Object: "c", Cause: errors.New("mounted on /mnt"), Next: "umount /mnt"})}
	}
	return control.Answer{Status: &control.Status{Identity: control.Identity{Name: req.Verb}}}
}

// AwaitCount waits until a count is back to what it was.
func AwaitCount(t *testing.T, what string, want int, count func() int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for count() > want {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d %s, there were %d\n%s", count(), what, want, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// OpenFiles is how many descriptors this process has.
func OpenFiles(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// KindsOf names the kinds of events in order.
func KindsOf(events []control.Event) string {
	var all []string
	for _, ev := range events {
		all = append(all, ev.Kind)
	}
	return strings.Join(all, " ")
}

// SendRequest sends a request to clone "c", and does not wait for the answer.
func SendRequest(t *testing.T, dir control.Dir, req control.Request) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", dir.SocketPath("c"))
	if err == nil {
		err = control.WriteLine(conn, req, time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}
