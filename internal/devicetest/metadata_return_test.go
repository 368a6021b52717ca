//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Metadata that fail, or cannot be read when the daemon is replaced, and come back (I10, I11).

// returnBench is a clone of two pages of the region map: the first is hydrated throughout,
// committed and given back, the second has marks that nobody has flushed. Its metadata can be made
// to fail.
type returnBench struct {
	*harness.Clone
	model    *harness.Model
	metadata *harness.FaultyDisk
	v        *harness.Volume
	buf      []byte
	rng      int64 // where next writes new regions
}

const (
	returnPage = 63 * harness.MiB // regions of 4 KiB that a page of the map holds
	returnSize = returnPage + harness.MiB
	metaPages  = 128 * harness.KiB // where the metadata's superblocks end
)

func newReturnBench(t *testing.T) *returnBench {
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: returnSize / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: returnSize / harness.MiB})
	b := &returnBench{metadata: m.FaultyDisk("meta", 1), model: harness.NewModel(returnSize, 4*harness.KiB), buf: m.Buffer(harness.IOSize), rng: returnPage}
	for d, content := range map[*harness.Disk]harness.Version{source: harness.Original, dest: harness.Junk} {
		v := m.Open(d.Path, os.O_WRONLY)
		harness.Fill(b.buf, returnPage, content)
		b.must(t, v.Write(b.buf, returnPage))
		v.Close()
	}
	b.Clone = m.AddClone(source, dest, b.metadata.Disk, "--no-hydration", "--read-through=off")
	b.v = m.Open(b.Path, os.O_RDWR)
	for off := int64(0); off < returnPage; off += harness.IOSize {
		b.must(t, b.model.Write(b.v, b.buf, off, false))
	}
	b.must(t, b.v.Flush())
	b.scatter()
	return b
}

func (b *returnBench) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// scatter makes new marks of both kinds, and flushes nothing.
func (b *returnBench) scatter() {
	b.M.Helper()
	err := errors.Join(b.model.Write(b.v, b.buf[:6*harness.KiB], b.rng+harness.KiB, false), b.model.Zero(b.v, b.rng+32*harness.KiB, 6*harness.KiB),
		b.model.Discard(b.v, b.rng+64*harness.KiB, 8*harness.KiB))
	if err != nil {
		b.M.Fatal(err)
	}
	b.rng += 128 * harness.KiB
}

// breakMetadata makes the metadata fail when there is a mark to commit, and then one that nobody
// can commit. The write comes first: the superblock may be written at any moment, for the sample of
// the destination, and then nothing can be marked.
func (b *returnBench) breakMetadata(fail func()) {
	b.M.Helper()
	if err := b.v.Flush(); err != nil {
		b.M.Fatal(err)
	}
	if err := b.model.Write(b.v, b.buf[:6*harness.KiB], b.rng+harness.KiB, false); err != nil {
		b.M.Fatal(err)
	}
	fail()
	_ = b.model.Discard(b.v, b.rng+64*harness.KiB, 8*harness.KiB) // the commit that nobody asks for may have failed before it
	b.rng += 128 * harness.KiB
	if err := b.v.Flush(); err == nil {
		b.M.Error("FLUSH without metadata succeeds")
	}
}

// readOnly checks that all is there, and that nothing is accepted which would need the metadata.
func (b *returnBench) readOnly(when string) {
	b.M.Helper()
	if s := b.Status(); s.Mode != "ro" || s.State != "failed" || !strings.Contains(s.Reason, "metadata") {
		b.M.Errorf("%s: mode %s, state %s: %s", when, s.Mode, s.State, s.Reason)
	}
	if err := errors.Join(b.model.Write(b.v, b.buf[:8*harness.KiB], 5*harness.MiB, false), b.model.Write(b.v, b.buf[:4*harness.KiB], returnPage+4*harness.KiB, false)); err != nil {
		b.M.Errorf("%s: write of hydrated regions: %v", when, err)
	}
	if err := b.model.Write(b.v, b.buf[:4*harness.KiB], returnSize-8*harness.KiB, false); err == nil {
		b.M.Errorf("%s: a write that needs a mark succeeds", when)
	}
	if err := b.v.Flush(); err == nil {
		b.M.Errorf("%s: FLUSH succeeds", when)
	}
	b.check()
}

// check compares what the tests change with the model, and some of the rest.
func (b *returnBench) check() {
	b.M.Helper()
	b.model.CheckBut(b.M, b.Path, 6*harness.MiB, b.model.Size-2*harness.MiB)
}

