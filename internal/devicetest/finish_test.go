//go:build device

package devicetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A complete clone is handed over to its destination.

// finishFault is where a finish goes wrong in ublk-clone-faults.
const finishFault = "UBLK_CLONE_FINISH_FAULT"

// finishBench is a clone with a layer, whose destination is larger, with junk behind the clone's
// end. It can discard, so that some of the clone is direct when it is finished.
type finishBench struct {
	*harness.Clone
	source, dest, meta *harness.Disk
	size               int64
	files              *harness.FileTree
}

const finishSize = 24 * harness.MiB

// newFinishBench makes the clone of a file system, mounts it and writes to it. fault is for its
// daemon, "" for none.
func newFinishBench(t *testing.T, fault string, args ...string) *finishBench {
	m := harness.New(t)
	m.DropLiveMaps() // what other tests have left by design: a finish leaves nothing
	_ = os.RemoveAll(harness.RecordDir)
	b := &finishBench{
		source: m.NullBlk("src", harness.NullOptions{MiB: finishSize / harness.MiB}), dest: m.NullBlk("dst", harness.NullOptions{MiB: finishSize/harness.MiB + 3, Discard: true}),
		meta: m.Missing("meta"), size: finishSize,
	}
	m.FillDisk(b.dest, harness.Junk)
	b.files = m.NewExt4(m.Random(), b.source, 2*harness.MiB)
	b.Clone = m.NewClone(b.source, b.dest, b.meta, append(args, "--dm", harness.LayerName, "--no-hydration")...)
	program := harness.Command
	if fault != "" {
		t.Setenv(finishFault, fault)
		program = faulty
	}
	b.Path = harness.Opened(m.MustRun(program, append([]string{"add", b.Name}, b.Args...)...))
	t.Setenv(finishFault, "")
	m.Cleanup(func() { m.Try("dmsetup", "remove", "--retry", harness.LayerName) }) // which outlives the clone
	b.files.Mount(b.Path)
	b.files.Change(m.Random(), 0.2)
	return b
}

// hydrate waits until all is in the destination.
func (b *finishBench) hydrate() {
	b.M.Helper()
	b.HydrateFast()
	b.WaitHydrated()
}

// finished checks that nothing is left but the layer, which leads to the destination, with the file
// system that is mounted on it; and that the destination alone has all of it.
func (b *finishBench) finished() {
	b.M.Helper()
	b.Path = ""
	b.M.WaitFor(harness.CleanLimit, "clone and daemon to be gone", func() error {
		if left := devicesAndDaemons(); len(left) > 0 {
			return errors.New(strings.Join(left, ", "))
		}
		return nil
	})
	if got := b.M.Under(); got != b.dest.Number() {
		b.M.Fatalf("the layer leads to %s, not to the destination", got)
	}
	for _, path := range []string{b.meta.Path, harness.RunDir + "/" + b.Name + ".json"} {
		if _, err := os.Stat(path); err == nil {
			b.M.Errorf("%s is there", path)
		}
	}
	if kept := b.M.KeptFiles(); len(kept) > 0 {
		b.M.Errorf("left: %v", kept)
	}
	f, err := os.OpenFile(b.source.Path, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		b.M.Errorf("the source is not free: %v", err)
	} else {
		f.Close()
	}
	b.source.Removed()
	b.files.Check(nil)
	b.files.Change(b.M.Random(), 0.1)
	b.files.Check(nil)
	b.files.Unmount()
	b.M.MustRun("dmsetup", "remove", "--retry", harness.LayerName)
	b.files.Mount(b.dest.Path)
	b.files.Check(nil)
	b.files.Unmount()
	b.files.Fsck(b.dest.Path)
	b.M.CheckTail(b.dest, b.size)
}

// TestFinish: refused as long as anything is left, or somebody has the block device itself open;
// then under a mounted file system.
func TestFinish(t *testing.T) {
	runs.On(t, "7.3")
	b := newFinishBench(t, "")
	m := b.M
	m.ExpectFailure(m.Try(harness.Command, "finish", b.Name), exit.Refused, "not in the destination")
	b.hydrate()
	v := m.Open(b.Status().Device, os.O_RDONLY)
	m.ExpectFailure(m.Try(harness.Command, "finish", b.Name), exit.Busy, strconv.Itoa(os.Getpid()), harness.LayerPath)
	v.Close()
	if s := b.Status(); s.State != "hydrated" || len(s.DMName) == 0 {
		t.Errorf("after two that were refused: %+v", s)
	}
	b.files.Change(m.Random(), 0.2)
	waiting := exec.Command(harness.Command, "wait", b.Name, "--for", "finished", "--timeout", "60s")
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	m.WaitFor(harness.CleanLimit, "a command that waits", func() error {
		if n := strings.Count(m.MustRun("ps", "-e", "-o", "args"), "--for finished"); n == 0 {
			return errors.New("it has not begun")
		}
		return nil
	})
	if got := strings.TrimSpace(m.MustRun(harness.Command, "finish", b.Name)); got != harness.LayerPath {
		t.Errorf("finish has printed %q", got)
	}
	if err := waiting.Wait(); err != nil {
		t.Errorf("wait --for finished: %v", err)
	}
	m.ExpectFailure(m.Try(harness.Command, "finish", b.Name), exit.NoClone)
	b.finished()
}

