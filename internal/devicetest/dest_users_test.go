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

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// loopAt makes a loop device over a part of a device or file.
func (m *machine) loopAt(under *disk, off, size int64) *disk {
	m.Helper()
	path := strings.TrimSpace(m.run("losetup", "--find", "--show", "--offset", fmt.Sprint(off), "--sizelimit", fmt.Sprint(size), under.path))
	m.Cleanup(func() { m.run("losetup", "--detach", path) })
	return m.block(path)
}

// tryAdd is add of a clone of another name, which is deleted if it succeeds, with what the exit status must be.
func (m *machine) tryAdd(what string, code int, source, dest, metadata *disk, says ...string) {
	m.Helper()
	o := m.try(command, append([]string{"add", "other"}, addArgs(source, dest, metadata, "--no-hydration")...)...)
	m.Logf("%s: exit status %d: %s", what, o.code, o.stderr)
	if o.code == 0 {
		m.run(command, "del", "other")
	}
	if o.code != code {
		m.Errorf("%s: exit status %d, expected %d", what, o.code, code)
	}
	for _, text := range says {
		if code != 0 && !strings.Contains(o.stderr, text) {
			m.Errorf("%s: the message does not say %q: %s", what, text, o.stderr)
		}
	}
	if filepath.Dir(metadata.path) == m.dir {
		os.Remove(metadata.path)
	}
}

// TestDestInUse: whoever reaches bytes of the destination through another device is found, and no sibling is (A3).
func TestDestInUse(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 64})
	meta := m.missing("meta")
	loop := m.loopAt(dest, 32*mib, 32*mib)
	m.tryAdd("a loop device over half of the destination", exit.Busy, source, dest, meta, loop.path)
	files := m.newExt4(m.random(), loop, 4*mib)
	files.mount(loop.path)
	m.tryAdd("the same, mounted", exit.Busy, source, dest, meta, loop.path, files.root)
	first := m.loopAt(dest, 0, 16*mib)
	m.tryAdd("a loop device over another part of the disk", 0, source, first, meta)
	overlapping := m.loopAt(dest, 24*mib, 16*mib)
	m.tryAdd("a loop device over a part of the same bytes", exit.Busy, source, overlapping, meta, loop.path, files.root)
	m.tryAdd("metadata on the disk", exit.Busy, source, m.missing("dest"), dest, loop.path)
	files.unmount()

	under := m.nullBlk("disk", nullOptions{mib: 64})
	lv1 := m.mapper("lv1", fmt.Sprintf("0 %d linear %s 0", 16*mib/sector, under.path))
	lv2 := m.mapper("lv2", fmt.Sprintf("0 %d linear %s %d", 16*mib/sector, under.path, 16*mib/sector))
	m.tryAdd("a sibling of another table", 0, source, lv1, meta)
	both := m.mapper("both", fmt.Sprintf("0 %d linear %s %d", 16*mib/sector, under.path, 8*mib/sector))
	m.tryAdd("a table that leads to a part of the same bytes, and that nobody uses", 0, source, lv1, meta)
	user := m.newExt4(m.random(), both, 4*mib)
	user.mount(both.path)
	m.tryAdd("a table that leads to a part of the same bytes", exit.Busy, source, lv1, meta, "both")
	m.tryAdd("the same, the other one", exit.Busy, source, lv2, meta, "both")
	onLV := m.loop(lv1.path, sector)
	m.tryAdd("a loop device over that", exit.Busy, source, onLV, meta, "both")
	user.unmount()
}

