//go:build device

package devicetest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A complete clone is handed over to its destination.

// finishFault is where a finish goes wrong in ublk-clone-faults.
const finishFault = "UBLK_CLONE_FINISH_FAULT"

// finishBench is a clone with a layer, whose destination is larger, with junk behind the clone's end.
type finishBench struct {
	*clone
	source, dest, meta *disk
	size               int64
	files              *fileTree
}

const finishSize = 24 * mib

// newFinishBench makes the clone of a file system, mounts it and writes to it. fault is for its daemon, "" for none.
func newFinishBench(t *testing.T, fault string, args ...string) *finishBench {
	m := newMachine(t)
	m.dropLiveMaps() // what other tests have left by design: a finish leaves nothing
	os.RemoveAll(recordDir)
	b := &finishBench{
		source: m.nullBlk("src", nullOptions{mib: finishSize / mib}), dest: m.nullBlk("dst", nullOptions{mib: finishSize/mib + 3}),
		meta: m.missing("meta"), size: finishSize,
	}
	m.fillDisk(b.dest, junk)
	b.files = m.newExt4(m.random(), b.source, 2*mib)
	b.clone = m.newClone(b.source, b.dest, b.meta, append(args, "--dm", layerName, "--no-hydration")...)
	program := command
	if fault != "" {
		t.Setenv(finishFault, fault)
		program = faulty
	}
	b.path = strings.TrimSpace(m.run(program, append([]string{"add", b.name}, b.args...)...))
	t.Setenv(finishFault, "")
	m.Cleanup(func() { m.try("dmsetup", "remove", "--retry", layerName) }) // which outlives the clone
	b.files.mount(b.path)
	b.files.change(m.random(), 0.2)
	return b
}

// hydrate waits until all is in the destination.
func (b *finishBench) hydrate() {
	b.m.Helper()
	b.hydrateFast()
	b.waitHydrated()
}

// finished checks that nothing is left but the layer, which leads to the destination, with the file system that is mounted
// on it; and that the destination alone has all of it.
func (b *finishBench) finished() {
	b.m.Helper()
	b.path = ""
	b.m.waitFor(cleanLimit, "clone and daemon to be gone", func() error {
		if left := devicesAndDaemons(); len(left) > 0 {
			return errors.New(strings.Join(left, ", "))
		}
		return nil
	})
	if got := b.m.under(); got != b.dest.number() {
		b.m.Fatalf("the layer leads to %s, not to the destination", got)
	}
	for _, path := range []string{b.meta.path, runDir + "/" + b.name + ".json"} {
		if _, err := os.Stat(path); err == nil {
			b.m.Errorf("%s is there", path)
		}
	}
	if kept := b.m.keptFiles(); len(kept) > 0 {
		b.m.Errorf("left: %v", kept)
	}
	f, err := os.OpenFile(b.source.path, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		b.m.Errorf("the source is not free: %v", err)
	} else {
		f.Close()
	}
	b.source.removed()
	b.files.check(nil)
	b.files.change(b.m.random(), 0.1)
	b.files.check(nil)
	b.files.unmount()
	b.m.run("dmsetup", "remove", "--retry", layerName)
	b.files.mount(b.dest.path)
	b.files.check(nil)
	b.files.unmount()
	b.files.examine(b.dest.path)
	b.m.checkTail(b.dest, b.size)
}

// TestFinish: refused as long as anything is left, or somebody has the block device itself open; then under a mounted file
// system.
func TestFinish(t *testing.T) {
	runs.On(t, "7.3")
	b := newFinishBench(t, "")
	m := b.m
	m.expectFailure(m.try(command, "finish", b.name), exit.Refused, "not in the destination")
	b.hydrate()
	v := m.open(b.status().Device, os.O_RDONLY)
	m.expectFailure(m.try(command, "finish", b.name), exit.Busy, strconv.Itoa(os.Getpid()), layerPath)
	v.close()
	if s := b.status(); s.State != "hydrated" || len(s.DMName) == 0 {
		t.Errorf("after two that were refused: %+v", s)
	}
	b.files.change(m.random(), 0.2)
	waiting := exec.Command(command, "wait", b.name, "--for", "finished", "--timeout", "60s")
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	m.waitFor(cleanLimit, "a command that waits", func() error {
		if n := strings.Count(m.run("ps", "-e", "-o", "args"), "--for finished"); n == 0 {
			return errors.New("it has not begun")
		}
		return nil
	})
	if got := strings.TrimSpace(m.run(command, "finish", b.name)); got != layerPath {
		t.Errorf("finish has printed %q", got)
	}
	if err := waiting.Wait(); err != nil {
		t.Errorf("wait --for finished: %v", err)
	}
	m.expectFailure(m.try(command, "finish", b.name), exit.NoClone)
	b.finished()
}

