//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The block device outlives its daemon (I6). Its users wait, and go on when the next daemon has taken over.

// end sends the daemon a signal and waits for it to end. The device stays.
func (c *clone) end(sig syscall.Signal) {
	c.m.Helper()
	pid := c.status().PID
	if err := syscall.Kill(pid, sig); err != nil {
		c.m.Fatal(err)
	}
	c.waitEnded(pid)
}

// waitEnded waits for the end of a daemon whose device is to stay.
func (c *clone) waitEnded(pid int) {
	c.m.Helper()
	c.m.waitFor(cleanLimit, "the daemon to end", func() error {
		if slices.Contains(daemons(), pid) {
			return errors.New("it is there")
		}
		return nil
	})
	if _, err := os.Stat(c.path); err != nil {
		c.m.Errorf("the device has gone with its daemon: %v", err)
	}
}

// recover is `recover`, which prints the device.
func (c *clone) recover() {
	c.m.Helper()
	if got := strings.TrimSpace(c.m.run(command, "recover", c.name)); got != c.path {
		c.m.Fatalf("recover has printed %q, the device was %s", got, c.path)
	}
}

// TestRecover kills the daemon at random moments under random requests and hydration. Nobody sees an error, no
// acknowledged write is lost, the clone becomes complete, and the destination alone is right.
func TestRecover(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	testRecover(t, count(4, 100), standLimit, func(c *clone) {
		c.end(syscall.SIGKILL)
		c.recover()
	})
}

// TestRecoverTerminated is the same with SIGTERM.
func TestRecoverTerminated(t *testing.T) {
	runs.On(t, "6.12")
	testRecover(t, count(2, 20), standLimit, func(c *clone) {
		c.end(syscall.SIGTERM)
		c.recover()
	})
}

// restartLimit is how long a planned restart may keep a user waiting.
const restartLimit = time.Second

// TestRestart is the same with an upgrade: another program in the place of the old one, and one command.
func TestRestart(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock, runs.OrdinaryClockInFull)
	var slowest time.Duration
	testRecover(t, count(5, 20), restartLimit, func(c *clone) {
		program := filepath.Join(c.m.dir, command)
		c.m.install(program)
		o := c.m.try(program, "restart", c.name)
		if got := strings.TrimSpace(c.m.must(o, program, "restart", c.name)); got != c.path {
			t.Fatalf("restart has printed %q, the device was %s", got, c.path)
		}
		slowest = max(slowest, o.took)
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.status().PID))
		if err != nil || exe != program {
			t.Errorf("the daemon is %q, not %s: %v", exe, program, err)
		}
	})
	t.Logf("the command took %v at most", slowest.Round(time.Millisecond))
}

// install puts a copy of the program in the place of what is at path.
func (m *machine) install(path string) {
	m.Helper()
	program, err := exec.LookPath(command)
	if err != nil {
		m.Fatal(err)
	}
	m.run("cp", program, path+".new")
	m.run("mv", path+".new", path)
}

// testRecover replaces the daemon that often; no request may take longer than the limit.
func testRecover(t *testing.T, rounds int, limit time.Duration, replace func(*clone)) {
	m := newMachine(t)
	rng := m.random()
	const size = 48 * mib
	source := m.nullBlk("src", nullOptions{mib: size / mib, latency: 2 * time.Millisecond, depth: 4})
	dest := m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	w := newModel(size, 4*kib)
	w.set(0, size, original)
	c := m.addClone(source, dest, m.missing("meta"), "--rate", "1MiB/s", "--read-through=off")
	stop := make(chan struct{})
	wait := w.start(m, rng, c.path, load{threads: 4, sequential: 1, block: 512, kinds: everything}, stop)
	for range rounds {
		time.Sleep(time.Duration(rng.Int64N(int64(time.Second)))) // anything may be in flight when it ends
		w.longest()
		replace(c)
		m.waitFor(hydrateLimit, "requests to go on", w.moved(100))
		m.inTime(limit, "the longest of users' requests", w.longest())
	}
	close(stop)
	wait()
	w.check(m, c.path)
	c.setting("rate=none")
	c.waitHydrated()
	w.check(m, c.path)
	c.del()
	w.check(m, dest.path)
}

// TestRecoverMounted: a file system goes on over the death of the daemon under it; `add` recovers too, and says
// so for another definition; `prune` ends what nobody wants back.
func TestRecoverMounted(t *testing.T) {
	runs.On(t, "6.18")
	c, files := smallClone(t, "--no-hydration")
	files.mount(c.path)
	files.change(c.m.random(), 0.2)
	c.end(syscall.SIGKILL)
	c.m.expectFailure(c.m.try(command, "wait", c.name), exit.NoAnswer, "dead", "recover")
	c.m.expectFailure(c.m.try(command, append([]string{"add", c.name, "--queue-depth", "7"}, c.args...)...), exit.Exists, "its daemon is dead")
	out := strings.TrimSpace(c.m.run(command, append([]string{"add", c.name}, c.args...)...))
	if out != c.path {
		t.Fatalf("add has printed %q", out)
	}
	files.check(nil)
	files.sync()
	c.hydrateFast()
	c.waitHydrated()
	c.m.run(command, "recover", "--all") // nothing to do
	files.unmount()
	files.examine(c.path)
	c.end(syscall.SIGKILL)
	if got := strings.TrimSpace(c.m.run(command, "prune")); got != c.name {
		t.Errorf("prune has printed %q", got)
	}
	c.path = ""
	c.add()
	c.del()
}

// TestRecoverWithoutLiveMap: what the metadata say is not enough for a device in use. It goes on waiting, and so do its
// users: until the map is back, or until somebody says that the last commit will do.
func TestRecoverWithoutLiveMap(t *testing.T) {
	runs.On(t, "7.3")
	b := newLiveMapBench(t)
	v, buf := b.m.open(b.path, os.O_RDWR), b.m.buffer(4096)
	if err := b.model.write(v, buf, 0, false); err != nil {
		t.Fatal(err)
	}
	b.end(syscall.SIGKILL)
	result := make(chan error, 1)
	go func() { result <- b.model.read(v, buf, 0) }()
	waits := func() {
		t.Helper()
		o := b.m.try(command, "recover", b.name)
		b.m.expectFailure(o, exit.Metadata, "live map", "waits for a daemon", "--force")
		select {
		case err := <-result:
			t.Fatalf("a read of the device has ended: %v", err)
		case <-time.After(time.Second):
		}
	}
	kept := filepath.Join(t.TempDir(), "map")
	live := b.liveMap()
	b.m.run("mv", live, kept)
	waits()
	b.m.run("cp", "--sparse=always", kept, live)
	b.recover()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if err := v.flush(); err != nil {
		t.Error(err)
	}
	b.model.check(b.m, b.path)

	b.end(syscall.SIGKILL)
	go func() { result <- b.model.read(v, buf, mib) }()
	b.removeLiveMap()
	waits()
	if got := strings.TrimSpace(b.m.run(command, "recover", b.name, "--force")); got != b.path {
		t.Fatalf("recover --force has printed %q, the device was %s", got, b.path)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	b.model.check(b.m, b.path)
	v.close()
	b.del()
}
