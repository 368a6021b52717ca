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

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// loopAt makes a loop device over a part of a device or file.
func loopAt(m *harness.Machine, under *harness.Disk, off, size int64) *harness.Disk {
	m.Helper()
	path := strings.TrimSpace(m.MustRun("losetup", "--find", "--show", "--offset", fmt.Sprint(off), "--sizelimit", fmt.Sprint(size), under.Path))
	m.Cleanup(func() { m.MustRun("losetup", "--detach", path) })
	return m.Block(path)
}

// tryAdd is add of a clone of another name, which is deleted if it succeeds, with what the exit
// status must be.
func tryAdd(m *harness.Machine, what string, code int, source, dest, metadata *harness.Disk, says ...string) {
	m.Helper()
	o := m.Try(harness.Command, append([]string{"add", "other"}, harness.AddArgs(source, dest, metadata, "--no-hydration")...)...)
	m.Logf("%s: exit status %d: %s", what, o.Code, o.Stderr)
	if o.Code == 0 {
		m.MustRun(harness.Command, "del", "other")
	}
	if o.Code != code {
		m.Errorf("%s: exit status %d, expected %d", what, o.Code, code)
	}
	for _, text := range says {
		if code != 0 && !strings.Contains(o.Stderr, text) {
			m.Errorf("%s: the message does not say %q: %s", what, text, o.Stderr)
		}
	}
	if filepath.Dir(metadata.Path) == m.Dir {
		_ = os.Remove(metadata.Path)
	}
}

// TestDestInUse: whoever reaches bytes of the destination through another device is found, and no
// sibling is (A3).
func TestDestInUse(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 64})
	meta := m.Missing("meta")
	loop := loopAt(m, dest, 32*harness.MiB, 32*harness.MiB)
	tryAdd(m, "a loop device over half of the destination", exit.Busy, source, dest, meta, loop.Path)
	files := m.NewExt4(m.Random(), loop, 4*harness.MiB)
	files.Mount(loop.Path)
	tryAdd(m, "the same, mounted", exit.Busy, source, dest, meta, loop.Path, files.Root)
	first := loopAt(m, dest, 0, 16*harness.MiB)
	tryAdd(m, "a loop device over another part of the disk", 0, source, first, meta)
	overlapping := loopAt(m, dest, 24*harness.MiB, 16*harness.MiB)
	tryAdd(m, "a loop device over a part of the same bytes", exit.Busy, source, overlapping, meta, loop.Path, files.Root)
	tryAdd(m, "metadata on the disk", exit.Busy, source, m.Missing("dest"), dest, loop.Path)
	files.Unmount()

	under := m.NullBlk("disk", harness.NullOptions{MiB: 64})
	lv1 := m.Mapper("lv1", fmt.Sprintf("0 %d linear %s 0", 16*harness.MiB/harness.Sector, under.Path))
	lv2 := m.Mapper("lv2", fmt.Sprintf("0 %d linear %s %d", 16*harness.MiB/harness.Sector, under.Path, 16*harness.MiB/harness.Sector))
	tryAdd(m, "a sibling of another table", 0, source, lv1, meta)
	both := m.Mapper("both", fmt.Sprintf("0 %d linear %s %d", 16*harness.MiB/harness.Sector, under.Path, 8*harness.MiB/harness.Sector))
	tryAdd(m, "a table that leads to a part of the same bytes, and that nobody uses", 0, source, lv1, meta)
	user := m.NewExt4(m.Random(), both, 4*harness.MiB)
	user.Mount(both.Path)
	tryAdd(m, "a table that leads to a part of the same bytes", exit.Busy, source, lv1, meta, "both")
	tryAdd(m, "the same, the other one", exit.Busy, source, lv2, meta, "both")
	onLV := m.Loop(lv1.Path, harness.Sector)
	tryAdd(m, "a loop device over that", exit.Busy, source, onLV, meta, "both")
	user.Unmount()
}

