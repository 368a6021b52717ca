package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/testkit"
)

// clients is how many come at once.
const clients = 1000

// TestManyClients: whatever a thousand clients do at once, no more than control.MaxConnections are
// served at a time, each that asks is answered, and at the end nothing of them is held.
func TestManyClients(t *testing.T) {
	var now, most atomic.Int32
	var once sync.Once
	full := make(chan struct{})   // closed some time after as many are served as may be
	const limit = 3 * time.Second // a process may stand still for a good part of it
	dir := testkit.ServeWithin(t, limit, func(ctx context.Context, req control.Request) control.Answer {
		if req.Verb != control.VerbStatus {
			return testkit.EchoVerb(ctx, req)
		}
		n := now.Add(1)
		defer now.Add(-1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		if n == control.MaxConnections {
			once.Do(func() { time.AfterFunc(50*time.Millisecond, func() { close(full) }) })
		}
		<-full
		return testkit.EchoVerb(ctx, req)
	})
	if _, err := dir.Ask("c", control.Request{Verb: control.VerbPause}, time.Minute); err != nil { // all of it is there
		t.Fatal(err)
	}
	descriptors, goroutines := testkit.OpenFiles(t), runtime.NumGoroutine()

	var group sync.WaitGroup
	var answered atomic.Int32
	for i := range clients {
		group.Go(func() {
			conn, err := net.Dial("unix", dir.SocketPath("c"))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if kind := i % 50; kind < len(rude) {
				rude[kind](conn)
			} else if civil(conn) == nil {
				answered.Add(1)
			}
		})
	}
	group.Wait()
	if want := int32(clients / 50 * (50 - len(rude))); answered.Load() != want {
		t.Errorf("%d clients of %d were answered", answered.Load(), want)
	}
	if most.Load() != control.MaxConnections {
		t.Errorf("%d were served at a time", most.Load())
	}
	if _, err := dir.Ask("c", control.Request{Verb: control.VerbStatus}, time.Minute); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	testkit.AwaitCount(t, "descriptors", descriptors, func() int { return testkit.OpenFiles(t) })
	testkit.AwaitCount(t, "goroutines", goroutines, runtime.NumGoroutine)
	t.Logf("%d of %d clients answered, %d at a time", answered.Load(), clients, most.Load())
}

// civil asks for the status and reads it.
func civil(conn net.Conn) error {
	var ans control.Answer
	err := control.WriteLine(conn, control.Request{Verb: control.VerbStatus}, time.Minute)
	if err == nil {
		err = control.ReadAnswer(conn, time.Now().Add(time.Minute), &ans)
	}
	if err == nil && ans.Status == nil {
		err = errors.New("no status")
	}
	return err
}

// rude are clients that do as they should not. Each returns when the server has had enough.
var rude = []func(net.Conn){
	func(conn net.Conn) { hangUp(conn) },                                                            // silent
	func(conn net.Conn) { _, _ = conn.Write([]byte(`{"verb":"sta`)); hangUp(conn) },                 // half a message
	func(conn net.Conn) { _, _ = conn.Write([]byte(`{"verb":"sta`)) },                               // half, and gone
	func(conn net.Conn) { _, _ = conn.Write([]byte("\x00\xff}{\n")); hangUp(conn) },                 // garbage
	func(conn net.Conn) { _, _ = conn.Write([]byte(strings.Repeat("x", 1<<20))); hangUp(conn) },     // too long a line
	func(conn net.Conn) { _, _ = conn.Write([]byte(`{"verb":"status"}` + "\n")) },                   // never reads
	func(conn net.Conn) { _, _ = conn.Write([]byte(strings.Repeat(`{"verb":"status"}`+"\n", 99))) }, // asks again and again
	func(conn net.Conn) { // a byte at a time, less often than there is time for a line
		for range 1000 {
			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	},
}

// hangUp reads until the server has closed.
func hangUp(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// asUser does something on a thread of its own whose effective user is uid, as the kernel tells the
// other end of a socket.
func asUser(t *testing.T, uid int, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			t.Errorf("become user %d: %v", uid, errno)
			return
		}
		do()
	}()
	<-done
}

// TestForeignUser: somebody has let everybody at the socket. The daemon looks at who it is, and
// does not wait for him: even as many as it serves at a time keep nobody off.
func TestForeignUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: only root can connect as another user, who is to be refused")
	}
	asked := atomic.Int32{}
	dir := testkit.ServeRequests(t, func(ctx context.Context, req control.Request) control.Answer {
		asked.Add(1)
		return testkit.EchoVerb(ctx, req)
	})
	for path := string(dir); path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const nobody = 65534
	asUser(t, nobody, func() {
		if conn, err := net.Dial("unix", dir.SocketPath("c")); !errors.Is(err, syscall.EACCES) {
			t.Errorf("the socket is open to everybody: %v, %v", conn, err)
		}
	})
	if err := os.Chmod(dir.SocketPath("c"), 0o777); err != nil {
		t.Fatal(err)
	}
	asUser(t, nobody, func() {
		var ans control.Answer
		for range 2 * control.MaxConnections { // they stay, and say nothing
			conn, err := net.Dial("unix", dir.SocketPath("c"))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if err := control.ReadAnswer(conn, time.Now().Add(time.Minute), &ans); err != nil || ans.Error == nil || ans.Error.Code != exit.Denied {
				t.Errorf("answer to a stranger: %+v, %v", ans, err)
			}
		}
	})
	if asked.Load() != 0 {
		t.Errorf("%d requests of strangers were carried out", asked.Load())
	}
	if _, err := dir.Ask("c", control.Request{Verb: control.VerbStatus}, time.Minute); err != nil {
		t.Error(err)
	}
}

