//go:build device

package devicetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// A daemon is dead: what the commands say and do, to its device and to those of others.

// answersDead checks that every command that asks says what is the matter, at once.
func answersDead(c *harness.Clone, device string, user string) {
	c.M.Helper()
	var s harness.Status
	c.M.Within(answerLimit, "status", func() time.Duration {
		from := time.Now()
		s = c.Status()
		return time.Since(from)
	})
	if s.State != "dead" || !strings.Contains(s.Reason, user) || !strings.Contains(s.Action, "recover "+c.Name) || s.Device != device {
		c.M.Errorf("status is %+v", s)
	}
	text := c.M.MustRun(harness.Command, "status", c.Name)
	if !strings.Contains(text, "Dead: ") || !strings.Contains(text, user) || strings.Contains(text, "%") {
		c.M.Errorf("status says %s", text)
	}
	if text := c.M.MustRun(harness.Command, "list"); !strings.Contains(text, " dead ") {
		c.M.Errorf("list says %s", text)
	}
	for _, args := range [][]string{{"status", c.Name, "-o", "dm"}, {"message", c.Name, "enable_hydration"}, {"set", c.Name, "rate=1MiB"}, {"wait", c.Name}} {
		c.M.Within(answerLimit, strings.Join(args, " "), func() time.Duration {
			o := c.M.Try(harness.Command, args...)
			c.M.ExpectFailure(o, exit.NoAnswer, "dead")
			return o.Took
		})
	}
}

// TestDeadClone: the device of a dead daemon is not taken from under a file system, only with
// --force; then its users get errors, the mount can be given up, and what was synced is in the
// clone.
func TestDeadClone(t *testing.T) {
	runs.On(t, "7.3", runs.OrdinaryClock, runs.CountingClock, runs.Sampled)
	c, files := smallClone(t, "--no-hydration")
	c.M.Kernel.Expect("I/O error", "EXT4-fs error", "EXT4-fs warning", "lost async page write")
	files.Mount(c.Path)
	files.Change(c.M.Random(), 0.2)
	files.Sync()
	c.End(syscall.SIGKILL)
	answersDead(c, c.Path, files.Root)
	if s := c.Status(); len(s.Holders) != 1 || s.Holders[0].Kind != "mount" {
		t.Errorf("held by %+v", s.Holders)
	}
	for _, args := range [][]string{{"del", c.Name}, {"del", c.Name, "--wait", "10ms"}, {"prune"}} {
		o := c.M.Try(harness.Command, args...)
		c.M.ExpectFailure(o, exit.Busy, files.Root, "recover", "--force")
	}
	c.Recover()
	files.Check(nil) // nobody has seen an error
	c.End(syscall.SIGKILL)
	c.M.MustRun(harness.Command, "del", c.Name, "--force")
	c.Path = ""
	if left := devicesAndDaemons(); len(left) > 0 && !strings.Contains(strings.Join(left, " "), "ublkc") {
		t.Errorf("left: %v", left) // ublkcN stays as long as ublkbN is open
	}
	if err := os.WriteFile(filepath.Join(files.Root, "more"), make([]byte, 8<<20), 0o600); err == nil {
		t.Log("a write to the page cache succeeds yet")
	}
	files.Unmount()
	c.M.WaitFor(harness.CleanLimit, "the device to go", func() error {
		if left := devicesAndDaemons(); len(left) > 0 {
			return errors.New(strings.Join(left, ", "))
		}
		return nil
	})
	c.Add() // from the live map: the same session
	files.Mount(c.Path)
	files.Check(nil)
	files.Unmount()
	files.Fsck(c.Path)
	c.Del()
}

// TestRecoverWaits: somebody else has the destination when the daemon is dead. The next one serves
// nothing, says whom it waits for, and gives up when its time is over (I7). Then it goes on.
func TestRecoverWaits(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Sampled)
	c, files := smallClone(t, "--no-hydration")
	files.Mount(c.Path)
	files.Change(c.M.Random(), 0.2)
	c.End(syscall.SIGKILL)
	c.M.WaitFor(harness.CleanLimit, "the kernel to let the dead daemon's destination go", func() error {
		f, err := os.OpenFile("/dev/nulldst", os.O_RDWR|os.O_EXCL, 0)
		if err != nil {
			return err
		}
		return f.Close()
	})
	holder := c.M.Open("/dev/nulldst", os.O_RDWR|os.O_EXCL)
	self := strconv.Itoa(os.Getpid())

	const limit = 2 * time.Second
	o := c.M.Try(harness.Command, "recover", c.Name, "--timeout", limit.String())
	c.M.ExpectFailure(o, exit.Timeout, "/dev/nulldst", self, "recover")
	if o.Took < limit {
		t.Errorf("recover gave up after %v", o.Took)
	}
	answersDead(c, c.Path, files.Root)

	result := make(chan harness.Outcome, 1)
	go func() { result <- c.M.Try(harness.Command, "recover", c.Name) }()
	c.M.WaitFor(harness.CleanLimit, "the recovery to wait", func() error {
		if s := c.Status(); s.State != "recovering" || !strings.Contains(s.Reason, self) {
			return errors.New(s.State + ": " + s.Reason)
		}
		return nil
	})
	if text := c.M.MustRun(harness.Command, "list"); !strings.Contains(text, " recovering ") {
		t.Errorf("list says %s", text)
	}
	for _, args := range [][]string{{"del", c.Name}, {"pause", c.Name}} {
		c.M.ExpectFailure(c.M.Try(harness.Command, args...), exit.Busy, "starting")
	}
	c.M.MustRun(harness.Command, "prune") // it is not dead
	holder.Close()
	if o := <-result; o.Code != 0 {
		t.Fatalf("recover: exit status %d: %s", o.Code, o.Stderr)
	}
	if s := c.Status(); s.State != "paused" {
		t.Errorf("status is %+v", s)
	}
	files.Check(nil)
	files.Unmount()
	c.Del()
}