// resumes checks that `resume` commits everything and goes on: also after the end of the live map.
func (b *returnBench) resumes() {
	b.M.Helper()
	b.resume()
	b.scatter()
	marked := b.Status().Regions.Hydrated
	if err := b.v.Flush(); err != nil {
		b.M.Errorf("FLUSH after resume: %v", err)
	}
	b.durable("after a FLUSH", marked)
	b.check()
	b.v.Close()
	b.Kill()
	b.M.MustRun(harness.Command, "prune")
	b.M.DropLiveMaps()
	args := b.Args
	b.Args = append(b.Args, "--force") // as after a power cut
	b.Add()
	b.Args = args
	b.model.Check(b.M, b.Path)
	b.Del()
}

// resume is the command, which also switches hydration on.
func (b *returnBench) resume() {
	b.M.Helper()
	marked := b.Status().Regions.Hydrated
	b.M.MustRun(harness.Command, "resume", b.Name)
	b.durable("after resume", marked)
	b.M.MustRun(harness.Command, "pause", b.Name)
	if s := b.Status(); s.Mode != "rw" || s.State != "paused" && s.State != "hydrated" {
		b.M.Errorf("after resume: mode %s, state %s: %s", s.Mode, s.State, s.Reason)
	}
}

// durable checks that at least so many regions are marked in the metadata.
func (b *returnBench) durable(when string, least uint64) {
	b.M.Helper()
	got := durableMap(b.M, b.metadata.Under)
	if n := got.NrHydrated() + got.NrZero(); n < least {
		b.M.Errorf("%s: %d regions are marked in the metadata, %d were in memory", when, n, least)
	}
}

// TestMetadataReturn: metadata that could not be written are written again when somebody says so,
// with all that the failed commit had to write, and what was marked since; not before.
func TestMetadataReturn(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newReturnBench(t)
	b.breakMetadata(func() { b.metadata.Fail(0, b.metadata.Size) })
	b.readOnly("failed")
	b.M.ExpectFailure(b.M.Try(harness.Command, "resume", b.Name), exit.Metadata, b.metadata.Path)
	b.readOnly("after a resume in vain")
	b.metadata.Fail(metaPages, b.metadata.Size) // only the superblocks can be written
	b.M.ExpectFailure(b.M.Try(harness.Command, "resume", b.Name), exit.Metadata, b.metadata.Path)
	b.readOnly("after a resume that began well")
	b.metadata.Mend()
	b.readOnly("mended, and nobody has said so")
	b.resumes()
}

// TestMetadataReturnAfterDeath: the same, with daemons that die in between.
func TestMetadataReturnAfterDeath(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newReturnBench(t)
	b.breakMetadata(func() { b.metadata.Fail(metaPages, b.metadata.Size) })
	for _, mend := range []bool{false, true} {
		b.End(syscall.SIGKILL)
		if mend {
			b.metadata.Mend()
		}
		b.Recover()
		b.readOnly(fmt.Sprintf("recovered, mended: %t", mend))
	}
	b.resumes()
}

// TestMetadataUnreadable: the live map stands in for metadata that a recovery cannot read (I11).
// Nothing that was acknowledged is lost, nothing is written to them, and when they are back
// everything is committed.
func TestMetadataUnreadable(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	cases := []struct {
		name     string
		bad, end int64
	}{
		{name: "pages", bad: metaPages, end: harness.MiB},
		{name: "all", end: harness.MiB},
		{name: "superblocks", end: metaPages},
	}
	for _, c := range cases[:harness.Count(1, len(cases))] { // TestMetadataDamaged has bad superblocks, too
		t.Run(c.name, func(t *testing.T) {
			b := newReturnBench(t)
			b.End(syscall.SIGKILL)
			b.metadata.Fail(c.bad, c.end)
			before := b.metadata.Under.Traffic()
			for range harness.Count(1, 3) {
				b.Recover()
				b.readOnly("recovered")
				b.M.ExpectFailure(b.M.Try(harness.Command, "resume", b.Name), exit.Metadata)
				b.End(syscall.SIGKILL)
			}
			b.Recover()
			if n := b.metadata.Under.Traffic().Since(before).Writes; n != 0 {
				t.Errorf("the metadata was written %d times", n)
			}
			b.metadata.Mend()
			b.readOnly("mended")
			b.resumes()
		})
	}
}