// TestPhases: a daemon that is not up tells how far it is, and does nothing else.
func TestPhases(t *testing.T) {
	e := newFakeEngine()
	d := New("", definition.Start{Definition: definition.Definition{Name: "c", Added: definition.Added{Device: "/dev/ublkb7"}}, Recover: true}, e, zerolog.Nop())
	e.waiting = errors.New("process 12 has it open")
	for _, p := range []struct {
		phase phase
		state string
		says  []string
	}{
		{phaseStarting, control.StateRecovering, []string{"no error", "process 12"}},
		{phaseStopping, control.StateStopping, []string{"end"}},
	} {
		d.life.enter(p.phase)
		st := d.answer(t.Context(), control.Request{Verb: control.VerbStatus}).Status
		for _, text := range p.says {
			if st.State != p.state || !strings.Contains(st.Reason, text) {
				t.Errorf("%s: %s", st.State, st.Reason)
			}
		}
		for _, req := range []control.Request{{Verb: control.VerbPause}, {Verb: control.VerbResume}, {Verb: control.VerbStop}, {Verb: control.VerbSet, Change: new(definition.Hydration(true))}} {
			if ans := d.answer(t.Context(), req); ans.Error == nil || ans.Error.Code != exit.Busy {
				t.Errorf("%s: %s is answered with %+v", p.state, req.Verb, ans)
			}
		}
		if ans := d.answer(t.Context(), control.Request{Verb: control.VerbEvents}); ans.Error != nil {
			t.Errorf("%s: events: %+v", p.state, ans.Error)
		}
	}
	if e.asked > 0 || e.retries > 0 || len(e.changes) > 0 {
		t.Errorf("the engine was asked %d times, changed to %v", e.asked, e.changes)
	}
}

// TestOneStopWaits: a second one does not take a connection for as long as the first waits.
func TestOneStopWaits(t *testing.T) {
	d := New("", definition.Start{Definition: definition.Definition{Name: "c"}}, newFakeEngine(), zerolog.Nop())
	d.life.enter(phaseUp)
	first := make(chan control.Answer)
	go func() { first <- d.answer(t.Context(), control.Request{Verb: control.VerbStop, WaitMS: 1000}) }()
	r := <-d.stops
	if ans := d.answer(t.Context(), control.Request{Verb: control.VerbStop}); ans.Error == nil || ans.Error.Code != exit.Busy {
		t.Errorf("the second stop is answered with %+v", ans)
	}
	r.reply <- notFree
	if ans := <-first; ans.Error == nil {
		t.Error("the first stop has succeeded")
	}
}

// TestSignalEndsAStopThatWaits: who waits for the device to be closed does not keep the daemon from
// ending.
func TestSignalEndsAStopThatWaits(t *testing.T) {
	e := newFakeEngine()
	e.path, e.busy = t.TempDir(), notFree
	d := New("", definition.Start{Definition: definition.Definition{Name: "c"}}, e, zerolog.Nop())
	d.life.enter(phaseUp)
	signals, ended, stopped := make(chan os.Signal, 1), make(chan error), make(chan control.Answer)
	go func() { ended <- d.live(signals) }()
	go func() { stopped <- d.answer(t.Context(), control.Request{Verb: control.VerbStop, WaitMS: 3600 * 1000}) }()
	for len(d.stopping) == 0 {
		time.Sleep(time.Millisecond)
	}
	signals <- syscall.SIGTERM
	select {
	case err := <-ended:
		if err != nil || !d.keep {
			t.Errorf("the daemon ends with %v, and leaves its device: %t", err, d.keep)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the daemon does not end")
	}
	select {
	case ans := <-stopped:
		if ans.Error == nil || ans.Error.Code != exit.Busy {
			t.Errorf("the stop is answered with %+v", ans)
		}
	case <-time.After(time.Second): // it had not been taken yet: the process ends
	}
}
