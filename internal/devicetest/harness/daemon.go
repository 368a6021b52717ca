package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/ublk-clone/ublk-clone/ublk"
)

// NoError is for goroutines of a test.
func (c *Clone) NoError(err error) {
	if err != nil {
		c.M.Error(err)
	}
}

// WaitStalled waits until hydration is stalled with these and no other bad ranges, and nothing else
// is left.
func (c *Clone) WaitStalled(bad ...BadRange) {
	c.M.Helper()
	var left int64
	for _, b := range bad {
		left += b.Length
	}
	c.M.WaitFor(HydrateLimit, "hydration to be stalled", func() error {
		s := c.Status()
		if s.State != "stalled" || s.Bytes.Remaining != left || !slices.EqualFunc(s.BadRanges, bad, BadRange.same) {
			return fmt.Errorf("state %s, %d bytes left, bad %v, not %v", s.State, s.Bytes.Remaining, s.BadRanges, bad)
		}
		return nil
	})
}

// Resident is the memory of the clone's daemon, in bytes, and the part of it that is shared: maps
// and buffers.
func (c *Clone) Resident() (all, shared int64) {
	c.M.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.Status().PID), "status"))
	if err != nil {
		c.M.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			all = n * KiB
		case "RssShmem:":
			shared = n * KiB
		}
	}
	return all, shared
}

// KillableQueues is how many queues a clone may have whose daemons are killed while they take over.
// A kernel before 6.15 crashes when that comes between the FETCH of one queue and that of another
// (ublk.Device.Start). Drivers with QUIESCE_DEV, since 6.16, are newer.
func (m *Guest) KillableQueues() string {
	m.Helper()
	ctl, err := ublk.OpenControl()
	if err != nil {
		m.Fatal(err)
	}
	defer ctl.Close()
	features, err := ctl.Features(context.Background())
	if err != nil {
		m.Fatal(err)
	}
	if !features.Quiesce {
		return "1"
	}
	return "2"
}

// Recovery is a `recover` under way.
type Recovery struct {
	Cmd    *exec.Cmd
	Daemon int // process that it has started
	Stderr strings.Builder
}

// StartRecovery returns when the daemon's process is there.
func (c *Clone) StartRecovery() *Recovery {
	c.M.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*HydrateLimit)
	c.M.Cleanup(cancel)
	r := &Recovery{Cmd: exec.CommandContext(ctx, Command, "recover", c.Name)}
	r.Cmd.Stderr = &r.Stderr
	if err := r.Cmd.Start(); err != nil {
		c.M.Fatal(err)
	}
	c.M.WaitFor(HydrateLimit, "the daemon's process", func() error {
		for _, pid := range Daemons() {
			if parent(pid) == r.Cmd.Process.Pid {
				r.Daemon = pid
				return nil
			}
		}
		return errors.New("there is none")
	})
	return r
}

// parent is the process that has started this one, 0 of one that is gone (the fourth field of
// stat).
func parent(pid int) (ppid int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	var state string
	_, _ = fmt.Sscan(rest, &state, &ppid)
	return ppid
}

// The daemon as a process: what it owes to whoever frees memory by writing to its device (I9).

// Thread is one of a process, as /proc/PID/task/TID/stat shows it.
type Thread struct {
	ID           int
	Name         string
	Flags        uint64
	Minor, Major int64 // page faults
}

// ReadThread reads a stat file.
func ReadThread(path string) (t Thread, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return t, err
	}
	head, tail, _ := strings.Cut(string(text), " (")
	end := strings.LastIndexByte(tail, ')')
	f := strings.Fields(tail[end+1:]) // from the state on, which is field 3 (proc_pid_stat(5))
	t.Name = tail[:end]
	for _, field := range []struct {
		from string
		to   any
	}{{head, &t.ID}, {f[6], &t.Flags}, {f[7], &t.Minor}, {f[9], &t.Major}} {
		if _, err := fmt.Sscan(field.from, field.to); err != nil {
			return t, fmt.Errorf("%s: %w", path, err)
		}
	}
	return t, nil
}

// Threads are those of the clone's daemon, by their number. One that ends meanwhile is left out.
func (c *Clone) Threads() map[int]Thread {
	c.M.Helper()
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", c.Status().PID))
	all := map[int]Thread{}
	for _, path := range paths {
		if t, err := ReadThread(path); err == nil {
			all[t.ID] = t
		}
	}
	if len(all) == 0 {
		c.M.Fatal("the daemon has no threads")
	}
	return all
}

// ProcessNumber reads a line "NAME: N kB" of /proc/PID/status, in bytes.
func (c *Clone) ProcessNumber(name string) int64 {
	c.M.Helper()
	for line := range strings.Lines(c.M.ReadFile(fmt.Sprintf("/proc/%d/status", c.Status().PID))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n * KiB
		}
	}
	c.M.Fatalf("the daemon's status has no %s", name)
	return 0
}

// Setting is `set`.
func (c *Clone) Setting(words ...string) {
	c.M.Helper()
	if out := c.M.MustRun(Command, append([]string{"set", c.Name}, words...)...); out != "" {
		c.M.Errorf("set %s prints %q", strings.Join(words, " "), out)
	}
}

// The block device outlives its daemon (I6). Its users wait, and go on when the next daemon has
// taken over.

// End sends the daemon a signal and waits for it to end. The device stays.
func (c *Clone) End(sig syscall.Signal) {
	c.M.Helper()
	pid := c.Status().PID
	if err := syscall.Kill(pid, sig); err != nil {
		c.M.Fatal(err)
	}
	c.WaitEnded(pid)
}

// WaitEnded waits for the end of a daemon whose device is to stay.
func (c *Clone) WaitEnded(pid int) {
	c.M.Helper()
	c.M.WaitFor(CleanLimit, "the daemon to end", func() error {
		if slices.Contains(Daemons(), pid) {
			return errors.New("it is there")
		}
		return nil
	})
	if _, err := os.Stat(c.Path); err != nil {
		c.M.Errorf("the device has gone with its daemon: %v", err)
	}
}

// Recover is `recover`, which prints the device.
func (c *Clone) Recover() {
	c.M.Helper()
	if got := Opened(c.M.MustRun(Command, "recover", c.Name)); got != c.Path {
		c.M.Fatalf("recover has printed %q, the device was %s", got, c.Path)
	}
}

// Event waits for an event of that kind since the daemon's start.
func (c *Clone) Event(kind string) {
	c.M.Helper()
	for after := range 8 {
		ev := c.M.MustRun(Command, "wait", c.Name, "--for", "event", "--after", strconv.Itoa(after), "--timeout", "30s")
		if strings.Contains(ev, kind) {
			return
		}
	}
	c.M.Errorf("no event %s among the first 8", kind)
}
