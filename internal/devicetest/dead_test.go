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

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// A daemon is dead: what the commands say and do, to its device and to those of others.

// answersDead checks that every command that asks says what is the matter, at once.
func (c *clone) answersDead(device string, user string) {
	c.m.Helper()
	var s status
	c.m.within(answerLimit, "status", func() time.Duration {
		from := time.Now()
		s = c.status()
		return time.Since(from)
	})
	if s.State != "dead" || !strings.Contains(s.Reason, user) || !strings.Contains(s.Action, "recover "+c.name) || s.Device != device {
		c.m.Errorf("status is %+v", s)
	}
	text := c.m.run(command, "status", c.name)
	if !strings.Contains(text, "Dead: ") || !strings.Contains(text, user) || strings.Contains(text, "%") {
		c.m.Errorf("status says %s", text)
	}
	if text := c.m.run(command, "list"); !strings.Contains(text, " dead ") {
		c.m.Errorf("list says %s", text)
	}
	for _, args := range [][]string{{"status", c.name, "-o", "dm"}, {"message", c.name, "enable_hydration"}, {"set", c.name, "rate=1MiB"}, {"wait", c.name}} {
		c.m.within(answerLimit, strings.Join(args, " "), func() time.Duration {
			o := c.m.try(command, args...)
			c.m.expectFailure(o, exit.NoAnswer, "dead")
			return o.took
		})
	}
}

// TestDeadClone: the device of a dead daemon is not taken from under a file system, only with --force; then its
// users get errors, the mount can be given up, and what was synced is in the clone.
func TestDeadClone(t *testing.T) {
	runs.On(t, "7.3", runs.OrdinaryClock, runs.CountingClock)
	c, files := smallClone(t, "--no-hydration")
	c.m.kernel.expect("I/O error", "EXT4-fs error", "EXT4-fs warning", "lost async page write")
	files.mount(c.path)
	files.change(c.m.random(), 0.2)
	files.sync()
	c.end(syscall.SIGKILL)
	c.answersDead(c.path, files.root)
	if s := c.status(); len(s.Holders) != 1 || s.Holders[0].Kind != "mount" {
		t.Errorf("held by %+v", s.Holders)
	}
	for _, args := range [][]string{{"del", c.name}, {"del", c.name, "--wait", "10ms"}, {"prune"}} {
		o := c.m.try(command, args...)
		c.m.expectFailure(o, exit.Busy, files.root, "recover", "--force")
	}
	c.recover()
	files.check(nil) // nobody has seen an error
	c.end(syscall.SIGKILL)
	c.m.run(command, "del", c.name, "--force")
	c.path = ""
	if left := devicesAndDaemons(); len(left) > 0 && !strings.Contains(strings.Join(left, " "), "ublkc") {
		t.Errorf("left: %v", left) // ublkcN stays as long as ublkbN is open
	}
	if err := os.WriteFile(filepath.Join(files.root, "more"), make([]byte, 8<<20), 0o600); err == nil {
		t.Log("a write to the page cache succeeds yet")
	}
	files.unmount()
	c.m.waitFor(cleanLimit, "the device to go", func() error {
		if left := devicesAndDaemons(); len(left) > 0 {
			return errors.New(strings.Join(left, ", "))
		}
		return nil
	})
	c.add() // from the live map: the same session
	files.mount(c.path)
	files.check(nil)
	files.unmount()
	files.examine(c.path)
	c.del()
}

