//go:build device

package devicetest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Devices and metadata that cannot be a clone, beside those of TestRefusedAdd: each is refused with
// its exit code and a message that names it, and nothing is written.

// refusal is an add that must fail.
type refusal struct {
	name                   string
	source, dest, metadata *harness.Disk
	args                   []string
	code                   int
	says                   string
}

// refuse tries each and sees that nothing is left.
func refuse(m *harness.Machine, all []refusal) {
	m.Helper()
	for _, r := range all {
		m.Log(r.name)
		o := m.Try(harness.Command, append([]string{"add", "test"}, harness.AddArgs(r.source, r.dest, r.metadata, r.args...)...)...)
		m.ExpectFailure(o, r.code, r.says)
		if o.Code == 0 {
			m.MustRun(harness.Command, "del", "test")
		}
		if left := devicesAndDaemons(); len(left) > 0 {
			m.Fatalf("%s: left: %v", r.name, left)
		}
	}
}

func TestRefusedDevices(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	meta := m.Missing("meta")
	written := dest.Traffic().Writes
	part := partition(m, source, harness.MiB, 8*harness.MiB)
	file := m.File("file", 16*harness.MiB)
	overFile := m.Loop(file.Path, harness.Sector)
	held := m.NullBlk("held", harness.NullOptions{MiB: 16})
	holder := m.Linear("holder", held, held.Size)
	under := m.NullBlk("small", harness.NullOptions{MiB: 1})
	small, tiny := m.Linear("small", under, 132*harness.KiB), m.Linear("tiny", under, 32*harness.KiB)
	refuse(m, []refusal{
		{"destination held by device-mapper", source, held, meta, nil, exit.Busy, holder.Name},
		{"source held by device-mapper", held, dest, meta, nil, exit.Busy, holder.Name},
		{"a partition of the source as destination", source, part, meta, []string{"--force"}, exit.Refused, part.Path},
		{"a partition of the destination as source", part, source, meta, []string{"--force"}, exit.Refused, part.Path},
		{"device-mapper over the source as destination", held, holder, meta, []string{"--force", "--source-shared"}, exit.Refused, held.Path},
		{"a file and its loop device", file, overFile, meta, []string{"--force"}, exit.Busy, overFile.Path},
		{"metadata on a partition of the source", source, dest, part, []string{"--force"}, exit.Refused, part.Path},
		{"metadata on a device that is too small for the map", source, dest, small, nil, exit.Metadata, "too small"},
		{"metadata on a device that is too small for anything", source, dest, tiny, nil, exit.Metadata, "too small"},
	})
	if n := dest.Traffic().Writes - written; n != 0 {
		t.Errorf("the destination was written %d times", n)
	}
}

// partition makes a partition of a device, known to the kernel only.
func partition(m *harness.Machine, d *harness.Disk, off, size int64) *harness.Disk {
	m.Helper()
	m.MustRun("addpart", d.Path, "1", fmt.Sprint(off/harness.Sector), fmt.Sprint(size/harness.Sector))
	m.Cleanup(func() { m.MustRun("delpart", d.Path, "1") })
	path := d.Path + "1"
	m.WaitFor(harness.CleanLimit, path, func() error {
		_, err := os.Stat(path)
		return err
	})
	return &harness.Disk{M: &m.Devices, Path: path, Size: size}
}

// metadataBench is a clone that was deleted, with a few regions hydrated.
type metadataBench struct {
	*harness.Clone
	source, dest, metadata *harness.Disk
	content                []byte // of the metadata
	hydrated               uint64 // regions, by the metadata
	written                int64  // requests that the destination was written with
}

func newMetadataBench(t *testing.T) *metadataBench {
	m := harness.New(t)
	return metadataBenchOn(m, m.NullBlk("dst", harness.NullOptions{MiB: 16}))
}

func metadataBenchOn(m *harness.Machine, dest *harness.Disk) *metadataBench {
	m.Helper()
	b := &metadataBench{source: m.NullBlk("src", harness.NullOptions{MiB: 16}), dest: dest, metadata: m.Missing("meta")}
	m.FillDisk(b.source, harness.Original)
	b.Clone = m.AddClone(b.source, b.dest, b.metadata, "--no-hydration")
	v, buf := m.Open(b.Path, os.O_RDWR), m.Buffer(4096)
	if err := harness.NewModel(b.source.Size, 4*harness.KiB).Write(v, buf, harness.MiB, true); err != nil {
		m.Fatal(err)
	}
	v.Close()
	b.hydrated = b.Status().Regions.Hydrated
	b.Del()
	b.content = []byte(m.ReadFile(b.metadata.Path))
	b.written = b.dest.Traffic().Writes
	return b
}

// put makes the metadata these bytes.
func (b *metadataBench) put(content []byte) {
	b.M.Helper()
	if err := os.WriteFile(b.metadata.Path, content, 0o600); err != nil {
		b.M.Fatal(err)
	}
}

// untouched checks that metadata and destination are as they were.
func (b *metadataBench) untouched(content []byte) {
	b.M.Helper()
	if now := []byte(b.M.ReadFile(b.metadata.Path)); !bytes.Equal(now, content) {
		b.M.Error("the metadata was written")
	}
	if n := b.dest.Traffic().Writes - b.written; n != 0 {
		b.M.Errorf("the destination was written %d times", n)
	}
}

