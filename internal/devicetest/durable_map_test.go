//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// snapshot is a copy of metadata, as a metadata.Device of its own.
type snapshot []byte

func (s snapshot) ReadAt(b []byte, off int64) error  { copy(b, s[off:]); return nil }
func (s snapshot) WriteAt(b []byte, off int64) error { copy(s[off:], b); return nil }
func (s snapshot) Flush() error                      { return nil }
func (s snapshot) Size() int64                       { return int64(len(s)) }

func (s snapshot) NextData(off int64) (int64, error) { return off, nil }

// durableMap is the region map that is on the metadata device now, read past the page cache: what a
// power cut would leave, as the null_blk device has no cache.
func durableMap(m *harness.Machine, d *harness.Disk) *bitmap.Map {
	m.Helper()
	var s snapshot
	m.Sweep(d.Path, d.Size, func(_ int64, b []byte) error {
		s = append(s, b...)
		return nil
	})
	return mapOf(m, s)
}

// mapOf is the region map of metadata.
func mapOf(m *harness.Machine, s snapshot) *bitmap.Map {
	m.Helper()
	store, _, err := metadata.Open(s)
	if err != nil {
		m.Fatal(err)
	}
	nr := store.Superblock().NrRegions
	regions := bitmap.New(nr, make([]bitmap.Page, bitmap.PagesFor(nr)))
	if err := store.Load(regions.Load); err != nil {
		m.Fatal(err)
	}
	return regions
}

// flushBench is a clone whose metadata is on a device that counts.
type flushBench struct {
	*harness.Clone
	metadata *harness.Disk
	v        *harness.Volume
	buf      []byte
}

const flushRegion = 64 * harness.KiB

func newFlushBench(t *testing.T) *flushBench {
	m := harness.New(t)
	source := m.NullBlk("src", harness.NullOptions{MiB: 16})
	dest := m.NullBlk("dst", harness.NullOptions{MiB: 16})
	b := &flushBench{metadata: m.NullBlk("meta", harness.NullOptions{MiB: 1})}
	m.FillDisk(source, harness.Original)
	b.Clone = m.AddClone(source, dest, b.metadata, "--region-size", harness.KiBText(flushRegion), "--no-hydration")
	b.v, b.buf = m.Open(b.Path, os.O_RDWR), m.Buffer(int(flushRegion))
	return b
}

// write writes into a region: half of it, so that the rest is copied.
func (b *flushBench) write(region int64) {
	b.M.Helper()
	if err := b.v.Write(b.buf[:flushRegion/2], region*flushRegion); err != nil {
		b.M.Fatal(err)
	}
}

// expect checks which regions are durably hydrated: these and no others.
func (b *flushBench) expect(regions ...uint64) {
	b.M.Helper()
	if err := b.missing(regions...); err != nil {
		b.M.Fatal(err)
	}
}

func (b *flushBench) missing(regions ...uint64) error {
	b.M.Helper()
	durable := durableMap(b.M, b.metadata)
	for _, r := range regions {
		if st := durable.State(r); st != bitmap.Hydrated {
			return fmt.Errorf("region %d is %v in the metadata, not hydrated", r, st)
		}
	}
	if n := durable.NrHydrated(); n != uint64(len(regions)) {
		return fmt.Errorf("%d regions are hydrated in the metadata, expected %d", n, len(regions))
	}
	return nil
}

// leavesMetadata checks that something does not write the metadata. The daemon writes them now and
// then by itself, so it is tried again.
func (b *flushBench) leavesMetadata(what string, do func()) {
	b.M.Helper()
	var n int64
	for range 5 {
		before := b.metadata.Traffic()
		do()
		if n = b.metadata.Traffic().Since(before).Writes; n == 0 {
			return
		}
	}
	b.M.Errorf("%s wrote the metadata %d times", what, n)
}

// After a write and an fsync the metadata on disk hold the new bit; a second fsync leaves them
// unwritten.
func TestFlushCommits(t *testing.T) {
	runs.On(t, "6.18")
	b := newFlushBench(t)
	b.expect()
	b.write(17)
	b.write(200)
	b.flush()
	b.expect(17, 200)
	b.leavesMetadata("an fsync with nothing new", b.flush)
	b.leavesMetadata("an fsync after a write to a hydrated region", func() {
		b.write(17)
		b.flush()
	})
	b.v.Close()
	b.Del()
}

// A write with FUA is answered when its own mark is durable. A program cannot make one without a
// FLUSH behind it (generic_write_sync, v6.12), but ext4 can: the block that commits its journal
// goes out with FUA after a FLUSH (jbd2's journal_submit_commit_record), into a block of its own,
// and fsync ends with it.
func TestJournalCommits(t *testing.T) {
	runs.On(t, "7.3")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 64}), m.NullBlk("dst", harness.NullOptions{MiB: 64})
	metadata := m.NullBlk("meta", harness.NullOptions{MiB: 1})
	m.MustRun("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0", source.Path)
	c := m.AddClone(source, dest, metadata, "--region-size", "4KiB", "--no-hydration")
	files := &harness.FileTree{M: m, Kind: harness.Ext4}
	files.Mount(c.Path)
	f, err := os.Create(filepath.Join(files.Root, "file"))
	if err != nil {
		t.Fatal(err)
	}
	for range harness.Count(4, 8) {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		durable := durableMap(m, metadata).NrHydrated()
		if live := c.Status().Regions.Hydrated; live != durable {
			t.Errorf("after fsync %d regions are durably hydrated, %d are hydrated", durable, live)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	files.Unmount()
	c.Del()
}

func (b *flushBench) flush() {
	b.M.Helper()
	if err := b.v.Flush(); err != nil {
		b.M.Fatal(err)
	}
}

// commitLimit is the promise: without an fsync a mark is durable after at most so long.
const commitLimit = 2 * time.Second

// Without an fsync the bits are in the metadata within 2 s.
func TestPeriodicCommit(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.OrdinaryClockInFull, runs.Sampled)
	b := newFlushBench(t)
	rng := b.M.Random()
	var written []uint64
	for range harness.Count(3, 20) {
		b.M.Within(commitLimit, "a mark's way to the metadata", func() time.Duration {
			region := rng.Uint64N(256)
			for slices.Contains(written, region) {
				region = rng.Uint64N(256)
			}
			written = append(written, region)
			from := time.Now()
			b.write(int64(region))
			b.M.WaitFor(harness.CleanLimit, "the mark in the metadata", func() error { return b.missing(written...) })
			return time.Since(from)
		})
	}
	b.v.Close()
	b.Del()
}

// A copy of the metadata taken at any moment, in the middle of a commit too, opens and never holds
// less than an earlier one.
func TestMetadataOpenAtAnyMoment(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	b := newFlushBench(t)
	stop := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		var err error
		for region := int64(0); err == nil; region = (region + 1) % 256 {
			select {
			case <-stop:
				failed <- nil
				return
			default:
				err = errors.Join(b.v.Write(b.buf[:4*harness.KiB], region*flushRegion), b.v.Flush())
			}
		}
		failed <- err
	}()
	var last uint64
	for range harness.Count(20, 200) {
		n := durableMap(b.M, b.metadata).NrHydrated()
		if n < last {
			t.Errorf("%d regions are durable, %d were before", n, last)
		}
		last = n
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d regions durable in the last look", last)
	b.v.Close()
	b.Del()
}