// startVerify has fio write and read what it has written at random for so many seconds, in a file on the clone, with a
// checksum in each block. wait fails the test if it has ended before.
func (b *finishBench) startVerify(seconds int) (wait func()) {
	b.m.Helper()
	var out bytes.Buffer
	folder := filepath.Join(b.files.root, othersFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		b.m.Fatal(err)
	}
	cmd := exec.Command("fio", "--name=verify", "--filename="+filepath.Join(folder, "verify"), "--size=4m", "--direct=1", "--ioengine=libaio",
		"--iodepth=8", "--rw=randrw", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--time_based",
		fmt.Sprintf("--runtime=%d", seconds), "--randseed="+strconv.FormatUint(seed(), 10))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		b.m.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	b.goesOn(100)
	return func() {
		var err error
		select {
		case err = <-ended:
			b.m.Errorf("fio has ended too early: %v", err)
		default:
			before := b.dest.traffic().writes
			err = <-ended
			b.m.Logf("%d writes of the destination since the layer leads there", b.dest.traffic().writes-before)
		}
		if err != nil {
			b.m.Errorf("fio: %v\n%s", err, &out)
		}
		for line := range strings.SplitSeq(out.String(), "\n") {
			if strings.Contains(line, "IOPS=") {
				b.m.Log(strings.TrimSpace(line))
			}
		}
	}
}

// goesOn waits for so many writes of the block device.
func (b *finishBench) goesOn(writes int64) {
	b.m.Helper()
	device := b.m.block(b.status().Device)
	before := device.traffic().writes
	b.m.waitFor(cleanLimit, "fio to write", func() error {
		if n := device.traffic().writes - before; n < writes {
			return fmt.Errorf("%d writes", n)
		}
		return nil
	})
}

// TestFinishUnderFio: behind each step that can fail before the layer leads to the destination a finish fails once, and is
// taken back; the last one succeeds. fio goes on over all of them.
func TestFinishUnderFio(t *testing.T) {
	runs.On(t, "6.18")
	b := newFinishBench(t, "fail 2 3 4")
	b.hydrate()
	wait := b.startVerify(30)
	for _, step := range []string{"2", "3", "4"} {
		b.m.expectFailure(b.m.try(command, "finish", b.name), exit.Dest, "step "+step, "as before")
		if got := b.m.under(); got != b.m.block(b.status().Device).number() {
			t.Fatalf("the layer leads to %s, not to the block device", got)
		}
		b.goesOn(50)
		if f, err := os.OpenFile(b.dest.path, os.O_RDWR|os.O_EXCL, 0); err == nil {
			f.Close()
			t.Error("the destination is not locked")
		}
	}
	b.m.run(command, "finish", b.name)
	wait()
	b.finished()
}

// TestFinishKilled: the daemon dies behind each of the steps before the layer leads to the destination, in turn; each time the
// clone is recovered, and can be finished.
func TestFinishKilled(t *testing.T) {
	runs.On(t, "6.12")
	b := newFinishBench(t, "die 1")
	b.hydrate()
	for step := 1; step <= 4; step++ {
		b.m.expectFailure(b.m.try(command, "finish", b.name), exit.NoAnswer)
		t.Setenv(finishFault, fmt.Sprintf("die %d", step+1))
		if got := strings.TrimSpace(b.m.run(faulty, "recover", b.name)); got != b.path {
			t.Fatalf("recover has printed %q", got)
		}
		b.files.check(nil)
		b.files.change(b.m.random(), 0.1)
	}
	b.m.run(command, "finish", b.name) // its daemon dies behind step 5, and the command does the rest
	b.finished()
}

// TestFinishKilledLater: behind the others, when there is nothing to serve any more, the command itself does the rest.
func TestFinishKilledLater(t *testing.T) {
	runs.On(t, "6.18")
	for step := 6; step <= 10; step += count(4, 1) {
		t.Run(strconv.Itoa(step), func(t *testing.T) {
			b := newFinishBench(t, fmt.Sprintf("die %d", step))
			b.hydrate()
			b.m.run(command, "finish", b.name)
			b.finished()
		})
	}
}

// TestFinishLater: the death is found by another command, later.
func TestFinishLater(t *testing.T) {
	runs.On(t, "7.3")
	for _, verb := range []string{"finish", "add", "recover", "del"}[:count(2, 4)] {
		t.Run(verb, func(t *testing.T) {
			b := newFinishBench(t, "die 5")
			b.hydrate()
			pid := b.status().PID
			conn, err := net.Dial("unix", filepath.Join(runDir, b.name+".sock"))
			if err == nil {
				_, err = conn.Write([]byte(`{"verb":"finish","wait_ms":5000}` + "\n"))
			}
			if err != nil {
				t.Fatal(err)
			}
			b.waitEnded(pid)
			conn.Close()
			if s := b.status(); s.State != "dead" || !strings.Contains(s.Action, "finish") {
				t.Errorf("status %+v", s)
			}
			args := []string{verb, b.name}
			if verb == "add" {
				b.m.expectFailure(b.m.try(command, append(args, b.args...)...), exit.Exists, "stands alone")
			} else {
				b.m.run(command, args...)
			}
			if verb == "del" { // which leaves the metadata
				if err := os.Remove(b.meta.path); err != nil {
					t.Error(err)
				}
			}
			b.finished()
		})
	}
}

