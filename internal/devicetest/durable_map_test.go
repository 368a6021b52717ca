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
func (m *machine) durableMap(d *disk) *bitmap.Map {
	m.Helper()
	var s snapshot
	m.sweep(d.path, d.size, func(_ int64, b []byte) error {
		s = append(s, b...)
		return nil
	})
	return m.mapOf(s)
}

// mapOf is the region map of metadata.
func (m *machine) mapOf(s snapshot) *bitmap.Map {
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

// flushBench is a clone whose metadata are on a device that counts.
type flushBench struct {
	*clone
	metadata *disk
	v        *volume
	buf      []byte
}

const flushRegion = 64 * kib

func newFlushBench(t *testing.T) *flushBench {
	m := newMachine(t)
	source := m.nullBlk("src", nullOptions{mib: 16})
	dest := m.nullBlk("dst", nullOptions{mib: 16})
	b := &flushBench{metadata: m.nullBlk("meta", nullOptions{mib: 1})}
	m.fillDisk(source, original)
	b.clone = m.addClone(source, dest, b.metadata, "--region-size", kibText(flushRegion), "--no-hydration")
	b.v, b.buf = m.open(b.path, os.O_RDWR), m.buffer(int(flushRegion))
	return b
}

// write writes into a region: half of it, so that the rest is copied.
func (b *flushBench) write(region int64) {
	b.m.Helper()
	if err := b.v.write(b.buf[:flushRegion/2], region*flushRegion); err != nil {
		b.m.Fatal(err)
	}
}

// expect checks which regions are durably hydrated: these and no others.
func (b *flushBench) expect(regions ...uint64) {
	b.m.Helper()
	if err := b.missing(regions...); err != nil {
		b.m.Fatal(err)
	}
}

func (b *flushBench) missing(regions ...uint64) error {
	b.m.Helper()
	durable := b.m.durableMap(b.metadata)
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

// After a write and an fsync the metadata on disk hold the new bit; a second fsync leaves them unwritten.
func TestFlushCommits(t *testing.T) {
	runs.On(t, "6.18")
	b := newFlushBench(t)
	b.expect()
	b.write(17)
	b.write(200)
	b.flush()
	b.expect(17, 200)
	before := b.metadata.traffic()
	b.flush()
	if n := b.metadata.traffic().since(before).writes; n != 0 {
		t.Errorf("an fsync with nothing new wrote the metadata %d times", n)
	}
	b.write(17) // hydrated already
	before = b.metadata.traffic()
	b.flush()
	if n := b.metadata.traffic().since(before).writes; n != 0 {
		t.Errorf("an fsync after a write to a hydrated region wrote the metadata %d times", n)
	}
	b.v.close()
	b.del()
}

// A write with FUA is answered when its own mark is durable. A program cannot make one without a FLUSH
// behind it (generic_write_sync, v6.12), but ext4 can: the block that commits its journal goes out with FUA
// after a FLUSH (jbd2's journal_submit_commit_record), into a block of its own, and fsync ends with it.
func TestJournalCommits(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 64}), m.nullBlk("dst", nullOptions{mib: 64})
	metadata := m.nullBlk("meta", nullOptions{mib: 1})
	m.run("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0", source.path)
	c := m.addClone(source, dest, metadata, "--region-size", "4KiB", "--no-hydration")
	files := &fileTree{m: m, kind: ext4}
	files.mount(c.path)
	f, err := os.Create(filepath.Join(files.root, "file"))
	if err != nil {
		t.Fatal(err)
	}
	for range count(4, 8) {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		durable := m.durableMap(metadata).NrHydrated()
		if live := c.status().Regions.Hydrated; live != durable {
			t.Errorf("after fsync %d regions are durably hydrated, %d are hydrated", durable, live)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	files.unmount()
	c.del()
}

func (b *flushBench) flush() {
	b.m.Helper()
	if err := b.v.flush(); err != nil {
		b.m.Fatal(err)
	}
}

// commitLimit is the promise: without an fsync a mark is durable after at most so long.
const commitLimit = 2 * time.Second

// Without an fsync the bits are in the metadata within 2 s.
func TestPeriodicCommit(t *testing.T) {
	runs.On(t, "6.12", runs.CountingClock, runs.OrdinaryClockInFull)
	b := newFlushBench(t)
	rng := b.m.random()
	var written []uint64
	for range count(3, 20) {
		b.m.within(commitLimit, "a mark's way to the metadata", func() time.Duration {
			region := rng.Uint64N(256)
			for slices.Contains(written, region) {
				region = rng.Uint64N(256)
			}
			written = append(written, region)
			from := time.Now()
			b.write(int64(region))
			b.m.waitFor(cleanLimit, "the mark in the metadata", func() error { return b.missing(written...) })
			return time.Since(from)
		})
	}
	b.v.close()
	b.del()
}

// A copy of the metadata taken at any moment, in the middle of a commit too, opens and never holds less
// than an earlier one.
func TestMetadataOpenAtAnyMoment(t *testing.T) {
	runs.On(t, "7.3")
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
				err = errors.Join(b.v.write(b.buf[:4*kib], region*flushRegion), b.v.flush())
			}
		}
		failed <- err
	}()
	var last uint64
	for range count(20, 200) {
		n := b.m.durableMap(b.metadata).NrHydrated()
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
	b.v.close()
	b.del()
}
