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

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// A destination that has no WWID, serial number or UUID, as null_blk and virtio disks without a
// serial, whose name leads to another of the same size: the clone is refused, and nothing is
// written (I1, I14).

// exchangeBench is a clone whose destination is named by a link.
type exchangeBench struct {
	*harness.Clone
	model  *harness.Model
	source *harness.Disk
	dest   *harness.Disk
	other  *harness.Disk // of the same size
	link   string
}

const exchangeSize = 16 * harness.MiB

// newExchangeBench writes something to the clone, and makes it durable.
func newExchangeBench(m *harness.Machine, args ...string) *exchangeBench {
	m.Helper()
	m.DropLiveMaps()
	b := &exchangeBench{link: filepath.Join(m.Dir, "dest"), model: harness.NewModel(exchangeSize, 4*harness.KiB)}
	b.source, b.dest = m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	b.other = m.NullBlk("other", harness.NullOptions{MiB: 16})
	m.FillDisk(b.source, harness.Original)
	m.FillDisk(b.dest, harness.Junk)
	m.FillDisk(b.other, harness.Junk)
	b.Clone = m.NewClone(b.source, &harness.Disk{M: &m.Devices, Path: b.link}, m.Missing("meta"), append([]string{"--no-hydration"}, args...)...)
	b.lead(b.dest)
	return b
}

// lead makes the link lead to d.
func (b *exchangeBench) lead(d *harness.Disk) {
	b.M.Helper()
	err := os.Symlink(d.Path, b.link+".new")
	if err == nil {
		err = os.Rename(b.link+".new", b.link)
	}
	if err != nil {
		b.M.Fatal(err)
	}
}

// write writes some blocks here and there, durably.
func (b *exchangeBench) write(blocks int64) {
	b.M.Helper()
	v, buf := b.M.Open(b.Path, os.O_RDWR), b.M.Buffer(4096)
	defer v.Close()
	for i := range blocks {
		if err := b.model.Write(v, buf, i*exchangeSize/blocks/4096*4096, false); err != nil {
			b.M.Fatal(err)
		}
	}
	if err := v.Flush(); err != nil {
		b.M.Fatal(err)
	}
}