// TestFinishPlain: without a layer nobody may have the block device open; the destination may be a file. With one it is to be
// a device.
func TestFinishPlain(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, meta := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("meta", nullOptions{mib: 2})
	files := m.newExt4(m.random(), source, 2*mib)
	m.dir = m.ext4Folder(64)
	dest := m.missing("dest")
	c := m.addClone(source, dest, meta)
	c.waitHydrated()
	files.mount(c.path)
	m.expectFailure(m.try(command, "finish", c.name, "--timeout", "1s"), exit.Busy, files.root)
	files.check(nil)
	files.unmount()
	if out := m.run(command, "finish", c.name, "-o", "json", "--keep-metadata"); !strings.Contains(out, `"state": "finished"`) {
		t.Errorf("finish has printed %s", out)
	}
	c.path = ""
	m.expectFailure(m.try(command, "status", c.name), exit.NoClone)
	c.add() // by the metadata that were kept
	if s := c.status(); s.State != "hydrated" {
		t.Errorf("after --keep-metadata it is %s", s.State)
	}
	m.run(command, "finish", c.name)
	c.path = ""
	m.expectFailure(m.try(command, "metadata", "dump", meta.path), exit.Metadata)
	m.expectFailure(m.try(command, append([]string{"add", c.name}, c.args...)...), exit.Refused, "ext4") // as a new clone
	files.mount(m.loop(dest.path, sector).path)
	files.check(nil)
	files.unmount()
}

// TestFinishFileUnderLayer is refused.
func TestFinishFileUnderLayer(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	source := m.nullBlk("src", nullOptions{mib: 8})
	m.fillDisk(source, original)
	m.dir = m.ext4Folder(32)
	c := m.addClone(source, m.missing("dest"), m.missing("meta"), "--dm", layerName)
	c.waitHydrated()
	m.expectFailure(m.try(command, "finish", c.name), exit.Refused, "file", "del")
	c.del()
	m.layerGone()
}

// TestFinishStuck: a destination that does not answer keeps the layer from being suspended. After the limit it goes on as
// before, and so do its users when the destination does.
func TestFinishStuck(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 8}), m.faultyDisk("dst", 8)
	m.fillDisk(source, original)
	c := m.addClone(source, dest.disk, m.missing("meta"), "--dm", layerName)
	c.waitHydrated()
	v := m.open(c.path, os.O_RDWR)
	dest.hold()
	done := make(chan error, 1)
	go func() { done <- v.write(m.buffer(4096), 0) }()
	m.waitFor(cleanLimit, "a write in flight", func() error {
		if n := m.block("/dev/" + strings.TrimPrefix(c.status().Device, "/dev/")).writing(); n == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	m.expectFailure(m.try(command, "finish", c.name, "--timeout", "1s"), exit.Timeout, "as before")
	if info := m.run("dmsetup", "info", layerName); !strings.Contains(info, "ACTIVE") {
		t.Errorf("the layer is %s", info)
	}
	dest.release()
	c.noError(<-done)
	m.run(command, "finish", c.name)
	c.path = ""
	c.noError(v.read(m.buffer(4096), mib))
	v.close()
	m.run("dmsetup", "remove", "--retry", layerName)
}

// TestFinishRecipe is dm-clone's: without hydration, mounted and trimmed; then hydrated and handed over. With our own words,
// and with its table and messages.
func TestFinishRecipe(t *testing.T) {
	runs.On(t, "7.3")
	for _, words := range []string{"ours", "dm-clone"} {
		t.Run(words, func(t *testing.T) {
			m := newMachine(t)
			const size = 32 * mib
			source, dest, meta := m.nullBlk("src", nullOptions{mib: size / mib}), m.nullBlk("dst", nullOptions{mib: size / mib, discard: true}), m.nullBlk("meta", nullOptions{mib: 4})
			files := m.newExt4(m.random(), source, 2*mib)
			c := m.newClone(source, dest, meta, "--no-hydration", "--dm", layerName)
			if words == "dm-clone" {
				c.args = []string{"--dm", layerName, "--table", fmt.Sprintf("0 %d clone %s %s %s 8 1 no_hydration", size/sector, meta.path, dest.path, source.path)}
			}
			c.add()
			files.mount(c.path)
			m.run("fstrim", files.root)
			if words == "dm-clone" {
				m.run(command, "message", c.name, "0", "enable_hydration")
			} else {
				m.run(command, "resume", c.name)
			}
			s := c.waitHydrated()
			if s.Bytes.Discarded < size/4 {
				t.Errorf("%d bytes were discarded", s.Bytes.Discarded)
			}
			m.run(command, "finish", c.name)
			c.path = ""
			files.check(nil)
			files.unmount()
			m.run("dmsetup", "remove", "--retry", layerName)
			files.examine(dest.path)
		})
	}
}