// TestMetadataUnwritable: it is the same with metadata that a recovery can read and not write,
// whether it is the writes that fail or the device has become read-only, and in a planned restart,
// too.
func TestMetadataUnwritable(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	cases := []struct {
		name       string
		fail, mend func(b *returnBench)
	}{
		{"writes fail", func(b *returnBench) { b.metadata.FailWrites() }, func(b *returnBench) { b.metadata.Mend() }},
		{"a read-only device",
			func(b *returnBench) { b.M.MustRun("blockdev", "--setro", b.metadata.Path) },
			func(b *returnBench) { b.M.MustRun("blockdev", "--setrw", b.metadata.Path) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newReturnBench(t)
			b.breakMetadata(func() { c.fail(b) })
			b.M.MustRun(harness.Command, "restart", b.Name)
			b.readOnly("restarted")
			b.End(syscall.SIGKILL)
			b.Recover()
			b.readOnly("recovered")
			b.M.ExpectFailure(b.M.Try(harness.Command, "resume", b.Name), exit.Metadata)
			b.End(syscall.SIGKILL)
			c.mend(b)
			b.Recover()
			b.readOnly("mended")
			b.resumes()
		})
	}
}

// TestMetadataUnwritableSince: they were sound when the daemon died, and cannot be written by the
// next.
func TestMetadataUnwritableSince(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newReturnBench(t)
	b.End(syscall.SIGKILL)
	b.metadata.FailWrites()
	for range 2 {
		b.Recover()
		b.readOnly("recovered")
		b.End(syscall.SIGKILL)
	}
	b.Recover()
	b.metadata.Mend()
	b.readOnly("mended")
	b.resumes()
}

// TestMetadataReadOnlyFS: the file system of the metadata's file is read-only when the daemon is
// replaced. They are not a device's, which the rest of the bench is for.
func TestMetadataReadOnlyFS(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	dir := m.Ext4Dir(16)
	remount := func(flags uintptr) {
		t.Helper()
		m.WaitFor(harness.CleanLimit, "nobody to write there", func() error { return unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "") })
	}
	meta := &harness.Disk{M: &m.Devices, Path: filepath.Join(dir, "meta")}
	c := m.AddClone(source, dest, meta, "--no-hydration", "--read-through=off")
	w, v, buf := harness.NewModel(16*harness.MiB, 4*harness.KiB), m.Open(c.Path, os.O_RDWR), m.Buffer(4096)
	if err := errors.Join(w.Write(v, buf, 0, false), v.Flush(), w.Write(v, buf, harness.MiB, false)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c.End(syscall.SIGKILL)
		remount(unix.MS_RDONLY)
		c.Recover()
		if s := c.Status(); s.Mode != "ro" || !strings.Contains(s.Reason, "metadata") {
			t.Errorf("mode %s, state %s: %s", s.Mode, s.State, s.Reason)
		}
		if err := v.Flush(); err == nil {
			t.Error("FLUSH succeeds")
		}
		w.Check(m, c.Path)
		m.ExpectFailure(m.Try(harness.Command, "resume", c.Name), exit.Metadata, meta.Path)
	}
	remount(0)
	m.MustRun(harness.Command, "resume", c.Name)
	if err := v.Flush(); err != nil {
		t.Errorf("FLUSH after resume: %v", err)
	}
	v.Close()
	w.Check(m, c.Path)
	c.Del()
}

// TestMetadataGone: the metadata's device is not there when the daemon is replaced, or goes under
// it, and comes back as another device of the same name.
func TestMetadataGone(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newReturnBench(t)
	b.End(syscall.SIGKILL)
	away := takeAway(b.M, b.metadata)
	b.Recover()
	b.readOnly("recovered without them")
	b.M.ExpectFailure(b.M.Try(harness.Command, "resume", b.Name), exit.Metadata, b.metadata.Path)
	away()
	b.resumes()
}

// takeAway removes a device; what it returns makes it anew, with its content.
func takeAway(m *harness.Machine, d *harness.FaultyDisk) (back func()) {
	m.Helper()
	m.MustRun("dmsetup", "remove", "--retry", d.Mapper)
	return func() {
		m.Helper()
		m.MustRun("dmsetup", "create", d.Mapper, "--table", fmt.Sprintf("0 %d linear %s 0", d.Size/harness.Sector, d.Under.Path))
		if path := m.MapperPath(d.Mapper); path != d.Path {
			m.Fatalf("%s has come back as %s", d.Path, path)
		}
	}
}