// startVerify has fio write and read what it has written at random for so many seconds, in a file
// on the clone, with a checksum in each block. wait fails the test if it has ended before.
func (b *finishBench) startVerify(seconds int) (wait func()) {
	b.M.Helper()
	var out bytes.Buffer
	dir := filepath.Join(b.files.Root, harness.OthersDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.M.Fatal(err)
	}
	cmd := exec.Command("fio", "--name=verify", "--filename="+filepath.Join(dir, "verify"), "--size=4m", "--direct=1", "--ioengine=libaio",
		"--iodepth=8", "--rw=randrw", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--time_based",
		fmt.Sprintf("--runtime=%d", seconds), "--randseed="+strconv.FormatUint(harness.Seed(), 10))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		b.M.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	b.goesOn(100)
	return func() {
		var err error
		select {
		case err = <-ended:
			b.M.Errorf("fio has ended too early: %v", err)
		default:
			before := b.dest.Traffic().Writes
			err = <-ended
			b.M.Logf("%d writes of the destination since the layer leads there", b.dest.Traffic().Writes-before)
		}
		if err != nil {
			b.M.Errorf("fio: %v\n%s", err, &out)
		}
		for line := range strings.SplitSeq(out.String(), "\n") {
			if strings.Contains(line, "IOPS=") {
				b.M.Log(strings.TrimSpace(line))
			}
		}
	}
}

// goesOn waits for so many writes of the layer.
func (b *finishBench) goesOn(writes int64) {
	b.M.Helper()
	layer := b.M.Block(harness.LayerPath)
	before := layer.Traffic().Writes
	b.M.WaitFor(harness.CleanLimit, "fio to write", func() error {
		if n := layer.Traffic().Writes - before; n < writes {
			return fmt.Errorf("%d writes", n)
		}
		return nil
	})
}

// TestFinishUnderFio: behind each step that can fail before the layer leads to the destination a
// finish fails once, and is taken back; the last one succeeds. fio goes on over all of them.
func TestFinishUnderFio(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newFinishBench(t, "fail 2 3 4")
	b.hydrate()
	wait := b.startVerify(30)
	for _, step := range []string{"2", "3", "4"} {
		b.M.ExpectFailure(b.M.Try(harness.Command, "finish", b.Name), exit.Dest, "step "+step, "as before")
		if b.M.LedTo(b.M.Block(b.Status().Device).Number()) == 0 {
			t.Fatal("the layer does not lead to the block device")
		}
		b.goesOn(50)
		if f, err := os.OpenFile(b.dest.Path, os.O_RDWR|os.O_EXCL, 0); err == nil {
			f.Close()
			t.Error("the destination is not locked")
		}
	}
	b.M.MustRun(harness.Command, "finish", b.Name)
	wait()
	b.finished()
}

// TestFinishKilled: the daemon dies behind each of the steps before the layer leads to the
// destination, in turn; each time the clone is recovered, and can be finished.
func TestFinishKilled(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	b := newFinishBench(t, "die 1")
	b.hydrate()
	for step := 1; step <= 4; step++ {
		b.M.ExpectFailure(b.M.Try(harness.Command, "finish", b.Name), exit.NoAnswer)
		t.Setenv(finishFault, fmt.Sprintf("die %d", step+1))
		if got := harness.Opened(b.M.MustRun(faulty, "recover", b.Name)); got != b.Path {
			t.Fatalf("recover has printed %q", got)
		}
		b.files.Check(nil)
		b.files.Change(b.M.Random(), 0.1)
	}
	b.M.MustRun(harness.Command, "finish", b.Name) // its daemon dies behind step 5, and the command does the rest
	b.finished()
}

// TestFinishKilledLater: behind the others, when there is nothing to serve any more, the command
// itself does the rest.
func TestFinishKilledLater(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	for step := 6; step <= 10; step += harness.Count(4, 1) {
		t.Run(strconv.Itoa(step), func(t *testing.T) {
			b := newFinishBench(t, fmt.Sprintf("die %d", step))
			b.hydrate()
			b.M.MustRun(harness.Command, "finish", b.Name)
			b.finished()
		})
	}
}

