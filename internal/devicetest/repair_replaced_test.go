//go:build device

package devicetest

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Metadata in which a commit has failed half way, daemons that replace one another, and a repair.

// slotsOfPage1 are the bytes of the metadata that hold page 1 of the region map: two slots.
const slotsOfPage1 = metaPages + 8*harness.KiB

// newReplacedBench makes a clone of two pages of the region map, whose metadata can be made to
// fail.
func newReplacedBench(t *testing.T) *returnBench {
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: returnSize / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: returnSize / harness.MiB})
	m.FillDisk(source, harness.Original)
	b := &returnBench{metadata: m.FaultyDisk("meta", 1), model: harness.NewModel(returnSize, 4*harness.KiB), buf: m.Buffer(harness.IOSize)}
	// Each resume switches hydration on: it must not get to where the tests write.
	b.Clone = m.AddClone(source, dest, b.metadata.Disk, "--no-hydration", "--read-through=off", "--rate", "1MiB/s")
	b.v = m.Open(b.Path, os.O_RDWR)
	return b
}

// across writes two new regions, the last of one page of the region map and the first of the next:
// one commit has both.
func (b *returnBench) across(n int64) error {
	return b.model.Write(b.v, b.buf[:8*harness.KiB*n], returnPage-4*harness.KiB*n, false)
}

// failHalfway has a commit fail when page 0 is written and page 1 cannot be.
func (b *returnBench) failHalfway(n int64) {
	b.M.Helper()
	if err := b.v.Flush(); err != nil {
		b.M.Fatal(err)
	}
	before := b.newestSlot(0)
	b.metadata.FailWritesOf(slotsOfPage1, slotsOfPage1+8*harness.KiB)
	b.must(b.M.T, b.across(n))
	if err := b.v.Flush(); err == nil {
		b.M.Error("FLUSH without page 1 succeeds")
	}
	b.M.WaitFor(harness.CleanLimit, "the mode to be ro", func() error {
		if s := b.Status(); s.Mode != "ro" {
			return fmt.Errorf("mode %s", s.Mode)
		}
		return nil
	})
	if after := b.newestSlot(0); after != before+1 {
		b.M.Fatalf("page 0 has sequence %d, it had %d: the case is not what it was", after, before)
	}
}

// newestSlot is the sequence of the newest slot of a page, by FORMAT.md.
func (b *returnBench) newestSlot(page int64) (newest uint64) {
	b.M.Helper()
	content := b.M.ReadDisk(b.metadata.Under)
	for slot := range int64(2) {
		at := metaPages + page*8*harness.KiB + slot*4*harness.KiB + 16
		newest = max(newest, harness.LittleEndian.Uint64(content[at:]))
	}
	return newest
}

// TestRepairAfterReplacement: `resume` brings healthy metadata back after a commit of which one
// slot had landed, however often the daemon was replaced since, and also if a daemon could not
// write all of its superblock.
func TestRepairAfterReplacement(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	b := newReplacedBench(t)
	killed := func() { b.End(syscall.SIGKILL); b.Recover() }
	restarted := func() { b.M.MustRun(harness.Command, "restart", b.Name) }
	cases := []struct {
		name     string
		replaced func()
	}{
		{"killed", func() { b.metadata.Mend(); killed() }},
		{"restarted, killed, restarted", func() { b.metadata.Mend(); restarted(); killed(); restarted() }},
		{"killed before the metadata was mended", func() { killed(); b.metadata.Mend() }},
		{"killed before and after", func() { killed(); b.metadata.Mend(); killed() }},
		{"a superblock written in part", func() {
			b.metadata.FailWritesOf(64*harness.KiB, 68*harness.KiB)
			killed()
			b.metadata.Mend()
		}},
		{"a superblock written in part, and others", func() {
			b.metadata.FailWritesOf(64*harness.KiB, 68*harness.KiB)
			killed()
			killed()
			b.metadata.Mend()
			restarted()
		}},
	}
	for i, c := range cases {
		if i%harness.Count(2, 1) != 0 {
			continue
		}
		b.failHalfway(int64(i + 1))
		c.replaced()
		if s := b.Status(); s.Mode != "ro" {
			t.Errorf("%s: mode %s before the repair", c.name, s.Mode)
		}
		b.resume()
		if err := b.v.Flush(); err != nil {
			t.Errorf("%s: FLUSH after resume: %v", c.name, err)
		}
	}
	b.failHalfway(int64(len(cases) + 1)) // --force is the explicit word, too
	b.v.Close()
	b.metadata.Mend()
	b.Kill()
	b.M.MustRun(harness.Command, "prune")
	args := b.Args
	b.Args = append(b.Args, "--force")
	b.Add()
	b.Args = args
	b.durable("after --force", b.Status().Regions.Hydrated)
	if s := b.Status(); s.Mode != "rw" {
		t.Errorf("mode %s after --force", s.Mode)
	}
	b.model.Check(b.M, b.Path)
	b.v = b.M.Open(b.Path, os.O_RDWR)
	b.resumes()
}

// TestSessionBeginsInVain: the start fails while the superblock is written. The next one is not
// refused: no mark was made. No bad block has it fail with one copy of the new session on the disk,
// as both copies are written before that; the simulator cuts an open short there.
func TestSessionBeginsInVain(t *testing.T) {
	runs.On(t, "6.18")
	b := newReplacedBench(t)
	b.v.Close()
	b.Del()
	b.metadata.FailWritesOf(64*harness.KiB, 68*harness.KiB)
	b.M.ExpectFailure(b.M.Try(harness.Command, append([]string{"add", b.Name}, b.Args...)...), 10)
	b.metadata.Mend()
	b.Add()
	b.model.Check(b.M, b.Path)
	b.Del()
}
