//go:build device

package devicetest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// answerLimit is how long a command may take under load.
const answerLimit = time.Second

// Commands answer while random requests and hydration go on.
func TestCommandsUnderLoad(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.OrdinaryClockInFull, runs.Sampled)
	m := harness.New(t)
	rng := m.Random()
	const size = 64 * harness.MiB
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB, MBps: 4}), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	c := m.AddClone(source, dest, m.Missing("meta"))
	w := harness.NewModel(size, 4*harness.KiB)
	w.Set(0, size, harness.Zeros) // as the source is
	stop := make(chan struct{})
	wait := w.Start(m, rng, c.Path, harness.Load{Threads: 4, Sequential: 2, Block: harness.Sector, Kinds: harness.Everything}, stop)
	var slowest time.Duration
	answers := func(code int, says string, args ...string) {
		t.Helper()
		m.Within(answerLimit, strings.Join(args, " "), func() time.Duration {
			o := m.Try(harness.Command, args...)
			slowest = max(slowest, o.Took)
			if o.Code != code || !strings.Contains(o.Stdout+o.Stderr, says) {
				t.Errorf("%v: exit status %d, says %q, expected %d and %q", args, o.Code, o.Stdout+o.Stderr, code, says)
			}
			return o.Took
		})
	}
	for range harness.Count(2, 30) {
		answers(0, harness.NameDir, "list")
		answers(0, c.Path, "status")
		answers(0, `"hydr`, "status", c.Name, "-o", "json")
		answers(0, " clone 8 ", "status", c.Name, "-o", "dm")
		answers(0, " clone ", "table", c.Name)
		answers(exit.Timeout, "done", "wait", c.Name, "--timeout", "1ms")
		m.Within(answerLimit, "watch", func() time.Duration {
			took := firstLine(c)
			slowest = max(slowest, took)
			return took
		})
	}
	t.Logf("the slowest answer took %v", slowest.Round(time.Millisecond))
	if printed, asked := c.PrintedStatus(), c.Status(); printed.UUID == "" || printed.UUID != asked.UUID {
		t.Errorf("the command prints %+v, the daemon says %+v", printed, asked)
	}
	if s := c.Status(); s.Regions.Hydrated == s.Regions.Total {
		t.Error("the clone was to hydrate all the time, and is complete")
	}
	close(stop)
	wait()
	c.Del()
}

// firstLine is how long `watch` takes for its first line; then it is ended.
func firstLine(c *harness.Clone) time.Duration {
	c.M.Helper()
	cmd := exec.Command(harness.Command, "watch", c.Name, "--progress", "plain")
	read, write, err := os.Pipe()
	if err != nil {
		c.M.Fatal(err)
	}
	defer read.Close()
	cmd.Stdout = write
	from := time.Now()
	err = cmd.Start()
	write.Close()
	if err != nil {
		c.M.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	_ = read.SetReadDeadline(from.Add(harness.CommandLimit()))
	line := make([]byte, 256)
	n, err := read.Read(line)
	took := time.Since(from)
	if err != nil || !strings.HasPrefix(string(line[:n]), c.Name) {
		c.M.Errorf("watch says %q after %v: %v", line[:n], took, err)
	}
	return took
}