// TestDestOpenForWriting: a program that writes to the destination and takes no lock, as an
// emulator.
func TestDestOpenForWriting(t *testing.T) {
	runs.On(t, "6.12")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	program := exec.Command("sleep", "600")
	f, err := os.OpenFile(dest.Path, os.O_RDWR, 0)
	if err == nil {
		program.ExtraFiles = []*os.File{f}
		err = program.Start()
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	tryAdd(m, "a program writes to it", exit.Busy, source, dest, m.Missing("meta"), fmt.Sprint(program.Process.Pid), "sleep")
	_ = program.Process.Kill()
	_ = program.Wait()
	tryAdd(m, "it has ended", 0, source, dest, m.Missing("meta"))
}

// TestDevicesOfAnotherClone: its source, its destination and its metadata, by themselves, through a
// loop device, a table and a partition, while its daemon lives and when that is dead.
func TestDevicesOfAnotherClone(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	m.DropLiveMaps()
	roles := map[string]*harness.Disk{}
	var through []*harness.Disk
	for _, role := range []string{"source", "destination", "metadata"} {
		d := m.NullBlk(role, harness.NullOptions{MiB: 16})
		roles[role] = d
		table := m.Linear("on-"+role, m.Loop(d.Path, harness.Sector), d.Size) // a table holds what is below it
		through = append(through, m.Loop(d.Path, harness.Sector), loopAt(m, d, 4*harness.MiB, 8*harness.MiB), table)
	}
	m.FillDisk(roles["source"], harness.Original)
	free := m.NullBlk("free", harness.NullOptions{MiB: 16})
	freeSource := m.NullBlk("small", harness.NullOptions{MiB: 4})
	m.FillDisk(freeSource, harness.Original)
	c := m.NewClone(roles["source"], roles["destination"], roles["metadata"], "--no-hydration", "--force")
	c.Add()
	use := func(state string, code int) {
		t.Helper()
		for _, d := range through {
			tryAdd(m, state+": as a destination: "+d.Path, code, freeSource, d, m.Missing("meta2"), "clone test")
			tryAdd(m, state+": as metadata: "+d.Path, code, freeSource, free, d, "clone test")
		}
		for _, d := range through[3:] { // the source of a dead clone is read by nobody
			tryAdd(m, state+": as a source: "+d.Path, code, d, free, m.Missing("meta2"), "clone test")
		}
	}
	use("alive", exit.Busy)
	c.End(syscall.SIGKILL)
	use("dead", exit.Refused)
	for role, d := range roles {
		tryAdd(m, "the "+role+" of a dead clone as a destination", exit.Refused, freeSource, d, m.Missing("meta2"), "clone test")
	}
	c.Recover()
	c.Del()
	tryAdd(m, "of a clone that is gone", exit.Busy, freeSource, roles["destination"], m.Missing("meta2"), "/dev/loop")
}

// TestSourceOfTwoClones: both must say that they share it.
func TestSourceOfTwoClones(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	m.FillDisk(source, harness.Original)
	first := m.AddClone(source, m.NullBlk("first", harness.NullOptions{MiB: 16}), m.Missing("meta1"), "--no-hydration")
	tryAdd(m, "the first has it for itself", exit.Busy, source, dest, m.Missing("meta2"), "clone test", "--source-shared")
	first.Del()
	first.Args = append(first.Args, "--source-shared")
	first.Add()
	tryAdd(m, "the second wants it for itself", exit.Busy, source, dest, m.Missing("meta2"), "clone test", "--source-shared")
	second := m.NewClone(source, dest, m.Missing("meta2"), "--no-hydration", "--source-shared")
	second.Name = "second"
	second.Add()
	second.Del()
	first.Del()
	m.Dir = m.Ext4Dir(64) // whose logical blocks are those of a source file
	file := m.File("image", 16*harness.MiB)
	first = m.AddClone(file, m.Missing("dest1"), m.Missing("meta1f"))
	tryAdd(m, "two clones of one file", 0, file, m.Missing("dest2"), m.Missing("meta2f"))
	first.Del()
}

// TestDestOnTheCloneItself: a recovery that would wait for itself is refused (I9).
func TestDestOnTheCloneItself(t *testing.T) {
	runs.On(t, "6.18")
	b := newExchangeBench(harness.New(t))
	b.Add()
	b.write(8)
	device := b.Path
	b.End(syscall.SIGKILL)
	b.lead(&harness.Disk{Path: device})
	b.M.ExpectFailure(b.M.Try(harness.Command, "recover", b.Name), exit.Refused, b.link, "itself")
	b.lead(b.dest)
	b.Recover()
	b.whole()
	b.Del()
}