// TestDestOpenForWriting: a program that writes to the destination and takes no lock, as an emulator.
func TestDestOpenForWriting(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	program := exec.Command("sleep", "600")
	f, err := os.OpenFile(dest.path, os.O_RDWR, 0)
	if err == nil {
		program.ExtraFiles = []*os.File{f}
		err = program.Start()
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	m.tryAdd("a program writes to it", exit.Busy, source, dest, m.missing("meta"), fmt.Sprint(program.Process.Pid), "sleep")
	program.Process.Kill()
	program.Wait()
	m.tryAdd("it has ended", 0, source, dest, m.missing("meta"))
}

// TestDevicesOfAnotherClone: its source, its destination and its metadata, by themselves, through a loop device, a table
// and a partition, while its daemon lives and when that is dead.
func TestDevicesOfAnotherClone(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.dropLiveMaps()
	roles := map[string]*disk{}
	var through []*disk
	for _, role := range []string{"source", "destination", "metadata"} {
		d := m.nullBlk(role, nullOptions{mib: 16})
		roles[role] = d
		table := m.linear("on-"+role, m.loop(d.path, sector), d.size) // a table holds what is below it
		through = append(through, m.loop(d.path, sector), m.loopAt(d, 4*mib, 8*mib), table)
	}
	m.fillDisk(roles["source"], original)
	free := m.nullBlk("free", nullOptions{mib: 16})
	freeSource := m.nullBlk("small", nullOptions{mib: 4})
	m.fillDisk(freeSource, original)
	c := m.newClone(roles["source"], roles["destination"], roles["metadata"], "--no-hydration", "--force")
	c.add()
	use := func(state string, code int) {
		t.Helper()
		for _, d := range through {
			m.tryAdd(state+": as a destination: "+d.path, code, freeSource, d, m.missing("meta2"), "clone test")
			m.tryAdd(state+": as metadata: "+d.path, code, freeSource, free, d, "clone test")
		}
		for _, d := range through[3:] { // the source of a dead clone is read by nobody
			m.tryAdd(state+": as a source: "+d.path, code, d, free, m.missing("meta2"), "clone test")
		}
	}
	use("alive", exit.Busy)
	c.end(syscall.SIGKILL)
	use("dead", exit.Refused)
	for role, d := range roles {
		m.tryAdd("the "+role+" of a dead clone as a destination", exit.Refused, freeSource, d, m.missing("meta2"), "clone test")
	}
	c.recover()
	c.del()
	m.tryAdd("of a clone that is gone", exit.Busy, freeSource, roles["destination"], m.missing("meta2"), "/dev/loop")
}

// TestSourceOfTwoClones: both must say that they share it.
func TestSourceOfTwoClones(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	m.fillDisk(source, original)
	first := m.addClone(source, m.nullBlk("first", nullOptions{mib: 16}), m.missing("meta1"), "--no-hydration")
	m.tryAdd("the first has it for itself", exit.Busy, source, dest, m.missing("meta2"), "clone test", "--source-shared")
	first.del()
	first.args = append(first.args, "--source-shared")
	first.add()
	m.tryAdd("the second wants it for itself", exit.Busy, source, dest, m.missing("meta2"), "clone test", "--source-shared")
	second := m.newClone(source, dest, m.missing("meta2"), "--no-hydration", "--source-shared")
	second.name = "second"
	second.add()
	second.del()
	first.del()
	m.dir = m.ext4Folder(64) // whose logical blocks are those of a source file
	file := m.file("image", 16*mib)
	first = m.addClone(file, m.missing("dest1"), m.missing("meta1f"))
	m.tryAdd("two clones of one file", 0, file, m.missing("dest2"), m.missing("meta2f"))
	first.del()
}

// TestDestOnTheCloneItself: a recovery that would wait for itself is refused (I9).
func TestDestOnTheCloneItself(t *testing.T) {
	runs.On(t, "6.18")
	b := newExchangeBench(newMachine(t))
	b.add()
	b.write(8)
	device := b.path
	b.end(syscall.SIGKILL)
	b.lead(&disk{path: device})
	b.m.expectFailure(b.m.try(command, "recover", b.name), exit.Refused, b.link, "itself")
	b.lead(b.dest)
	b.recover()
	b.whole()
	b.del()
}
