//go:build device

package devicetest

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// start starts the command, which is killed before it ends by itself.
func startCommand(m *harness.Machine, args ...string) (kill func()) {
	m.Helper()
	cmd := exec.Command(harness.Command, args...)
	if err := cmd.Start(); err != nil {
		m.Fatal(err)
	}
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

// TestRequestsOfTheDead: a del that waits is not carried out when its client has been killed, and
// neither is a restart.
func TestRequestsOfTheDead(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	c, _ := smallClone(t, "--no-hydration")
	m := c.M
	user, err := os.Open(c.Path)
	if err != nil {
		t.Fatal(err)
	}
	pid := c.Status().PID
	kill := startCommand(m, "del", c.Name, "--wait", "300s")
	time.Sleep(3 * time.Second) // it is waited for the user
	kill()
	user.Close()
	time.Sleep(2 * time.Second)
	if s := c.Status(); s.PID != pid || s.State == "stopping" {
		t.Errorf("after a del that was killed: %+v", s)
	}

	// The client of a leave gives up while the daemon stands still.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	kill = startCommand(m, "del", c.Name)
	time.Sleep(3 * time.Second)
	kill()
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	if s := c.Status(); s.PID != pid || s.State == "stopping" {
		t.Errorf("after a del that was killed while the daemon stood still: %+v", s)
	}
}

// statusLimit is how long status, list and events (wait --for event) may take with devices that do
// not answer. A process of Go's takes up to a second to start on an emulated CPU.
const statusLimit = 3 * time.Second

// TestStatusWithStuckMetadata: metadata that does not answer, and clients that have gone meanwhile,
// keep nobody from the status.
func TestStatusWithStuckMetadata(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	meta := m.Linear("slowmeta", m.NullBlk("meta", harness.NullOptions{MiB: 16}), 16*harness.MiB)
	c := m.AddClone(source, dest, meta, "--no-hydration")
	m.MustRun("dmsetup", "suspend", "--noflush", "slowmeta")
	resumed := false
	resume := func() {
		if !resumed {
			m.MustRun("dmsetup", "resume", "slowmeta")
		}
		resumed = true
	}
	defer resume()
	for range 3 {
		var kills []func()
		for range 8 {
			kills = append(kills, startCommand(m, "set", c.Name, "rate=1MiB"))
		}
		time.Sleep(3 * time.Second)
		for _, args := range [][]string{{"status", c.Name}, {"status", c.Name, "-o", "dm"}, {"list"}, {"wait", c.Name, "--for", "event", "--after", "0"}} {
			m.Within(statusLimit, args[0], func() time.Duration {
				o := m.Try(harness.Command, args...)
				m.Must(o, harness.Command, args...)
				return o.Took
			})
		}
		for _, kill := range kills {
			kill()
		}
	}
	resume()
	m.WaitFor(harness.CleanLimit, "a change to be taken again", func() error {
		if o := m.Try(harness.Command, "set", c.Name, "rate=2MiB"); o.Code != 0 {
			return os.ErrDeadlineExceeded
		}
		return nil
	})
}