// sampled waits until the metadata holds a sample of the destination with some blocks that users
// wrote, and that have these flags.
func (b *exchangeBench) sampled(flags uint64) {
	b.M.Helper()
	b.M.WaitFor(harness.CleanLimit, "a sample of the destination in the metadata", func() error {
		sb, err := metadata.Parse([]byte(b.M.ReadFile(b.metadata())[:metadata.BlockSize]))
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

func (b *exchangeBench) metadata() string { return filepath.Join(b.M.Dir, "meta") }

// refused says that a command is refused with other in the destination's place, with a reason, and
// that nothing is written.
func (b *exchangeBench) refused(other *harness.Disk, what string, args ...string) {
	b.M.Helper()
	b.lead(other)
	before := content(other)
	o := b.M.Try(harness.Command, args...)
	b.M.Logf("%s: exit status %d: %s", what, o.Code, o.Stderr)
	b.M.ExpectFailure(o, exit.Refused, b.link, "Nothing was written")
	if content(other) != before {
		b.M.Errorf("%s: the other disk was written", what)
	}
	b.lead(b.dest)
}

// content is a checksum of all of a disk.
func content(d *harness.Disk) string {
	d.M.Helper()
	f, err := os.Open(d.Path)
	if err != nil {
		d.M.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		d.M.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func (b *exchangeBench) addArgs() []string { return append([]string{"add", b.Name}, b.Args...) }

// whole checks the content of the clone.
func (b *exchangeBench) whole() {
	b.M.Helper()
	b.model.Check(b.M, b.Path)
}

// TestDestExchangedBeforeRecover: while the daemon is dead, and right after a restart was asked
// for.
func TestDestExchangedBeforeRecover(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newExchangeBench(harness.New(t))
	b.Add()
	b.End(syscall.SIGKILL) // nothing is hydrated: the instance of the session alone tells
	b.refused(b.other, "recover, nothing hydrated", "recover", b.Name)
	b.Recover()
	b.write(8)
	b.End(syscall.SIGKILL)
	b.refused(b.other, "recover", "recover", b.Name)
	b.refused(b.other, "add", b.addArgs()...)
	b.Recover()
	b.whole()
	pid := b.Status().PID
	b.refused(b.other, "restart", "restart", b.Name)
	if now := b.Status().PID; now != pid {
		t.Errorf("a restart that was refused has ended daemon %d, now it is %d", pid, now)
	}
	b.whole()
	b.Del()
}

// TestDestExchangedBeforeAdd: after a clean stop, in this boot and the next, and after a power cut.
func TestDestExchangedBeforeAdd(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	m := harness.New(t)
	b := newExchangeBench(m)
	b.Add()
	b.write(8)
	b.Del()
	b.refused(b.other, "add in the same boot", b.addArgs()...)
	b.Add()
	b.sampled(0)
	b.End(syscall.SIGKILL)
	m.MustRun(harness.Command, "prune")
	m.OtherBoot()
	m.DropLiveMaps()
	b.refused(b.other, "add after a power cut", b.addArgs()...)
	b.Add()
	b.whole()
	b.Del()
	b.refused(b.other, "add after a clean stop", b.addArgs()...)
	empty := m.NullBlk("empty", harness.NullOptions{MiB: 16})
	b.refused(empty, "an empty disk", b.addArgs()...)
	b.lead(b.other)
	b.Args = append(b.Args, "--force")
	b.Add()
	b.Del()
}

// TestDestsOfOneImageExchanged: the destinations of two clones of one source differ in what users
// wrote only.
func TestDestsOfOneImageExchanged(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	m := harness.New(t)
	b := newExchangeBench(m, "--source-shared")
	second := &exchangeBench{model: harness.NewModel(exchangeSize, 4*harness.KiB), source: b.source, dest: b.other, other: b.dest, link: filepath.Join(m.Dir, "dest2")}
	second.Clone = m.NewClone(b.source, &harness.Disk{M: &m.Devices, Path: second.link}, m.Missing("meta2"), "--no-hydration", "--source-shared")
	second.Name = "second"
	second.lead(second.dest)
	for _, c := range []*exchangeBench{b, second} {
		c.Add()
		c.HydrateFast()
		c.WaitHydrated()
	}
	b.write(16)
	second.model.Last += 1000 // other content
	second.write(24)
	b.sampled(metadata.SampleSteady)
	killBoth(m, b.Clone, second.Clone)
	m.MustRun(harness.Command, "prune")
	m.OtherBoot()
	m.DropLiveMaps()
	b.refused(second.dest, "the other clone's destination", b.addArgs()...)
	b.Add()
	b.whole()
	b.Del()
	b.refused(second.dest, "the other clone's destination", b.addArgs()...)
	second.Add()
	second.whole()
	second.Del()
}

// killBoth kills the daemons of two clones and waits for both to be gone.
func killBoth(m *harness.Machine, clones ...*harness.Clone) {
	m.Helper()
	for _, c := range clones {
		if err := syscall.Kill(c.Status().PID, syscall.SIGKILL); err != nil {
			m.Fatal(err)
		}
		c.Path = ""
	}
	m.WaitFor(harness.CleanLimit, "the daemons to end", func() error {
		if n := len(harness.Daemons()); n > 0 {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
}

// TestDestTableExchanged: the device keeps its number, and leads to another disk.
func TestDestTableExchanged(t *testing.T) {
	runs.On(t, "7.3")
	m := harness.New(t)
	b := newExchangeBench(m)
	mapped := m.Linear("mapped", b.dest, exchangeSize)
	b.lead(mapped)
	b.Add()
	b.write(8)
	b.sampled(0)
	b.End(syscall.SIGKILL)
	table := func(d *harness.Disk) {
		t.Helper()
		m.MustRun("dmsetup", "suspend", "mapped")
		m.MustRun("dmsetup", "load", "mapped", "--table", fmt.Sprintf("0 %d linear %s 0", exchangeSize/harness.Sector, d.Path))
		m.MustRun("dmsetup", "resume", "mapped")
	}
	table(b.other)
	m.ExpectFailure(m.Try(harness.Command, "recover", b.Name), exit.Refused, b.link)
	table(b.dest)
	b.Recover()
	b.whole()
	b.Del()
}

// TestDestWrittenSince: what users wrote after the last sample does not keep a clone from its own
// destination.
func TestDestWrittenSince(t *testing.T) {
	runs.On(t, "6.12")
	m := harness.New(t)
	b := newExchangeBench(m)
	b.Add()
	b.HydrateFast()
	b.WaitHydrated()
	b.write(64)
	b.sampled(0)
	b.write(64)
	b.write(1024)
	b.End(syscall.SIGKILL)
	m.MustRun(harness.Command, "prune")
	m.OtherBoot()
	m.DropLiveMaps()
	b.Add()
	b.whole()
	b.Del()
}

// TestDestFileReplaced: a file with the inode and the size of the destination, which was removed.
func TestDestFileReplaced(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	dir := m.Ext4Dir(64)
	source := m.NullBlk("src", harness.NullOptions{MiB: 16})
	m.FillDisk(source, harness.Original)
	dest := &harness.Disk{M: &m.Devices, Path: filepath.Join(dir, "dest")}
	c := m.AddClone(source, dest, m.Missing("meta"))
	c.WaitHydrated()
	c.Del()
	inode := func() uint64 {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Stat(dest.Path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	was := inode()
	m.MustRun("cp", dest.Path, dest.Path+".kept")
	if err := os.Remove(dest.Path); err != nil {
		t.Fatal(err)
	}
	m.MustRun("truncate", "--size", fmt.Sprint(exchangeSize), dest.Path)
	if inode() != was {
		t.Skipf("the file system has given the file inode %d, not %d", inode(), was)
	}
	o := m.Try(harness.Command, append([]string{"add", c.Name}, c.Args...)...)
	t.Log(o.Stderr)
	m.ExpectFailure(o, exit.Refused, dest.Path, "--force")
	m.MustRun("cp", dest.Path+".kept", dest.Path)
	c.Add()
	c.Del()
}

// TestNothingTells: add says so of a device that nothing tells from another.
func TestNothingTells(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	m.FillDisk(source, harness.Original)
	c := m.NewClone(source, dest, m.Missing("meta"), "--no-hydration")
	o := m.Try(harness.Command, append([]string{"add", c.Name}, c.Args...)...)
	c.Path = harness.Opened(o.Stdout)
	if o.Code != 0 || !strings.Contains(o.Stderr, "nothing tells") || !strings.Contains(o.Stderr, dest.Path) {
		t.Errorf("add: exit status %d: %s", o.Code, o.Stderr)
	}
	c.Del()
}

// TestSampleOfHungDest: a destination that does not answer holds up neither the status nor a commit
// of the metadata that waits for nothing of it, and a sample that hangs is left behind.
func TestSampleOfHungDest(t *testing.T) {
	runs.On(t, "6.12")
	m := harness.New(t)
	b := newExchangeBench(m)
	mapped := m.Linear("mapped", b.dest, exchangeSize)
	b.lead(mapped)
	b.Add()
	b.write(8)
	m.MustRun("dmsetup", "suspend", "--nolockfs", "--noflush", "mapped")
	time.Sleep(2 * time.Second) // a sample is due
	from := time.Now()
	b.PrintedStatus()
	m.InTime(5*time.Second, "status with a destination that hangs", time.Since(from))
	m.MustRun("dmsetup", "resume", "mapped")
	b.whole()
	b.Del()
}
