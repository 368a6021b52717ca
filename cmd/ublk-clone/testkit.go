package main

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

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// serveRequests answers on the control socket of clone "c", in a folder of its own, until the test ends.
func serveRequests(t *testing.T, answer func(context.Context, request) answer) runDir {
	t.Helper()
	return serveWithin(t, lineLimit, answer)
}

// serveWithin is serveRequests with a limit for a line.
func serveWithin(t *testing.T, limit time.Duration, answer func(context.Context, request) answer) runDir {
	t.Helper()
	dir := runDir(t.TempDir())
	if err := dir.store(&definition{Name: "c"}); err != nil {
		t.Fatal(err)
	}
	s, err := listen(dir.socket("c"), zerolog.Nop(), answer)
	if err != nil {
		t.Fatal(err)
	}
	s.limit = limit
	go s.serve()
	t.Cleanup(func() { _ = s.close() })
	return dir
}

// echoVerb answers with a status whose name is the verb, and a stop with an error.
func echoVerb(_ context.Context, req request) answer {
	if req.Verb == verbStop {
		return answer{Error: toWire(&exit.Error{Code: exit.Busy, Doing: "delete", Object: "c", Cause: errors.New("mounted on /mnt"), Next: "umount /mnt"})}
	}
	return answer{Status: &cloneStatus{Name: req.Verb}}
}

// settled waits until a count is back to what it was.
func settled(t *testing.T, what string, want int, count func() int) {
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

// openFiles is how many descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// kindsOf names the kinds of events in order.
func kindsOf(events []event) string {
	var all []string
	for _, ev := range events {
		all = append(all, ev.Kind)
	}
	return strings.Join(all, " ")
}

// sendRequest sends a request to clone "c", and does not wait for the answer.
func sendRequest(t *testing.T, dir runDir, req request) *net.UnixConn {
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
