//go:build device

package devicetest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// answerLimit is how long a command may take under load.
const answerLimit = time.Second

// Commands answer while random requests and hydration go on.
func TestCommandsUnderLoad(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.OrdinaryClockInFull)
	m := newMachine(t)
	rng := m.random()
	const size = 64 * mib
	source, dest := m.nullBlk("src", nullOptions{mib: size / mib, mbps: 4}), m.nullBlk("dst", nullOptions{mib: size / mib})
	c := m.addClone(source, dest, m.missing("meta"))
	w := newModel(size, 4*kib)
	w.set(0, size, zeros) // as the source is
	stop := make(chan struct{})
	wait := w.start(m, rng, c.path, load{threads: 4, sequential: 2, block: sector, kinds: everything}, stop)
	var slowest time.Duration
	answers := func(code int, says string, args ...string) {
		t.Helper()
		m.within(answerLimit, strings.Join(args, " "), func() time.Duration {
			o := m.try(command, args...)
			slowest = max(slowest, o.took)
			if o.code != code || !strings.Contains(o.stdout+o.stderr, says) {
				t.Errorf("%v: exit status %d, says %q, expected %d and %q", args, o.code, o.stdout+o.stderr, code, says)
			}
			return o.took
		})
	}
	for range count(2, 30) {
		answers(0, c.path, "list")
		answers(0, c.path, "status")
		answers(0, `"hydr`, "status", c.name, "-o", "json")
		answers(0, " clone 8 ", "status", c.name, "-o", "dm")
		answers(0, " clone ", "table", c.name)
		answers(exit.Timeout, "done", "wait", c.name, "--timeout", "1ms")
		m.within(answerLimit, "watch", func() time.Duration {
			took := c.firstLine()
			slowest = max(slowest, took)
			return took
		})
	}
	t.Logf("the slowest answer took %v", slowest.Round(time.Millisecond))
	if printed, asked := c.printedStatus(), c.status(); printed.UUID == "" || printed.UUID != asked.UUID {
		t.Errorf("the command prints %+v, the daemon says %+v", printed, asked)
	}
	if s := c.status(); s.Regions.Hydrated == s.Regions.Total {
		t.Error("the clone was to hydrate all the time, and is complete")
	}
	close(stop)
	wait()
	c.del()
}

// firstLine is how long `watch` takes for its first line; then it is ended.
func (c *clone) firstLine() time.Duration {
	c.m.Helper()
	cmd := exec.Command(command, "watch", c.name, "--progress", "plain")
	read, write, err := os.Pipe()
	if err != nil {
		c.m.Fatal(err)
	}
	defer read.Close()
	cmd.Stdout = write
	from := time.Now()
	err = cmd.Start()
	write.Close()
	if err != nil {
		c.m.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	read.SetReadDeadline(from.Add(commandLimit()))
	line := make([]byte, 256)
	n, err := read.Read(line)
	took := time.Since(from)
	if err != nil || !strings.HasPrefix(string(line[:n]), c.name) {
		c.m.Errorf("watch says %q after %v: %v", line[:n], took, err)
	}
	return took
}
