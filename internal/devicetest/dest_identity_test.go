//go:build device

package devicetest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// A destination that has no WWID, serial number or UUID, as null_blk and virtio disks without a serial, whose name leads to
// another of the same size: the clone is refused, and nothing is written (I1, I14).

// exchangeBench is a clone whose destination is named by a link.
type exchangeBench struct {
	*clone
	model  *model
	source *disk
	dest   *disk
	other  *disk // of the same size
	link   string
}

const exchangeSize = 16 * mib

// newExchangeBench writes something to the clone, and makes it durable.
func newExchangeBench(m *machine, args ...string) *exchangeBench {
	m.Helper()
	m.dropLiveMaps()
	b := &exchangeBench{link: filepath.Join(m.dir, "dest"), model: newModel(exchangeSize, 4*kib)}
	b.source, b.dest = m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	b.other = m.nullBlk("other", nullOptions{mib: 16})
	m.fillDisk(b.source, original)
	m.fillDisk(b.dest, junk)
	m.fillDisk(b.other, junk)
	b.clone = m.newClone(b.source, &disk{m: m, path: b.link}, m.missing("meta"), append([]string{"--no-hydration"}, args...)...)
	b.lead(b.dest)
	return b
}

// lead makes the link lead to d.
func (b *exchangeBench) lead(d *disk) {
	b.m.Helper()
	err := os.Symlink(d.path, b.link+".new")
	if err == nil {
		err = os.Rename(b.link+".new", b.link)
	}
	if err != nil {
		b.m.Fatal(err)
	}
}

// write writes some blocks here and there, durably.
func (b *exchangeBench) write(blocks int64) {
	b.m.Helper()
	v, buf := b.m.open(b.path, os.O_RDWR), b.m.buffer(4096)
	defer v.close()
	for i := range blocks {
		if err := b.model.write(v, buf, i*exchangeSize/blocks/4096*4096, false); err != nil {
			b.m.Fatal(err)
		}
	}
	if err := v.flush(); err != nil {
		b.m.Fatal(err)
	}
}

// sampled waits until the metadata hold a sample of the destination with some blocks that users wrote, and that have these
// flags.
func (b *exchangeBench) sampled(flags uint64) {
	b.m.Helper()
	b.m.waitFor(cleanLimit, "a sample of the destination in the metadata", func() error {
		sb, err := metadata.Parse([]byte(b.m.readFile(b.metadata())[:metadata.BlockSize]))
		written := 0
		for _, block := range sb.DestSample.Blocks.Used() {
			if block.Is(metadata.SampleWritten) && (flags == 0 || block.Is(flags)) {
				written++
			}
		}
		if err == nil && written < 4 {
			err = fmt.Errorf("%d of %d blocks are of users", written, len(sb.DestSample.Blocks.Used()))
		}
		return err
	})
}

func (b *exchangeBench) metadata() string { return filepath.Join(b.m.dir, "meta") }

// refused says that a command is refused with other in the destination's place, with a reason, and that nothing is written.
func (b *exchangeBench) refused(other *disk, what string, args ...string) {
	b.m.Helper()
	b.lead(other)
	before := other.content()
	o := b.m.try(command, args...)
	b.m.Logf("%s: exit status %d: %s", what, o.code, o.stderr)
	b.m.expectFailure(o, exit.Refused, b.link, "Nothing was written")
	if other.content() != before {
		b.m.Errorf("%s: the other disk was written", what)
	}
	b.lead(b.dest)
}

