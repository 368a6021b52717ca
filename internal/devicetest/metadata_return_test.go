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

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Metadata that fail, or cannot be read when the daemon is replaced, and come back (I10, I11).

// returnBench is a clone of two pages of the region map: the first is hydrated throughout, committed and given back,
// the second has marks that nobody has flushed. Its metadata can be made to fail.
type returnBench struct {
	*clone
	model    *model
	metadata *faultyDisk
	v        *volume
	buf      []byte
	rng      int64 // where next writes new regions
}

const (
	returnPage = 63 * mib // regions of 4 KiB that a page of the map holds
	returnSize = returnPage + mib
	metaPages  = 128 * kib // where the metadata's superblocks end
)

func newReturnBench(t *testing.T) *returnBench {
	m := newMachine(t)
	m.kernel.expect("I/O error")
	source, dest := m.nullBlk("src", nullOptions{mib: returnSize / mib}), m.nullBlk("dst", nullOptions{mib: returnSize / mib})
	b := &returnBench{metadata: m.faultyDisk("meta", 1), model: newModel(returnSize, 4*kib), buf: m.buffer(ioSize), rng: returnPage}
	for d, content := range map[*disk]version{source: original, dest: junk} {
		v := m.open(d.path, os.O_WRONLY)
		fill(b.buf, returnPage, content)
		b.must(t, v.write(b.buf, returnPage))
		v.close()
	}
	b.clone = m.addClone(source, dest, b.metadata.disk, "--no-hydration", "--read-through=off")
	b.v = m.open(b.path, os.O_RDWR)
	for off := int64(0); off < returnPage; off += ioSize {
		b.must(t, b.model.write(b.v, b.buf, off, false))
	}
	b.must(t, b.v.flush())
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
	b.m.Helper()
	err := errors.Join(b.model.write(b.v, b.buf[:6*kib], b.rng+kib, false), b.model.zero(b.v, b.rng+32*kib, 6*kib),
		b.model.discard(b.v, b.rng+64*kib, 8*kib))
	if err != nil {
		b.m.Fatal(err)
	}
	b.rng += 128 * kib
}

// breakMetadata makes the metadata fail when there are no marks to commit, and then one that nobody can commit.
func (b *returnBench) breakMetadata(fail func()) {
	b.m.Helper()
	if err := b.v.flush(); err != nil {
		b.m.Fatal(err)
	}
	fail()
	if err := b.model.write(b.v, b.buf[:6*kib], b.rng+kib, false); err != nil {
		b.m.Fatal(err)
	}
	_ = b.model.discard(b.v, b.rng+64*kib, 8*kib) // the commit that nobody asks for may have failed before it
	b.rng += 128 * kib
	if err := b.v.flush(); err == nil {
		b.m.Error("FLUSH without metadata succeeds")
	}
}

// readOnly checks that all is there, and that nothing is accepted which would need the metadata.
func (b *returnBench) readOnly(when string) {
	b.m.Helper()
	if s := b.status(); s.Mode != "ro" || s.State != "failed" || !strings.Contains(s.Reason, "metadata") {
		b.m.Errorf("%s: mode %s, state %s: %s", when, s.Mode, s.State, s.Reason)
	}
	if err := errors.Join(b.model.write(b.v, b.buf[:8*kib], 5*mib, false), b.model.write(b.v, b.buf[:4*kib], returnPage+4*kib, false)); err != nil {
		b.m.Errorf("%s: write of hydrated regions: %v", when, err)
	}
	if err := b.model.write(b.v, b.buf[:4*kib], returnSize-8*kib, false); err == nil {
		b.m.Errorf("%s: a write that needs a mark succeeds", when)
	}
	if err := b.v.flush(); err == nil {
		b.m.Errorf("%s: FLUSH succeeds", when)
	}
	b.check()
}

// check compares what the tests change with the model, and some of the rest.
func (b *returnBench) check() {
	b.m.Helper()
	b.model.checkBut(b.m, b.path, 6*mib, b.model.size-2*mib)
}

// resumes checks that `resume` commits everything and goes on: also after the end of the live map.
func (b *returnBench) resumes() {
	b.m.Helper()
	b.resume()
	b.scatter()
	marked := b.status().Regions.Hydrated
	if err := b.v.flush(); err != nil {
		b.m.Errorf("FLUSH after resume: %v", err)
	}
	b.durable("after a FLUSH", marked)
	b.check()
	b.v.close()
	b.kill()
	b.m.run(command, "prune")
	b.m.dropLiveMaps()
	args := b.args
	b.args = append(b.args, "--force") // as after a power cut
	b.add()
	b.args = args
	b.model.check(b.m, b.path)
	b.del()
}