// TestFinishLater: the death is found by another command, later.
func TestFinishLater(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	for _, verb := range []string{"finish", "add", "recover", "del"}[:harness.Count(2, 4)] {
		t.Run(verb, func(t *testing.T) {
			b := newFinishBench(t, "die 5")
			b.hydrate()
			finishAndHangUp(b.Clone, b.WaitEnded)
			if s := b.Status(); s.State != "dead" || !strings.Contains(s.Action, "finish") {
				t.Errorf("status %+v", s)
			}
			args := []string{verb, b.Name}
			if verb == "add" {
				b.M.ExpectFailure(b.M.Try(harness.Command, append(args, b.Args...)...), exit.Exists, "stands alone")
			} else {
				b.M.MustRun(harness.Command, args...)
			}
			if verb == "del" { // which leaves the metadata
				if err := os.Remove(b.meta.Path); err != nil {
					t.Error(err)
				}
			}
			b.finished()
		})
	}
}

// TestFinishPlainKilled: command and daemon die behind each step from which on there is nothing to
// serve any more. The same add, which is what a user tries next, does not begin anew over what was
// written to the clone.
func TestFinishPlainKilled(t *testing.T) {
	runs.On(t, runs.EveryKernel, runs.Sampled)
	for step := 6; step <= 10; step++ {
		t.Run(strconv.Itoa(step), func(t *testing.T) {
			m := harness.New(t)
			source, dest := m.NullBlk("src", harness.NullOptions{MiB: 8}), m.NullBlk("dst", harness.NullOptions{MiB: 8})
			m.FillDisk(source, harness.Original)
			c := m.NewClone(source, dest, m.Missing("meta"))
			t.Setenv(finishFault, fmt.Sprintf("die %d", step))
			c.Path = harness.Opened(m.MustRun(faulty, append([]string{"add", c.Name}, c.Args...)...))
			t.Setenv(finishFault, "")
			written := bytes.Repeat([]byte{0xa5}, 64<<10)
			overwrite(t, c.Path, written)
			c.WaitHydrated()
			finishAndHangUp(c, func(pid int) {
				m.WaitFor(harness.CleanLimit, "the daemon to end", func() error {
					if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
						return fmt.Errorf("process %d is there", pid)
					}
					return nil
				})
			})
			m.ExpectFailure(m.Try(harness.Command, append([]string{"add", c.Name}, c.Args...)...), exit.Exists, "stands alone")
			c.Path = ""
			m.ExpectFailure(m.Try(harness.Command, "status", c.Name), exit.NoClone)
			found := make([]byte, len(written))
			f, err := os.Open(dest.Path)
			if err == nil {
				_, err = io.ReadFull(f, found)
				err = errors.Join(err, f.Close())
			}
			if err != nil || !bytes.Equal(found, written) {
				t.Errorf("the destination has lost what was written to the clone (%v)", err)
			}
		})
	}
}

