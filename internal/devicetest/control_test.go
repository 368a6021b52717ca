//go:build device

package devicetest

import (
	"bufio"
	"fmt"
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

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The control socket is the way for others to the daemon. Whatever they send, requests are served.

// clients is how many come at once.
const clients = 1000

// rude are clients that do as they should not; each holds its connection until the daemon has had
// enough.
var rude = []func(net.Conn){
	func(net.Conn) {},
	func(conn net.Conn) { _, _ = io.WriteString(conn, `{"verb":"sta`) },
	func(conn net.Conn) { // slow
		for range 20 {
			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	},
	func(conn net.Conn) { _, _ = io.WriteString(conn, "\x00\xff}{\n") },
	func(conn net.Conn) { _, _ = io.WriteString(conn, strings.Repeat("x", 1<<20)) },
	func(conn net.Conn) { _, _ = io.WriteString(conn, strings.Repeat(`{"verb":"status"}`+"\n", 99)) },
	func(conn net.Conn) {
		_, _ = io.WriteString(conn, `{"verb":"set","change":{"hydration_batch_size":0}}`+"\n")
	},
	func(conn net.Conn) {
		_, _ = io.WriteString(conn, `{"verb":"message","message":{"word":"nonsense"}}`+"\n")
	},
	func(conn net.Conn) { _, _ = io.WriteString(conn, `{"verb":"stop","change":{"retries":1}}`+"\n") },
}

// ask sends a line and gives the answer.
func ask(conn net.Conn, line string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(harness.CommandLimit())); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}

// usage is what a process has.
type usage struct {
	descriptors, threads int
	memory               int64 // resident, KiB
}

func usageOf(m *harness.Machine, pid int) (u usage) {
	m.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		m.Fatal(err)
	}
	u.descriptors = len(open)
	for line := range strings.Lines(m.ReadFile(fmt.Sprintf("/proc/%d/status", pid))) {
		_, _ = fmt.Sscanf(line, "Threads: %d", &u.threads)
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &u.memory)
	}
	return u
}

// TestControlSocket: a thousand clients at once, some of them rude, while random requests and
// hydration go on. No request fails, everybody who asks is answered, nothing is changed, and
// nothing of them is left.
func TestControlSocket(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	rng := m.Random()
	const size = 64 * harness.MiB
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	c := m.AddClone(source, dest, m.Missing("meta"), "--rate", "256KiB/s")
	w := harness.NewModel(size, 4*harness.KiB)
	w.Set(0, size, harness.Zeros)
	socket := filepath.Join(harness.RunDir, c.Name+".sock")
	guarded(m, socket)
	stop := make(chan struct{})
	wait := w.Start(m, rng, c.Path, harness.Load{Threads: 2, Block: harness.Sector, Kinds: harness.Everything}, stop)
	before := c.Status()
	had := usageOf(m, before.PID)

	var group sync.WaitGroup
	var answered atomic.Int32
	for i := range clients {
		group.Go(func() {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if kind := i % 200; kind < len(rude) {
				rude[kind](conn)
				_, _ = io.Copy(io.Discard, conn)
			} else if text, err := ask(conn, `{"verb":"status"}`); err == nil && strings.Contains(text, before.UUID) {
				answered.Add(1)
			}
		})
	}
	group.Wait()
	close(stop)
	wait()
	if want := int32(clients / 200 * (200 - len(rude))); answered.Load() != want {
		t.Errorf("%d clients of %d were answered", answered.Load(), want)
	}
	after := c.Status()
	if fmt.Sprint(after.Settings) != fmt.Sprint(before.Settings) || after.PID != before.PID || after.LastEvent != before.LastEvent {
		t.Errorf("settings %v, event %d; they were %v, %d", after.Settings, after.LastEvent, before.Settings, before.LastEvent)
	}
	m.WaitFor(harness.CleanLimit, "the connections to go", func() error {
		if now := usageOf(m, before.PID); now.descriptors > had.descriptors {
			return fmt.Errorf("%d descriptors, there were %d", now.descriptors, had.descriptors)
		}
		return nil
	})
	now := usageOf(m, before.PID)
	t.Logf("%d answered; before %+v, after %+v", answered.Load(), had, now)
	const (
		most   = 16                      // more threads: as many connections as are served at a time
		memory = (64 + 32) * harness.KiB // the buffers of a queue are taken by the load
	)
	if now.threads > had.threads+most || now.memory > had.memory+memory {
		t.Errorf("the daemon has grown from %+v to %+v", had, now)
	}
	w.Check(m, c.Path)
	c.Del()
}

// guarded checks that the socket is for root only, whatever somebody has made of its mode.
func guarded(m *harness.Machine, socket string) {
	m.Helper()
	var st unix.Stat_t
	if err := unix.Stat(socket, &st); err != nil || st.Mode != unix.S_IFSOCK|0o600 || st.Uid != 0 {
		m.Errorf("%s: mode %o, user %d, %v", socket, st.Mode, st.Uid, err)
	}
	dir := filepath.Dir(socket)
	loose := func(socketMode, dirMode os.FileMode) {
		if err := os.Chmod(socket, socketMode); err != nil {
			m.Error(err)
		}
		if err := os.Chmod(dir, dirMode); err != nil {
			m.Error(err)
		}
	}
	loose(0o777, 0o755)
	defer loose(0o600, 0o700)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: this thread becomes nobody
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); errno != 0 {
			m.Errorf("become nobody: %v", errno)
			return
		}
		conn, err := net.Dial("unix", socket)
		if err != nil {
			m.Error(err)
			return
		}
		defer conn.Close()
		if text, err := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(text, fmt.Sprintf(`"code":%d`, exit.Denied)) {
			m.Errorf("a stranger is told %q, %v", text, err)
		}
	}()
	<-done
}