// TestMetadataGoneInUse: the metadata's device goes while the daemon has it open.
func TestMetadataGoneInUse(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	source, dest, meta := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16}), m.NullBlk("meta", harness.NullOptions{MiB: 1})
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	c := m.AddClone(source, dest, meta, "--no-hydration", "--read-through=off")
	b := &returnBench{Clone: c, model: harness.NewModel(16*harness.MiB, 4*harness.KiB), metadata: &harness.FaultyDisk{Disk: meta, Under: meta}, v: m.Open(c.Path, os.O_RDWR), buf: m.Buffer(harness.IOSize)}
	b.scatter()
	power := filepath.Join(harness.NullBlkDir, meta.Name, "power")
	var content []byte
	b.breakMetadata(func() {
		content = m.ReadDisk(meta)
		m.WriteFile(power, "0")
	})
	m.ExpectFailure(m.Try(harness.Command, "resume", c.Name), exit.Metadata)
	m.WriteFile(power, "1")
	m.Block(meta.Path)
	b.overwrite(make([]byte, len(content)))
	m.ExpectFailure(m.Try(harness.Command, "resume", c.Name), exit.Metadata) // a device of that name, and empty
	b.overwrite(content)
	b.resumes()
}

// TestMetadataOfAnotherClone: a recovery that finds those of another clone refuses them, whatever
// the live map says. The device waits, and goes on with its own.
func TestMetadataOfAnotherClone(t *testing.T) {
	runs.On(t, "7.3")
	b := newReturnBench(t)
	b.v.Close()
	b.End(syscall.SIGKILL)
	other := b.M.NullBlk("other", harness.NullOptions{MiB: 1})
	x := &harness.Clone{M: b.M, Name: "other", Args: harness.AddArgs(b.M.NullBlk("src2", harness.NullOptions{MiB: returnSize / harness.MiB}), b.M.NullBlk("dst2", harness.NullOptions{MiB: returnSize / harness.MiB}), other, "--no-hydration")}
	x.Add()
	x.Del()
	own := b.M.ReadDisk(b.metadata.Disk)
	b.overwrite(b.M.ReadDisk(other))
	b.M.ExpectFailure(b.M.Try(harness.Command, "recover", b.Name), exit.Metadata, "waits for a daemon")
	b.overwrite(own)
	b.Recover()
	b.model.Check(b.M, b.Path)
	b.Del()
}

// TestMetadataDamaged: the live map also stands in for metadata that make no sense; they are not
// written, and once they are what they were the clone goes on.
func TestMetadataDamaged(t *testing.T) {
	runs.On(t, "7.3")
	b := newReturnBench(t)
	b.End(syscall.SIGKILL)
	content := b.M.ReadDisk(b.metadata.Disk)
	b.overwrite(make([]byte, metaPages))
	b.Recover()
	b.readOnly("recovered")
	b.M.ExpectFailure(b.M.Try(harness.Command, "resume", b.Name), exit.Metadata)
	b.overwrite(content)
	b.resumes()
}

// overwrite changes what the metadata holds, whoever has it.
func (b *returnBench) overwrite(content []byte) {
	b.M.Helper()
	v := b.M.Open(b.metadata.Path, os.O_WRONLY)
	defer v.Close()
	copy(b.buf, content)
	if err := v.Write(b.buf[:len(content)], 0); err != nil {
		b.M.Fatal(err)
	}
}

// TestLostFlushIsFinal: `resume` does not end what a failed flush of the destination has begun, nor
// does a death.
func TestLostFlushIsFinal(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	source := m.NullBlk("src", harness.NullOptions{MiB: 16})
	under := m.Loop(m.File("dst", 16*harness.MiB).Path, 512) // has a cache, so that flushes are no mere form
	dest := &harness.FaultyDisk{Disk: m.Linear("dst", under, under.Size), Mapper: "dst", Under: under}
	m.FillDisk(source, harness.Original)
	c := m.AddClone(source, dest.Disk, m.Missing("meta"), "--no-hydration", "--read-through=off")
	w, v, buf := harness.NewModel(16*harness.MiB, 4*harness.KiB), m.Open(c.Path, os.O_RDWR), m.Buffer(4096)
	if err := errors.Join(w.Write(v, buf, 0, false), v.Flush(), w.Write(v, buf, harness.MiB, false)); err != nil {
		t.Fatal(err)
	}
	dest.FailWrites()
	if err := v.Flush(); err == nil {
		t.Error("FLUSH without destination succeeds")
	}
	dest.Mend()
	for range 2 {
		m.ExpectFailure(m.Try(harness.Command, "resume", c.Name), exit.Dest, "add --force")
		if err := v.Flush(); err == nil {
			t.Error("FLUSH succeeds")
		}
		w.Check(m, c.Path)
		c.End(syscall.SIGKILL)
		c.Recover()
	}
	v.Close()
	m.ExpectFailure(m.Try(harness.Command, "del", c.Name), exit.OK, "no clean flag")
	c.Path = ""
	c.Args = append(c.Args, "--force") // from the last commit
	c.Add()
	w.CheckBut(m, c.Path, 4096, w.Size)
	c.Del()
}