// overwrite replaces the beginning of a device, durably.
func overwrite(t *testing.T, path string, content []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_SYNC, 0)
	if err == nil {
		_, err = f.WriteAt(content, 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// finishAndHangUp asks the daemon to finish, as a command that is killed, and waits for the
// daemon's end.
func finishAndHangUp(c *harness.Clone, waitEnded func(pid int)) {
	c.M.Helper()
	pid := c.Status().PID
	conn, err := net.Dial("unix", filepath.Join(harness.RunDir, c.Name+".sock"))
	if err == nil {
		_, err = conn.Write([]byte(`{"verb":"finish","wait_ms":5000}` + "\n"))
	}
	if err != nil {
		c.M.Fatal(err)
	}
	waitEnded(pid)
	_ = conn.Close()
}

// TestFinishPlain: without a layer nobody may have the block device open; the destination may be a
// file. With one it is to be a device.
func TestFinishPlain(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	source, meta := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("meta", harness.NullOptions{MiB: 2})
	files := m.NewExt4(m.Random(), source, 2*harness.MiB)
	m.Dir = m.Ext4Dir(64)
	dest := m.Missing("dest")
	c := m.AddClone(source, dest, meta)
	c.WaitHydrated()
	files.Mount(c.Path)
	m.ExpectFailure(m.Try(harness.Command, "finish", c.Name, "--timeout", "1s"), exit.Busy, files.Root)
	files.Check(nil)
	files.Unmount()
	if out := m.MustRun(harness.Command, "finish", c.Name, "-o", "json", "--keep-metadata"); !strings.Contains(out, `"state": "finished"`) {
		t.Errorf("finish has printed %s", out)
	}
	c.Path = ""
	m.ExpectFailure(m.Try(harness.Command, "status", c.Name), exit.NoClone)
	c.Add() // by the metadata that was kept
	if s := c.Status(); s.State != "hydrated" {
		t.Errorf("after --keep-metadata it is %s", s.State)
	}
	m.MustRun(harness.Command, "finish", c.Name)
	c.Path = ""
	m.ExpectFailure(m.Try(harness.Command, "metadata", "dump", meta.Path), exit.Metadata)
	m.ExpectFailure(m.Try(harness.Command, append([]string{"add", c.Name}, c.Args...)...), exit.Refused, "ext4") // as a new clone
	files.Mount(m.Loop(dest.Path, harness.Sector).Path)
	files.Check(nil)
	files.Unmount()
}

// TestFinishFileUnderLayer is refused.
func TestFinishFileUnderLayer(t *testing.T) {
	runs.On(t, "7.3")
	m := harness.New(t)
	source := m.NullBlk("src", harness.NullOptions{MiB: 8})
	m.FillDisk(source, harness.Original)
	m.Dir = m.Ext4Dir(32)
	c := m.AddClone(source, m.Missing("dest"), m.Missing("meta"), "--dm", harness.LayerName)
	c.WaitHydrated()
	m.ExpectFailure(m.Try(harness.Command, "finish", c.Name), exit.Refused, "file", "del")
	c.Del()
	m.LayerGone()
}

// TestFinishStuck: a destination that does not answer keeps the layer from being suspended. After
// the limit it goes on as before, and so do its users when the destination does.
func TestFinishStuck(t *testing.T) {
	runs.On(t, "6.12")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 8}), m.FaultyDisk("dst", 8)
	m.FillDisk(source, harness.Original)
	c := m.AddClone(source, dest.Disk, m.Missing("meta"), "--dm", harness.LayerName)
	c.WaitHydrated()
	v := m.Open(c.Path, os.O_RDWR)
	dest.Hold()
	done := make(chan error, 1)
	go func() { done <- v.Write(m.Buffer(4096), 0) }()
	m.WaitFor(harness.CleanLimit, "a write in flight", func() error {
		if n := m.Block("/dev/" + strings.TrimPrefix(c.Status().Device, "/dev/")).Writing(); n == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	m.ExpectFailure(m.Try(harness.Command, "finish", c.Name, "--timeout", "1s"), exit.Timeout, "as before")
	if info := m.MustRun("dmsetup", "info", harness.LayerName); !strings.Contains(info, "ACTIVE") {
		t.Errorf("the layer is %s", info)
	}
	dest.Release()
	c.NoError(<-done)
	m.MustRun(harness.Command, "finish", c.Name)
	c.Path = ""
	c.NoError(v.Read(m.Buffer(4096), harness.MiB))
	v.Close()
	m.MustRun("dmsetup", "remove", "--retry", harness.LayerName)
}

// TestFinishRecipe is dm-clone's: without hydration, mounted and trimmed; then hydrated and handed
// over. With our own words, and with its table and messages.
func TestFinishRecipe(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	for _, words := range []string{"ours", "dm-clone"} {
		t.Run(words, func(t *testing.T) {
			m := harness.New(t)
			const size = 32 * harness.MiB
			source, dest, meta := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB, Discard: true}), m.NullBlk("meta", harness.NullOptions{MiB: 4})
			files := m.NewExt4(m.Random(), source, 2*harness.MiB)
			c := m.NewClone(source, dest, meta, "--no-hydration", "--dm", harness.LayerName)
			if words == "dm-clone" {
				c.Args = []string{"--dm", harness.LayerName, "--table", fmt.Sprintf("0 %d clone %s %s %s 8 1 no_hydration", size/harness.Sector, meta.Path, dest.Path, source.Path)}
			}
			c.Add()
			files.Mount(c.Path)
			m.MustRun("fstrim", files.Root)
			if words == "dm-clone" {
				m.MustRun(harness.Command, "message", c.Name, "0", "enable_hydration")
			} else {
				m.MustRun(harness.Command, "resume", c.Name)
			}
			s := c.WaitHydrated()
			if s.Bytes.Discarded < size/4 {
				t.Errorf("%d bytes were discarded", s.Bytes.Discarded)
			}
			m.MustRun(harness.Command, "finish", c.Name)
			c.Path = ""
			files.Check(nil)
			files.Unmount()
			m.MustRun("dmsetup", "remove", "--retry", harness.LayerName)
			files.Fsck(dest.Path)
		})
	}
}