// resume is the command, which also switches hydration on.
func (b *returnBench) resume() {
	b.m.Helper()
	marked := b.status().Regions.Hydrated
	b.m.run(command, "resume", b.name)
	b.durable("after resume", marked)
	b.m.run(command, "pause", b.name)
	if s := b.status(); s.Mode != "rw" || s.State != "paused" && s.State != "hydrated" {
		b.m.Errorf("after resume: mode %s, state %s: %s", s.Mode, s.State, s.Reason)
	}
}

// durable checks that at least so many regions are marked in the metadata.
func (b *returnBench) durable(when string, least uint64) {
	b.m.Helper()
	got := b.m.durableMap(b.metadata.under)
	if n := got.NrHydrated() + got.NrZero(); n < least {
		b.m.Errorf("%s: %d regions are marked in the metadata, %d were in memory", when, n, least)
	}
}

// TestMetadataReturn: metadata that could not be written are written again when somebody says so, with all that the
// failed commit had to write, and what was marked since; not before.
func TestMetadataReturn(t *testing.T) {
	runs.On(t, "6.18")
	b := newReturnBench(t)
	b.breakMetadata(func() { b.metadata.fail(0, b.metadata.size) })
	b.readOnly("failed")
	b.m.expectFailure(b.m.try(command, "resume", b.name), exit.Metadata, b.metadata.path)
	b.readOnly("after a resume in vain")
	b.metadata.fail(metaPages, b.metadata.size) // only the superblocks can be written
	b.m.expectFailure(b.m.try(command, "resume", b.name), exit.Metadata, b.metadata.path)
	b.readOnly("after a resume that began well")
	b.metadata.mend()
	b.readOnly("mended, and nobody has said so")
	b.resumes()
}

// TestMetadataReturnAfterDeath: the same, with daemons that die in between.
func TestMetadataReturnAfterDeath(t *testing.T) {
	runs.On(t, "6.18")
	b := newReturnBench(t)
	b.breakMetadata(func() { b.metadata.fail(metaPages, b.metadata.size) })
	for _, mend := range []bool{false, true} {
		b.end(syscall.SIGKILL)
		if mend {
			b.metadata.mend()
		}
		b.recover()
		b.readOnly(fmt.Sprintf("recovered, mended: %t", mend))
	}
	b.resumes()
}

// TestMetadataUnreadable: the live map stands in for metadata that a recovery cannot read (I11). Nothing that was
// acknowledged is lost, nothing is written to them, and when they are back everything is committed.
func TestMetadataUnreadable(t *testing.T) {
	runs.On(t, "7.3")
	cases := []struct {
		name     string
		bad, end int64
	}{
		{name: "pages", bad: metaPages, end: mib},
		{name: "all", end: mib},
		{name: "superblocks", end: metaPages},
	}
	for _, c := range cases[:count(1, len(cases))] { // TestMetadataDamaged has bad superblocks, too
		t.Run(c.name, func(t *testing.T) {
			b := newReturnBench(t)
			b.end(syscall.SIGKILL)
			b.metadata.fail(c.bad, c.end)
			before := b.metadata.under.traffic()
			for range count(1, 3) {
				b.recover()
				b.readOnly("recovered")
				b.m.expectFailure(b.m.try(command, "resume", b.name), exit.Metadata)
				b.end(syscall.SIGKILL)
			}
			b.recover()
			if n := b.metadata.under.traffic().since(before).writes; n != 0 {
				t.Errorf("the metadata were written %d times", n)
			}
			b.metadata.mend()
			b.readOnly("mended")
			b.resumes()
		})
	}
}