// content is a checksum of all of a disk.
func (d *disk) content() string {
	d.m.Helper()
	f, err := os.Open(d.path)
	if err != nil {
		d.m.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		d.m.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func (b *exchangeBench) addArgs() []string { return append([]string{"add", b.name}, b.args...) }

// whole checks the content of the clone.
func (b *exchangeBench) whole() {
	b.m.Helper()
	b.model.check(b.m, b.path)
}

// TestDestExchangedBeforeRecover: while the daemon is dead, and right after a restart was asked for.
func TestDestExchangedBeforeRecover(t *testing.T) {
	runs.On(t, "6.18")
	b := newExchangeBench(newMachine(t))
	b.add()
	b.end(syscall.SIGKILL) // nothing is hydrated: the mark of the session alone tells
	b.refused(b.other, "recover, nothing hydrated", "recover", b.name)
	b.recover()
	b.write(8)
	b.end(syscall.SIGKILL)
	b.refused(b.other, "recover", "recover", b.name)
	b.refused(b.other, "add", b.addArgs()...)
	b.recover()
	b.whole()
	pid := b.status().PID
	b.refused(b.other, "restart", "restart", b.name)
	if now := b.status().PID; now != pid {
		t.Errorf("a restart that was refused has ended daemon %d, now it is %d", pid, now)
	}
	b.whole()
	b.del()
}

// TestDestExchangedBeforeAdd: after a clean stop, in this boot and the next, and after a power cut.
func TestDestExchangedBeforeAdd(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	b := newExchangeBench(m)
	b.add()
	b.write(8)
	b.del()
	b.refused(b.other, "add in the same boot", b.addArgs()...)
	b.add()
	b.sampled(0)
	b.end(syscall.SIGKILL)
	m.run(command, "prune")
	m.otherBoot()
	m.dropLiveMaps()
	b.refused(b.other, "add after a power cut", b.addArgs()...)
	b.add()
	b.whole()
	b.del()
	b.refused(b.other, "add after a clean stop", b.addArgs()...)
	empty := m.nullBlk("empty", nullOptions{mib: 16})
	b.refused(empty, "an empty disk", b.addArgs()...)
	b.lead(b.other)
	b.args = append(b.args, "--force")
	b.add()
	b.del()
}

// TestDestsOfOneImageExchanged: the destinations of two clones of one source differ in what users wrote only.
func TestDestsOfOneImageExchanged(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	b := newExchangeBench(m, "--source-shared")
	second := &exchangeBench{model: newModel(exchangeSize, 4*kib), source: b.source, dest: b.other, other: b.dest, link: filepath.Join(m.dir, "dest2")}
	second.clone = m.newClone(b.source, &disk{m: m, path: second.link}, m.missing("meta2"), "--no-hydration", "--source-shared")
	second.name = "second"
	second.lead(second.dest)
	for _, c := range []*exchangeBench{b, second} {
		c.add()
		c.hydrateFast()
		c.waitHydrated()
	}
	b.write(16)
	second.model.last += 1000 // other content
	second.write(24)
	b.sampled(metadata.SampleSettled)
	m.killBoth(b.clone, second.clone)
	m.run(command, "prune")
	m.otherBoot()
	m.dropLiveMaps()
	b.refused(second.dest, "the other clone's destination", b.addArgs()...)
	b.add()
	b.whole()
	b.del()
	b.refused(second.dest, "the other clone's destination", b.addArgs()...)
	second.add()
	second.whole()
	second.del()
}

// killBoth kills the daemons of two clones and waits for both to be gone.
func (m *machine) killBoth(clones ...*clone) {
	m.Helper()
	for _, c := range clones {
		if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
			m.Fatal(err)
		}
		c.path = ""
	}
	m.waitFor(cleanLimit, "the daemons to end", func() error {
		if n := len(daemons()); n > 0 {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
}

// TestDestTableExchanged: the device keeps its number, and leads to another disk.
func TestDestTableExchanged(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	b := newExchangeBench(m)
	mapped := m.linear("mapped", b.dest, exchangeSize)
	b.lead(mapped)
	b.add()
	b.write(8)
	b.sampled(0)
	b.end(syscall.SIGKILL)
	table := func(d *disk) {
		t.Helper()
		m.run("dmsetup", "suspend", "mapped")
		m.run("dmsetup", "load", "mapped", "--table", fmt.Sprintf("0 %d linear %s 0", exchangeSize/sector, d.path))
		m.run("dmsetup", "resume", "mapped")
	}
	table(b.other)
	m.expectFailure(m.try(command, "recover", b.name), exit.Refused, b.link)
	table(b.dest)
	b.recover()
	b.whole()
	b.del()
}

// TestDestWrittenSince: what users wrote after the last sample does not keep a clone from its own destination.
func TestDestWrittenSince(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	b := newExchangeBench(m)
	b.add()
	b.hydrateFast()
	b.waitHydrated()
	b.write(64)
	b.sampled(0)
	b.write(64)
	b.write(1024)
	b.end(syscall.SIGKILL)
	m.run(command, "prune")
	m.otherBoot()
	m.dropLiveMaps()
	b.add()
	b.whole()
	b.del()
}

// TestDestFileReplaced: a file with the inode and the size of the destination, which was removed.
func TestDestFileReplaced(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	folder := m.ext4Folder(64)
	source := m.nullBlk("src", nullOptions{mib: 16})
	m.fillDisk(source, original)
	dest := &disk{m: m, path: filepath.Join(folder, "dest")}
	c := m.addClone(source, dest, m.missing("meta"))
	c.waitHydrated()
	c.del()
	inode := func() uint64 {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Stat(dest.path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	was := inode()
	m.run("cp", dest.path, dest.path+".kept")
	if err := os.Remove(dest.path); err != nil {
		t.Fatal(err)
	}
	m.run("truncate", "--size", fmt.Sprint(exchangeSize), dest.path)
	if inode() != was {
		t.Skipf("the file system has given the file inode %d, not %d", inode(), was)
	}
	o := m.try(command, append([]string{"add", c.name}, c.args...)...)
	t.Log(o.stderr)
	m.expectFailure(o, exit.Refused, dest.path, "--force")
	m.run("cp", dest.path+".kept", dest.path)
	c.add()
	c.del()
}

// TestNothingTells: add says so of a device that nothing tells from another.
func TestNothingTells(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	m.fillDisk(source, original)
	c := m.newClone(source, dest, m.missing("meta"), "--no-hydration")
	o := m.try(command, append([]string{"add", c.name}, c.args...)...)
	c.path = strings.TrimSpace(o.stdout)
	if o.code != 0 || !strings.Contains(o.stderr, "nothing tells") || !strings.Contains(o.stderr, dest.path) {
		t.Errorf("add: exit status %d: %s", o.code, o.stderr)
	}
	c.del()
}

// TestSampleOfHungDest: a destination that does not answer holds up neither the status nor a commit of the metadata that
// waits for nothing of it, and a sample that hangs is left behind.
func TestSampleOfHungDest(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	b := newExchangeBench(m)
	mapped := m.linear("mapped", b.dest, exchangeSize)
	b.lead(mapped)
	b.add()
	b.write(8)
	m.run("dmsetup", "suspend", "--nolockfs", "--noflush", "mapped")
	time.Sleep(2 * time.Second) // a sample is due
	from := time.Now()
	b.printedStatus()
	m.inTime(5*time.Second, "status with a destination that hangs", time.Since(from))
	m.run("dmsetup", "resume", "mapped")
	b.whole()
	b.del()
}
