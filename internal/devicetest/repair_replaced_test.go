//go:build device

package devicetest

import (
	"fmt"
	"os"
	"syscall"
	"testing"
)

// Metadata in which a commit has failed half way, daemons that replace one another, and a repair.

// slotsOfPage1 are the bytes of the metadata that hold page 1 of the region map: two slots.
const slotsOfPage1 = metaPages + 8*kib

// newReplacedBench makes a clone of two pages of the region map, whose metadata can be made to fail.
func newReplacedBench(t *testing.T) *returnBench {
	m := newMachine(t)
	m.kernel.expect("I/O error")
	source, dest := m.nullBlk("src", nullOptions{mib: returnSize / mib}), m.nullBlk("dst", nullOptions{mib: returnSize / mib})
	m.fillDisk(source, original)
	b := &returnBench{metadata: m.faultyDisk("meta", 1), model: newModel(returnSize, 4*kib), buf: m.buffer(ioSize)}
	// Each resume switches hydration on: it must not get to where the tests write.
	b.clone = m.addClone(source, dest, b.metadata.disk, "--no-hydration", "--read-through=off", "--rate", "1MiB/s")
	b.v = m.open(b.path, os.O_RDWR)
	return b
}

// across writes two new regions, the last of one page of the region map and the first of the next: one commit has both.
func (b *returnBench) across(n int64) error {
	return b.model.write(b.v, b.buf[:8*kib*n], returnPage-4*kib*n, false)
}

// failHalfway has a commit fail when page 0 is written and page 1 cannot be.
func (b *returnBench) failHalfway(n int64) {
	b.m.Helper()
	if err := b.v.flush(); err != nil {
		b.m.Fatal(err)
	}
	before := b.newestSlot(0)
	b.metadata.failWritesOf(slotsOfPage1, slotsOfPage1+8*kib)
	b.must(b.m.T, b.across(n))
	if err := b.v.flush(); err == nil {
		b.m.Error("FLUSH without page 1 succeeds")
	}
	b.m.waitFor(cleanLimit, "the mode to be ro", func() error {
		if s := b.status(); s.Mode != "ro" {
			return fmt.Errorf("mode %s", s.Mode)
		}
		return nil
	})
	if after := b.newestSlot(0); after != before+1 {
		b.m.Fatalf("page 0 has sequence %d, it had %d: the case is not what it was", after, before)
	}
}

// newestSlot is the sequence of the newest slot of a page, by FORMAT.md.
func (b *returnBench) newestSlot(page int64) (newest uint64) {
	b.m.Helper()
	content := b.m.readDisk(b.metadata.under)
	for slot := range int64(2) {
		at := metaPages + page*8*kib + slot*4*kib + 16
		newest = max(newest, le.Uint64(content[at:]))
	}
	return newest
}

// TestRepairAfterReplacement: `resume` brings healthy metadata back after a commit of which one slot had landed, however
// often the daemon was replaced since, and also if a daemon could not write all of its superblock.
func TestRepairAfterReplacement(t *testing.T) {
	b := newReplacedBench(t)
	killed := func() { b.end(syscall.SIGKILL); b.recover() }
	restarted := func() { b.m.run(command, "restart", b.name) }
	cases := []struct {
		name     string
		replaced func()
	}{
		{"killed", func() { b.metadata.mend(); killed() }},
		{"restarted, killed, restarted", func() { b.metadata.mend(); restarted(); killed(); restarted() }},
		{"killed before the metadata were mended", func() { killed(); b.metadata.mend() }},
		{"killed before and after", func() { killed(); b.metadata.mend(); killed() }},
		{"a superblock written in part", func() {
			b.metadata.failWritesOf(64*kib, 68*kib)
			killed()
			b.metadata.mend()
		}},
		{"a superblock written in part, and others", func() {
			b.metadata.failWritesOf(64*kib, 68*kib)
			killed()
			killed()
			b.metadata.mend()
			restarted()
		}},
	}
	for i, c := range cases {
		if i%count(2, 1) != 0 {
			continue
		}
		b.failHalfway(int64(i + 1))
		c.replaced()
		if s := b.status(); s.Mode != "ro" {
			t.Errorf("%s: mode %s before the repair", c.name, s.Mode)
		}
		b.resume()
		if err := b.v.flush(); err != nil {
			t.Errorf("%s: FLUSH after resume: %v", c.name, err)
		}
	}
	b.failHalfway(int64(len(cases) + 1)) // --force is the explicit word, too
	b.v.close()
	b.metadata.mend()
	b.kill()
	b.m.run(command, "prune")
	args := b.args
	b.args = append(b.args, "--force")
	b.add()
	b.args = args
	b.durable("after --force", b.status().Regions.Hydrated)
	if s := b.status(); s.Mode != "rw" {
		t.Errorf("mode %s after --force", s.Mode)
	}
	b.model.check(b.m, b.path)
	b.v = b.m.open(b.path, os.O_RDWR)
	b.resumes()
}

// TestSessionBeginsInVain: the start fails while the superblock is written. The next one is not refused: no mark was made.
// No bad block has it fail with one copy of the new session on the disk, as both copies are written before that; the
// simulator cuts an open short there.
func TestSessionBeginsInVain(t *testing.T) {
	b := newReplacedBench(t)
	b.v.close()
	b.del()
	b.metadata.failWritesOf(64*kib, 68*kib)
	b.m.expectFailure(b.m.try(command, append([]string{"add", b.name}, b.args...)...), 10)
	b.metadata.mend()
	b.add()
	b.model.check(b.m, b.path)
	b.del()
}
