//go:build device

package devicetest

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// start starts the command, which is killed before it ends by itself.
func (m *machine) startCommand(args ...string) (kill func()) {
	m.Helper()
	cmd := exec.Command(command, args...)
	if err := cmd.Start(); err != nil {
		m.Fatal(err)
	}
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
}

// TestRequestsOfTheDead: a del that waits is not carried out when its client has been killed, and neither is a restart.
func TestRequestsOfTheDead(t *testing.T) {
	runs.On(t, "6.12")
	c, _ := smallClone(t, "--no-hydration")
	m := c.m
	user, err := os.Open(c.path)
	if err != nil {
		t.Fatal(err)
	}
	pid := c.status().PID
	kill := m.startCommand("del", c.name, "--wait", "300s")
	time.Sleep(3 * time.Second) // it is waited for the user
	kill()
	user.Close()
	time.Sleep(2 * time.Second)
	if s := c.status(); s.PID != pid || s.State == "stopping" {
		t.Errorf("after a del that was killed: %+v", s)
	}

	// The client of a leave gives up while the daemon stands still.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	kill = m.startCommand("del", c.name)
	time.Sleep(3 * time.Second)
	kill()
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	if s := c.status(); s.PID != pid || s.State == "stopping" {
		t.Errorf("after a del that was killed while the daemon stood still: %+v", s)
	}
}

// statusLimit is how long status, list and events (wait --for event) may take with devices that do not answer. A process of Go's takes up
// to a second to start on an emulated CPU.
const statusLimit = 3 * time.Second

// TestStatusWithStuckMetadata: metadata that does not answer, and clients that have gone meanwhile, keep nobody from the
// status.
func TestStatusWithStuckMetadata(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	meta := m.linear("slowmeta", m.nullBlk("meta", nullOptions{mib: 16}), 16*mib)
	c := m.addClone(source, dest, meta, "--no-hydration")
	m.run("dmsetup", "suspend", "--noflush", "slowmeta")
	resumed := false
	resume := func() {
		if !resumed {
			m.run("dmsetup", "resume", "slowmeta")
		}
		resumed = true
	}
	defer resume()
	for range 3 {
		var kills []func()
		for range 8 {
			kills = append(kills, m.startCommand("set", c.name, "rate=1MiB"))
		}
		time.Sleep(3 * time.Second)
		for _, args := range [][]string{{"status", c.name}, {"status", c.name, "-o", "dm"}, {"list"}, {"wait", c.name, "--for", "event", "--after", "0"}} {
			m.within(statusLimit, args[0], func() time.Duration {
				o := m.try(command, args...)
				m.must(o, command, args...)
				return o.took
			})
		}
		for _, kill := range kills {
			kill()
		}
	}
	resume()
	m.waitFor(cleanLimit, "a change to be taken again", func() error {
		if o := m.try(command, "set", c.name, "rate=2MiB"); o.code != 0 {
			return os.ErrDeadlineExceeded
		}
		return nil
	})
}