// TestMetadataUnwritable: it is the same with metadata that a recovery can read and not write, whether it is the writes
// that fail or the device has become read-only, and in a planned restart, too.
func TestMetadataUnwritable(t *testing.T) {
	runs.On(t, "6.12")
	cases := []struct {
		name       string
		fail, mend func(b *returnBench)
	}{
		{"writes fail", func(b *returnBench) { b.metadata.failWrites() }, func(b *returnBench) { b.metadata.mend() }},
		{"a read-only device",
			func(b *returnBench) { b.m.run("blockdev", "--setro", b.metadata.path) },
			func(b *returnBench) { b.m.run("blockdev", "--setrw", b.metadata.path) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newReturnBench(t)
			b.breakMetadata(func() { c.fail(b) })
			b.m.run(command, "restart", b.name)
			b.readOnly("restarted")
			b.end(syscall.SIGKILL)
			b.recover()
			b.readOnly("recovered")
			b.m.expectFailure(b.m.try(command, "resume", b.name), exit.Metadata)
			b.end(syscall.SIGKILL)
			c.mend(b)
			b.recover()
			b.readOnly("mended")
			b.resumes()
		})
	}
}

// TestMetadataUnwritableSince: they were sound when the daemon died, and cannot be written by the next.
func TestMetadataUnwritableSince(t *testing.T) {
	runs.On(t, "6.18")
	b := newReturnBench(t)
	b.end(syscall.SIGKILL)
	b.metadata.failWrites()
	for range 2 {
		b.recover()
		b.readOnly("recovered")
		b.end(syscall.SIGKILL)
	}
	b.recover()
	b.metadata.mend()
	b.readOnly("mended")
	b.resumes()
}

// TestMetadataReadOnlyFS: the file system of the metadata's file is read-only when the daemon is replaced. They are
// not a device's, which the rest of the bench is for.
func TestMetadataReadOnlyFS(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	folder := m.ext4Folder(16)
	remount := func(flags uintptr) {
		t.Helper()
		m.waitFor(cleanLimit, "nobody to write there", func() error { return unix.Mount("", folder, "", unix.MS_REMOUNT|flags, "") })
	}
	meta := &disk{m: m, path: filepath.Join(folder, "meta")}
	c := m.addClone(source, dest, meta, "--no-hydration", "--read-through=off")
	w, v, buf := newModel(16*mib, 4*kib), m.open(c.path, os.O_RDWR), m.buffer(4096)
	if err := errors.Join(w.write(v, buf, 0, false), v.flush(), w.write(v, buf, mib, false)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c.end(syscall.SIGKILL)
		remount(unix.MS_RDONLY)
		c.recover()
		if s := c.status(); s.Mode != "ro" || !strings.Contains(s.Reason, "metadata") {
			t.Errorf("mode %s, state %s: %s", s.Mode, s.State, s.Reason)
		}
		if err := v.flush(); err == nil {
			t.Error("FLUSH succeeds")
		}
		w.check(m, c.path)
		m.expectFailure(m.try(command, "resume", c.name), exit.Metadata, meta.path)
	}
	remount(0)
	m.run(command, "resume", c.name)
	if err := v.flush(); err != nil {
		t.Errorf("FLUSH after resume: %v", err)
	}
	v.close()
	w.check(m, c.path)
	c.del()
}

// TestMetadataGone: the metadata's device is not there when the daemon is replaced, or goes under it, and comes back as
// another device of the same name.
func TestMetadataGone(t *testing.T) {
	runs.On(t, "6.18")
	b := newReturnBench(t)
	b.end(syscall.SIGKILL)
	away := b.m.takeAway(b.metadata)
	b.recover()
	b.readOnly("recovered without them")
	b.m.expectFailure(b.m.try(command, "resume", b.name), exit.Metadata, b.metadata.path)
	away()
	b.resumes()
}

// takeAway removes a device; what it returns makes it anew, with its content.
func (m *machine) takeAway(d *faultyDisk) (back func()) {
	m.Helper()
	m.run("dmsetup", "remove", "--retry", d.mapper)
	return func() {
		m.Helper()
		m.run("dmsetup", "create", d.mapper, "--table", fmt.Sprintf("0 %d linear %s 0", d.size/sector, d.under.path))
		if path := m.mapperPath(d.mapper); path != d.path {
			m.Fatalf("%s has come back as %s", d.path, path)
		}
	}
}