// zeroTarget answers each request of a foreign server at once.
type zeroTarget struct{ q *ublk.Queue }

func (z *zeroTarget) Request(tag uint16, d ublk.Desc) {
	var err error
	if d.Op == ublk.OpRead {
		err = z.q.Clear(tag, 0, d.Length())
	}
	z.q.Commit(tag, err)
}

func (z *zeroTarget) EndIO(uint32, error) {}
func (z *zeroTarget) Drain()              {}

// foreignDevice makes a block device of another program's, with number id, until the test ends.
func foreignDevice(m *harness.Machine, id int, cookie uint64) *ublk.Device {
	m.Helper()
	ctl, err := ublk.OpenControl()
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { ctl.Close() })
	dev, err := ublk.Create(ctl, ublk.Options{
		ID: id, Queues: 1, Depth: 4, Private: cookie, Recoverable: true,
		Params: ublk.Params{Size: harness.MiB, LogicalBlockSize: harness.Sector, PhysicalBlockSize: harness.Sector},
	})
	if err == nil {
		err = dev.Start(func(q *ublk.Queue) ublk.Target { return &zeroTarget{q} })
	}
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() {
		if err := errors.Join(dev.Stop(harness.CleanLimit), dev.Delete(harness.CleanLimit)); err != nil {
			m.Error(err)
		}
	})
	return dev
}

// deviceNumber is N of /dev/ublkbN.
func deviceNumber(m *harness.Machine, path string) int {
	m.Helper()
	id, err := strconv.Atoi(strings.TrimPrefix(path, "/dev/ublkb"))
	if err != nil {
		m.Fatal(err)
	}
	return id
}

// TestForeignDevice: what another program serves is nobody's to recover, prune or delete here, not
// even when its number is that of a dead clone's device.
func TestForeignDevice(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	c := m.AddClone(source, dest, m.Missing("meta"), "--no-hydration")
	number, path := deviceNumber(m, c.Path), c.Path
	c.End(syscall.SIGKILL)
	if err := harness.DeleteDevices(); err != nil { // of the clone, by somebody
		t.Fatal(err)
	}
	foreignDevice(m, number, 0x666f726569676e)
	serves := func(when string) {
		t.Helper()
		v := m.Open(path, os.O_RDWR)
		defer v.Close()
		if err := v.Read(m.Buffer(4096), 4096); err != nil {
			t.Errorf("after %s the foreign device: %v", when, err)
		}
	}
	serves("nothing")
	if s := c.Status(); s.State != "dead" || !strings.Contains(s.Reason, "left no block device") {
		t.Errorf("status is %+v", s)
	}
	m.ExpectFailure(m.Try(harness.Command, "recover", c.Name), exit.Other, "gone", "add")
	m.ExpectFailure(m.Try(harness.Command, "recover", "--all"), exit.Other, "gone")
	serves("recover")
	if out := m.MustRun(harness.Command, "prune", "--force"); strings.TrimSpace(out) != c.Name {
		t.Errorf("prune has printed %q", out)
	}
	serves("prune")
	c.Add()
	if c.Path == path {
		t.Errorf("the clone has the foreign device %s", path)
	}
	serves("add")
	c.End(syscall.SIGKILL)
	m.MustRun(harness.Command, "del", c.Name, "--force")
	serves("del")
	c.Add()
	c.Del()
}

// TestPruneWithoutDefinition: the device of a clone whose definition is gone is known by its
// cookie.
func TestPruneWithoutDefinition(t *testing.T) {
	runs.On(t, "7.3")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	c := m.AddClone(source, dest, m.Missing("meta"), "--no-hydration")
	w := harness.NewModel(16*harness.MiB, 4*harness.KiB)
	w.Set(0, 16*harness.MiB, harness.Zeros)
	foreign := foreignDevice(m, ublk.AnyID, 0x666f726569676e)
	v := m.Open(c.Path, os.O_RDWR)
	if err := w.Write(v, m.Buffer(4096), 4096, false); err != nil {
		t.Fatal(err)
	}
	dead := c.Path
	c.End(syscall.SIGKILL)
	if err := os.RemoveAll(harness.RunDir); err != nil {
		t.Fatal(err)
	}
	m.ExpectFailure(m.Try(harness.Command, "prune"), exit.Busy, dead, strconv.Itoa(os.Getpid()))
	v.Close()
	if out := m.MustRun(harness.Command, "prune"); strings.TrimSpace(out) != dead {
		t.Errorf("prune has printed %q", out)
	}
	ctl, err := ublk.OpenControl()
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	if info, err := ctl.GetDevInfo(context.Background(), foreign.Info().ID); err != nil || info.State != ublk.StateLive {
		t.Errorf("the foreign device: %+v, %v", info, err)
	}
	c.Add()
	w.Check(m, c.Path)
	c.Del()
}
