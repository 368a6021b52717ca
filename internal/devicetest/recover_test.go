//go:build device

package devicetest

import (
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// The block device outlives its daemon (I6). Its users wait, and go on when the next daemon has taken over.

// end sends the daemon a signal and waits for it to end. The device stays.
func (c *clone) end(sig syscall.Signal) {
	c.m.Helper()
	if err := syscall.Kill(c.status().PID, sig); err != nil {
		c.m.Fatal(err)
	}
	c.m.waitFor(cleanLimit, "the daemon to end", func() error {
		if len(daemons()) > 0 {
			return errors.New("it is there")
		}
		return nil
	})
	if _, err := os.Stat(c.path); err != nil {
		c.m.Errorf("the device has gone with its daemon: %v", err)
	}
}

// recover is `recover`, which prints the device. It says how long that took.
func (c *clone) recover() time.Duration {
	c.m.Helper()
	from := time.Now()
	if got := strings.TrimSpace(c.m.run(command, "recover", c.name)); got != c.path {
		c.m.Fatalf("recover has printed %q, the device was %s", got, c.path)
	}
	return time.Since(from)
}

// TestRecover kills the daemon at random moments under random requests and hydration. Nobody sees an error, no
// acknowledged write is lost, the clone becomes complete, and the destination alone is right.
func TestRecover(t *testing.T) { testRecover(t, syscall.SIGKILL) }

// TestRestart is the same with SIGTERM, as for an upgrade.
func TestRestart(t *testing.T) { testRecover(t, syscall.SIGTERM) }

func testRecover(t *testing.T, sig syscall.Signal) {
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
	var longest time.Duration
	for range count(4, 100) {
		time.Sleep(time.Duration(rand.N(int64(time.Second)))) // anything may be in flight when it ends
		c.end(sig)
		longest = max(longest, c.recover())
	}
	close(stop)
	wait()
	t.Logf("users waited for %v at most, %v", longest.Round(time.Millisecond), sig)
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

// TestRecoverWithoutLiveMap: what the metadata say is not enough for a device in use. It is stopped, so that its
// users see errors and do not wait for ever.
func TestRecoverWithoutLiveMap(t *testing.T) {
	b := newLiveMapBench(t)
	b.m.kernel.expect("I/O error")
	v := b.m.open(b.path, os.O_RDWR)
	if err := b.model.write(v, b.m.buffer(4096), 0, false); err != nil {
		t.Fatal(err)
	}
	b.end(syscall.SIGKILL)
	result := make(chan error, 1)
	go func() { result <- v.read(b.m.buffer(4096), mib) }()
	b.removeLiveMap()
	b.m.expectFailure(b.m.try(command, "recover", b.name), exit.Metadata, "live map")
	select {
	case err := <-result:
		if err == nil {
			t.Error("a read of the device succeeds")
		}
	case <-time.After(cleanLimit):
		t.Error("a read of the device waits for ever")
	}
	b.path = ""
	v.close()
	b.args = append(b.args, "--force")
	b.add()
	b.del()
}