// refused checks that add fails and nothing is written.
func (b *metadataBench) refused(name string, source, dest *harness.Disk, args []string, code int, says string) {
	b.M.Helper()
	content := []byte(b.M.ReadFile(b.metadata.Path))
	refuse(b.M, []refusal{{name, source, dest, b.metadata, args, code, says}})
	b.untouched(content)
}

// superblockCopies are the offsets of both, and superblockSize their size, in bytes
// (metadata/FORMAT.md).
var superblockCopies = []int64{0, 64 << 10}

const superblockSize = 4096

// flipped is content with a bit of one byte inverted.
func flipped(content []byte, at ...int64) []byte {
	b := slices.Clone(content)
	for _, off := range at {
		b[off] ^= 1 << (off % 8)
	}
	return b
}

// One copy of the superblock with any wrong byte: check says which, and the clone starts with a
// warning.
func TestDamagedSuperblockCopy(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	b := newMetadataBench(t)
	rng := b.M.Random()
	for n, copyAt := range superblockCopies {
		name := fmt.Sprintf("copy %d", n)
		offsets := []int64{0, superblockSize - 1}
		for range harness.Count(2, 200) {
			offsets = append(offsets, rng.Int64N(superblockSize))
		}
		for _, off := range offsets {
			damaged := flipped(b.content, copyAt+off)
			b.put(damaged)
			o := b.M.Try(harness.Command, "metadata", "check", b.metadata.Path)
			if o.Code != exit.Metadata || !strings.Contains(o.Stdout+o.Stderr, name) {
				t.Errorf("byte %d of %s is wrong: check: exit status %d: %s%s", off, name, o.Code, o.Stdout, o.Stderr)
			}
			b.untouched(damaged)
		}
		o := b.M.Try(harness.Command, append([]string{"add", b.Name}, b.Args...)...)
		if o.Code != 0 {
			t.Fatalf("add with one sound copy: exit status %d: %s", o.Code, o.Stderr)
		}
		b.Path = harness.Opened(o.Stdout)
		if s := b.Status(); !strings.Contains(o.Stderr, name) || !slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, name) }) {
			t.Errorf("add warns %q, the status %q, of a damaged %s", o.Stderr, s.Warnings, name)
		}
		if s := b.Status(); s.Regions.Hydrated < b.hydrated {
			t.Errorf("%d regions are hydrated, %d were", s.Regions.Hydrated, b.hydrated)
		}
		b.Del()
		if o := b.M.Try(harness.Command, "metadata", "check", b.metadata.Path); o.Code != 0 {
			t.Errorf("check after a use: exit status %d: %s%s", o.Code, o.Stdout, o.Stderr)
		}
	}
}

// Both copies damaged: exit code 10 everywhere, and nothing is written.
func TestDamagedSuperblock(t *testing.T) {
	runs.On(t, "6.18")
	b := newMetadataBench(t)
	rng := b.M.Random()
	for range harness.Count(1, 20) {
		damaged := flipped(b.content, superblockCopies[0]+rng.Int64N(superblockSize), superblockCopies[1]+rng.Int64N(superblockSize))
		b.put(damaged)
		o := b.M.Try(harness.Command, "metadata", "check", b.metadata.Path)
		b.M.ExpectFailure(o, exit.Metadata, b.metadata.Path)
		if !strings.Contains(o.Stdout, "copy 0") || !strings.Contains(o.Stdout, "copy 1") {
			t.Errorf("check does not name both copies: %s", o.Stdout)
		}
		b.refused("both copies damaged", b.source, b.dest, nil, exit.Metadata, b.metadata.Path)
		b.refused("both copies damaged, --open", b.source, b.dest, []string{"--open"}, exit.Metadata, b.metadata.Path)
	}
}

// Random bytes are no metadata, and nobody's to overwrite.
func TestRandomMetadata(t *testing.T) {
	runs.On(t, "7.3")
	b := newMetadataBench(t)
	rng := b.M.Random()
	content := make([]byte, len(b.content))
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	b.put(content)
	b.M.ExpectFailure(b.M.Try(harness.Command, "metadata", "check", b.metadata.Path), exit.Metadata, b.metadata.Path)
	b.refused("random bytes", b.source, b.dest, nil, exit.Metadata, b.metadata.Path)
	b.refused("random bytes, --create", b.source, b.dest, []string{"--create"}, exit.Metadata, b.metadata.Path)
	b.put(b.content[:len(b.content)/2])
	b.refused("cut in half", b.source, b.dest, []string{"--open"}, exit.Metadata, b.metadata.Path)
}

// Metadata of another clone.
func TestMetadataOfAnother(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	b := metadataBenchOn(m, m.Known("dst", m.NullBlk("dst", harness.NullOptions{MiB: 16}), 16*harness.MiB))
	other := m.NullBlk("other", harness.NullOptions{MiB: 16})
	m.FillDisk(other, harness.Original+1)
	b.refused("another region size", b.source, b.dest, []string{"--region-size", "64KiB"}, exit.Metadata, "region size")
	b.refused("another source", m.Linear("othersrc", other, b.source.Size), b.dest, nil, exit.Metadata, "source")
	b.refused("another destination", b.source, m.Known("otherdst", other, b.dest.Size), nil, exit.Metadata, "destination")
	b.refused("a larger source", m.NullBlk("larger", harness.NullOptions{MiB: 32}), b.dest, nil, exit.Dest, b.dest.Path)
	b.refused("a smaller source", m.Linear("small", b.source, b.source.Size-harness.MiB), b.dest, nil, exit.Metadata, "size")
}