// TestRecoverWaits: somebody else has the destination when the daemon is dead. The next one serves nothing, says
// whom it waits for, and gives up when its time is over (I7). Then it goes on.
func TestRecoverWaits(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	c, files := smallClone(t, "--no-hydration")
	files.mount(c.path)
	files.change(c.m.random(), 0.2)
	c.end(syscall.SIGKILL)
	c.m.waitFor(cleanLimit, "the kernel to let the dead daemon's destination go", func() error {
		f, err := os.OpenFile("/dev/nulldst", os.O_RDWR|os.O_EXCL, 0)
		if err != nil {
			return err
		}
		return f.Close()
	})
	holder := c.m.open("/dev/nulldst", os.O_RDWR|os.O_EXCL)
	self := strconv.Itoa(os.Getpid())

	const limit = 2 * time.Second
	o := c.m.try(command, "recover", c.name, "--timeout", limit.String())
	c.m.expectFailure(o, exit.Timeout, "/dev/nulldst", self, "recover")
	if o.took < limit {
		t.Errorf("recover gave up after %v", o.took)
	}
	c.answersDead(c.path, files.root)

	result := make(chan outcome, 1)
	go func() { result <- c.m.try(command, "recover", c.name) }()
	c.m.waitFor(cleanLimit, "the recovery to wait", func() error {
		if s := c.status(); s.State != "recovering" || !strings.Contains(s.Reason, self) {
			return errors.New(s.State + ": " + s.Reason)
		}
		return nil
	})
	if text := c.m.run(command, "list"); !strings.Contains(text, " recovering ") {
		t.Errorf("list says %s", text)
	}
	for _, args := range [][]string{{"del", c.name}, {"pause", c.name}} {
		c.m.expectFailure(c.m.try(command, args...), exit.Busy, "starting")
	}
	c.m.run(command, "prune") // it is not dead
	holder.close()
	if o := <-result; o.code != 0 {
		t.Fatalf("recover: exit status %d: %s", o.code, o.stderr)
	}
	if s := c.status(); s.State != "paused" {
		t.Errorf("status is %+v", s)
	}
	files.check(nil)
	files.unmount()
	c.del()
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

func (z *zeroTarget) Complete(uint32, error) {}
func (z *zeroTarget) Drain()                 {}

// foreignDevice makes a block device of another program's, with number id, until the test ends.
func (m *machine) foreignDevice(id int, mark uint64) *ublk.Device {
	m.Helper()
	ctl, err := ublk.OpenControl()
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { ctl.Close() })
	dev, err := ublk.Create(ctl, ublk.Options{
		ID: id, Queues: 1, Depth: 4, Private: mark, Recoverable: true,
		Params: ublk.Params{Size: mib, LogicalBlockSize: sector, PhysicalBlockSize: sector},
	})
	if err == nil {
		err = dev.Start(func(q *ublk.Queue) ublk.Target { return &zeroTarget{q} })
	}
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() {
		if err := errors.Join(dev.Stop(cleanLimit), dev.Delete(cleanLimit)); err != nil {
			m.Error(err)
		}
	})
	return dev
}

// deviceNumber is N of /dev/ublkbN.
func (m *machine) deviceNumber(path string) int {
	m.Helper()
	id, err := strconv.Atoi(strings.TrimPrefix(path, "/dev/ublkb"))
	if err != nil {
		m.Fatal(err)
	}
	return id
}

// TestForeignDevice: what another program serves is nobody's to recover, prune or delete here, not even when its
// number is that of a dead clone's device.
func TestForeignDevice(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	c := m.addClone(source, dest, m.missing("meta"), "--no-hydration")
	number, path := m.deviceNumber(c.path), c.path
	c.end(syscall.SIGKILL)
	if err := deleteDevices(); err != nil { // of the clone, by somebody
		t.Fatal(err)
	}
	m.foreignDevice(number, 0x666f726569676e)
	serves := func(when string) {
		t.Helper()
		v := m.open(path, os.O_RDWR)
		defer v.close()
		if err := v.read(m.buffer(4096), 4096); err != nil {
			t.Errorf("after %s the foreign device: %v", when, err)
		}
	}
	serves("nothing")
	if s := c.status(); s.State != "dead" || !strings.Contains(s.Reason, "left no block device") {
		t.Errorf("status is %+v", s)
	}
	m.expectFailure(m.try(command, "recover", c.name), exit.Other, "gone", "add")
	m.expectFailure(m.try(command, "recover", "--all"), exit.Other, "gone")
	serves("recover")
	if out := m.run(command, "prune", "--force"); strings.TrimSpace(out) != c.name {
		t.Errorf("prune has printed %q", out)
	}
	serves("prune")
	c.add()
	if c.path == path {
		t.Errorf("the clone has the foreign device %s", path)
	}
	serves("add")
	c.end(syscall.SIGKILL)
	m.run(command, "del", c.name, "--force")
	serves("del")
	c.add()
	c.del()
}

// TestPruneWithoutDefinition: the device of a clone whose definition is gone is known by its mark.
func TestPruneWithoutDefinition(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	c := m.addClone(source, dest, m.missing("meta"), "--no-hydration")
	w := newModel(16*mib, 4*kib)
	w.set(0, 16*mib, zeros)
	foreign := m.foreignDevice(ublk.AnyID, 0x666f726569676e)
	v := m.open(c.path, os.O_RDWR)
	if err := w.write(v, m.buffer(4096), 4096, false); err != nil {
		t.Fatal(err)
	}
	dead := c.path
	c.end(syscall.SIGKILL)
	if err := os.RemoveAll(runDir); err != nil {
		t.Fatal(err)
	}
	m.expectFailure(m.try(command, "prune"), exit.Busy, dead, strconv.Itoa(os.Getpid()))
	v.close()
	if out := m.run(command, "prune"); strings.TrimSpace(out) != dead {
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
	c.add()
	w.check(m, c.path)
	c.del()
}
