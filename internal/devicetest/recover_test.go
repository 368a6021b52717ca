//go:build device

package devicetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestRecover kills the daemon at random moments under random requests and hydration. Nobody sees
// an error, no acknowledged write is lost, the clone becomes complete, and the destination alone is
// right.
func TestRecover(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Layered, runs.Sampled)
	testRecover(t, harness.Count(4, 100), harness.StandLimit, func(c *harness.Clone) {
		c.End(syscall.SIGKILL)
		c.Recover()
	})
}

// TestRecoverTerminated is the same with SIGTERM.
func TestRecoverTerminated(t *testing.T) {
	runs.On(t, "6.12", runs.Layered, runs.Sampled)
	testRecover(t, harness.Count(2, 20), harness.StandLimit, func(c *harness.Clone) {
		c.End(syscall.SIGTERM)
		c.Recover()
	})
}

// restartLimit is how long a planned restart may keep a user waiting.
const restartLimit = time.Second

// TestRestart is the same with an upgrade: another program in the place of the old one, and one
// command.
func TestRestart(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock, runs.OrdinaryClockInFull, runs.Sampled)
	var slowest time.Duration
	testRecover(t, harness.Count(5, 20), restartLimit, func(c *harness.Clone) {
		program := filepath.Join(c.M.Dir, harness.Command)
		install(c.M, program)
		o := c.M.Try(program, "restart", c.Name)
		if got := strings.TrimSpace(c.M.Must(o, program, "restart", c.Name)); got != c.Path {
			t.Fatalf("restart has printed %q, the device was %s", got, c.Path)
		}
		slowest = max(slowest, o.Took)
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.Status().PID))
		if err != nil || exe != program {
			t.Errorf("the daemon is %q, not %s: %v", exe, program, err)
		}
	})
	t.Logf("the command took %v at most", slowest.Round(time.Millisecond))
}

// install puts a copy of the program in the place of what is at path.
func install(m *harness.Machine, path string) {
	m.Helper()
	program, err := exec.LookPath(harness.Command)
	if err != nil {
		m.Fatal(err)
	}
	m.MustRun("cp", program, path+".new")
	m.MustRun("mv", path+".new", path)
}

// testRecover replaces the daemon that often; no request may take longer than the limit.
func testRecover(t *testing.T, rounds int, limit time.Duration, replace func(*harness.Clone)) {
	m := harness.New(t)
	rng := m.Random()
	const size = 48 * harness.MiB
	source := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB, Latency: 2 * time.Millisecond, Depth: 4})
	dest := m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	w := harness.NewModel(size, 4*harness.KiB)
	w.Set(0, size, harness.Original)
	c := m.AddClone(source, dest, m.Missing("meta"), "--rate", "1MiB/s", "--read-through=off")
	stop := make(chan struct{})
	wait := w.Start(m, rng, c.Path, harness.Load{Threads: 4, Sequential: 1, Block: 512, Kinds: harness.Everything}, stop)
	for range rounds {
		time.Sleep(time.Duration(rng.Int64N(int64(time.Second)))) // anything may be in flight when it ends
		w.Longest()
		replace(c)
		m.WaitFor(harness.HydrateLimit, "requests to go on", w.Moved(100))
		m.InTime(limit, "the longest of users' requests", w.Longest())
	}
	close(stop)
	wait()
	w.Check(m, c.Path)
	c.Setting("rate=none")
	c.WaitHydrated()
	w.Check(m, c.Path)
	c.Del()
	w.Check(m, dest.Path)
}

// TestRecoverMounted: a file system goes on over the death of the daemon under it; `add` recovers
// too, and says so for another definition; `prune` ends what nobody wants back.
func TestRecoverMounted(t *testing.T) {
	runs.On(t, "6.18", runs.Layered)
	c, files := smallClone(t, "--no-hydration")
	files.Mount(c.Path)
	files.Change(c.M.Random(), 0.2)
	c.End(syscall.SIGKILL)
	c.M.ExpectFailure(c.M.Try(harness.Command, "wait", c.Name), exit.NoAnswer, "dead", "recover")
	c.M.ExpectFailure(c.M.Try(harness.Command, append([]string{"add", c.Name, "--queue-depth", "7"}, c.Args...)...), exit.Exists, "its daemon is dead")
	out := harness.Opened(c.M.MustRun(harness.Command, append([]string{"add", c.Name}, c.Args...)...))
	if out != c.Path {
		t.Fatalf("add has printed %q", out)
	}
	files.Check(nil)
	files.Sync()
	c.HydrateFast()
	c.WaitHydrated()
	c.M.MustRun(harness.Command, "recover", "--all") // nothing to do
	files.Unmount()
	files.Fsck(c.Path)
	c.End(syscall.SIGKILL)
	if got := strings.TrimSpace(c.M.MustRun(harness.Command, "prune")); got != c.Name {
		t.Errorf("prune has printed %q", got)
	}
	c.Path = ""
	c.Add()
	c.Del()
}

// TestRecoverWithoutLiveMap: what the metadata says is not enough for a device in use. It goes on
// waiting, and so do its users: until the map is back, or until somebody says that the last commit
// will do.
func TestRecoverWithoutLiveMap(t *testing.T) {
	runs.On(t, "7.3", runs.Layered, runs.Sampled)
	b := newLiveMapBench(t)
	v, buf := b.M.Open(b.Path, os.O_RDWR), b.M.Buffer(4096)
	if err := b.model.Write(v, buf, 0, false); err != nil {
		t.Fatal(err)
	}
	b.End(syscall.SIGKILL)
	result := make(chan error, 1)
	go func() { result <- b.model.Read(v, buf, 0) }()
	waits := func() {
		t.Helper()
		o := b.M.Try(harness.Command, "recover", b.Name)
		b.M.ExpectFailure(o, exit.Metadata, "live map", "waits for a daemon", "--force")
		select {
		case err := <-result:
			t.Fatalf("a read of the device has ended: %v", err)
		case <-time.After(time.Second):
		}
	}
	kept := filepath.Join(t.TempDir(), "map")
	live := b.liveMap()
	b.M.MustRun("mv", live, kept)
	waits()
	b.M.MustRun("cp", "--sparse=always", kept, live)
	b.Recover()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if err := v.Flush(); err != nil {
		t.Error(err)
	}
	b.model.Check(b.M, b.Path)

	b.End(syscall.SIGKILL)
	go func() { result <- b.model.Read(v, buf, harness.MiB) }()
	b.removeLiveMap()
	waits()
	if got := harness.Opened(b.M.MustRun(harness.Command, "recover", b.Name, "--force")); got != b.Path {
		t.Fatalf("recover --force has printed %q, the device was %s", got, b.Path)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	b.model.Check(b.M, b.Path)
	v.Close()
	b.Del()
}