// TestMetadataGoneInUse: the metadata's device goes while the daemon has it open.
func TestMetadataGoneInUse(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	source, dest, meta := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16}), m.nullBlk("meta", nullOptions{mib: 1})
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	c := m.addClone(source, dest, meta, "--no-hydration", "--read-through=off")
	b := &returnBench{clone: c, model: newModel(16*mib, 4*kib), metadata: &faultyDisk{disk: meta, under: meta}, v: m.open(c.path, os.O_RDWR), buf: m.buffer(ioSize)}
	b.scatter()
	power := filepath.Join(nullBlkFolder, meta.name, "power")
	var content []byte
	b.breakMetadata(func() {
		content = m.readDisk(meta)
		m.writeFile(power, "0")
	})
	m.expectFailure(m.try(command, "resume", c.name), exit.Metadata)
	m.writeFile(power, "1")
	m.block(meta.path)
	b.overwrite(make([]byte, len(content)))
	m.expectFailure(m.try(command, "resume", c.name), exit.Metadata) // a device of that name, and empty
	b.overwrite(content)
	b.resumes()
}

// readDisk is all that a small device holds.
func (m *machine) readDisk(d *disk) (content []byte) {
	m.Helper()
	m.sweep(d.path, d.size, func(_ int64, b []byte) error {
		content = append(content, b...)
		return nil
	})
	return content
}

// TestMetadataOfAnotherClone: a recovery that finds those of another clone refuses them, whatever the live map says. The
// device waits, and goes on with its own.
func TestMetadataOfAnotherClone(t *testing.T) {
	runs.On(t, "7.3")
	b := newReturnBench(t)
	b.v.close()
	b.end(syscall.SIGKILL)
	other := b.m.nullBlk("other", nullOptions{mib: 1})
	x := &clone{m: b.m, name: "other", args: addArgs(b.m.nullBlk("src2", nullOptions{mib: returnSize / mib}), b.m.nullBlk("dst2", nullOptions{mib: returnSize / mib}), other, "--no-hydration")}
	x.add()
	x.del()
	own := b.m.readDisk(b.metadata.disk)
	b.overwrite(b.m.readDisk(other))
	b.m.expectFailure(b.m.try(command, "recover", b.name), exit.Metadata, "waits for a daemon")
	b.overwrite(own)
	b.recover()
	b.model.check(b.m, b.path)
	b.del()
}

// TestMetadataDamaged: the live map also stands in for metadata that make no sense; they are not written, and once they
// are what they were the clone goes on.
func TestMetadataDamaged(t *testing.T) {
	runs.On(t, "7.3")
	b := newReturnBench(t)
	b.end(syscall.SIGKILL)
	content := b.m.readDisk(b.metadata.disk)
	b.overwrite(make([]byte, metaPages))
	b.recover()
	b.readOnly("recovered")
	b.m.expectFailure(b.m.try(command, "resume", b.name), exit.Metadata)
	b.overwrite(content)
	b.resumes()
}

// overwrite changes what the metadata hold, whoever has them.
func (b *returnBench) overwrite(content []byte) {
	b.m.Helper()
	v := b.m.open(b.metadata.path, os.O_WRONLY)
	defer v.close()
	copy(b.buf, content)
	if err := v.write(b.buf[:len(content)], 0); err != nil {
		b.m.Fatal(err)
	}
}

// TestLostFlushIsFinal: `resume` does not end what a failed flush of the destination has begun, nor does a death.
func TestLostFlushIsFinal(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	source := m.nullBlk("src", nullOptions{mib: 16})
	under := m.loop(m.file("dst", 16*mib).path, 512) // has a cache, so that flushes are no mere form
	dest := &faultyDisk{disk: m.linear("dst", under, under.size), mapper: "dst", under: under}
	m.fillDisk(source, original)
	c := m.addClone(source, dest.disk, m.missing("meta"), "--no-hydration", "--read-through=off")
	w, v, buf := newModel(16*mib, 4*kib), m.open(c.path, os.O_RDWR), m.buffer(4096)
	if err := errors.Join(w.write(v, buf, 0, false), v.flush(), w.write(v, buf, mib, false)); err != nil {
		t.Fatal(err)
	}
	dest.failWrites()
	if err := v.flush(); err == nil {
		t.Error("FLUSH without destination succeeds")
	}
	dest.mend()
	for range 2 {
		m.expectFailure(m.try(command, "resume", c.name), exit.Dest, "add --force")
		if err := v.flush(); err == nil {
			t.Error("FLUSH succeeds")
		}
		w.check(m, c.path)
		c.end(syscall.SIGKILL)
		c.recover()
	}
	v.close()
	m.expectFailure(m.try(command, "del", c.name), exit.OK, "no clean mark")
	c.path = ""
	c.args = append(c.args, "--force") // from the last commit
	c.add()
	w.checkBut(m, c.path, 4096, w.size)
	c.del()
}
