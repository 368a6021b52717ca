//go:build device

package devicetest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Devices and metadata that cannot be a clone, beside those of TestRefusedAdd: each is refused with its exit
// code and a message that names it, and nothing is written.

// refusal is an add that must fail.
type refusal struct {
	name                   string
	source, dest, metadata *disk
	args                   []string
	code                   int
	says                   string
}

// refuse tries each and sees that nothing is left.
func (m *machine) refuse(all []refusal) {
	m.Helper()
	for _, r := range all {
		m.Log(r.name)
		o := m.try(command, append([]string{"add", "test"}, addArgs(r.source, r.dest, r.metadata, r.args...)...)...)
		m.expectFailure(o, r.code, r.says)
		if o.code == 0 {
			m.run(command, "del", "test")
		}
		if left := devicesAndDaemons(); len(left) > 0 {
			m.Fatalf("%s: left: %v", r.name, left)
		}
	}
}

func TestRefusedDevices(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	meta := m.missing("meta")
	written := dest.traffic().writes
	part := m.partition(source, mib, 8*mib)
	file := m.file("file", 16*mib)
	overFile := m.loop(file.path, sector)
	held := m.nullBlk("held", nullOptions{mib: 16})
	holder := m.linear("holder", held, held.size)
	under := m.nullBlk("small", nullOptions{mib: 1})
	small, tiny := m.linear("small", under, 132*kib), m.linear("tiny", under, 32*kib)
	m.refuse([]refusal{
		{"destination held by device-mapper", source, held, meta, nil, exit.Busy, holder.name},
		{"source held by device-mapper", held, dest, meta, nil, exit.Busy, holder.name},
		{"a partition of the source as destination", source, part, meta, []string{"--force"}, exit.Refused, part.path},
		{"a partition of the destination as source", part, source, meta, []string{"--force"}, exit.Refused, part.path},
		{"device-mapper over the source as destination", held, holder, meta, []string{"--force", "--source-shared"}, exit.Refused, held.path},
		{"a file and its loop device", file, overFile, meta, []string{"--force"}, exit.Busy, overFile.path},
		{"metadata on a partition of the source", source, dest, part, []string{"--force"}, exit.Refused, part.path},
		{"metadata on a device that is too small for the map", source, dest, small, nil, exit.Metadata, "too small"},
		{"metadata on a device that is too small for anything", source, dest, tiny, nil, exit.Metadata, "too small"},
	})
	if n := dest.traffic().writes - written; n != 0 {
		t.Errorf("the destination was written %d times", n)
	}
}

// partition makes a partition of a device, known to the kernel only.
func (m *machine) partition(d *disk, off, size int64) *disk {
	m.Helper()
	m.run("addpart", d.path, "1", fmt.Sprint(off/sector), fmt.Sprint(size/sector))
	m.Cleanup(func() { m.run("delpart", d.path, "1") })
	path := d.path + "1"
	m.waitFor(cleanLimit, path, func() error {
		_, err := os.Stat(path)
		return err
	})
	return &disk{m: m, path: path, size: size}
}

// metadataBench is a clone that was deleted, with a few regions hydrated.
type metadataBench struct {
	*clone
	source, dest, metadata *disk
	content                []byte // of the metadata
	hydrated               uint64 // regions, by the metadata
	written                int64  // requests that the destination was written with
}

func newMetadataBench(t *testing.T) *metadataBench {
	m := newMachine(t)
	return m.metadataBench(m.nullBlk("dst", nullOptions{mib: 16}))
}

func (m *machine) metadataBench(dest *disk) *metadataBench {
	m.Helper()
	b := &metadataBench{source: m.nullBlk("src", nullOptions{mib: 16}), dest: dest, metadata: m.missing("meta")}
	m.fillDisk(b.source, original)
	b.clone = m.addClone(b.source, b.dest, b.metadata, "--no-hydration")
	v, buf := m.open(b.path, os.O_RDWR), m.buffer(4096)
	if err := newModel(b.source.size, 4*kib).write(v, buf, mib, true); err != nil {
		m.Fatal(err)
	}
	v.close()
	b.hydrated = b.status().Regions.Hydrated
	b.del()
	b.content = []byte(m.readFile(b.metadata.path))
	b.written = b.dest.traffic().writes
	return b
}

// put makes the metadata these bytes.
func (b *metadataBench) put(content []byte) {
	b.m.Helper()
	if err := os.WriteFile(b.metadata.path, content, 0o600); err != nil {
		b.m.Fatal(err)
	}
}

// untouched checks that metadata and destination are as they were.
func (b *metadataBench) untouched(content []byte) {
	b.m.Helper()
	if now := []byte(b.m.readFile(b.metadata.path)); !bytes.Equal(now, content) {
		b.m.Error("the metadata were written")
	}
	if n := b.dest.traffic().writes - b.written; n != 0 {
		b.m.Errorf("the destination was written %d times", n)
	}
}

// refused checks that add fails and nothing is written.
func (b *metadataBench) refused(name string, source, dest *disk, args []string, code int, says string) {
	b.m.Helper()
	content := []byte(b.m.readFile(b.metadata.path))
	b.m.refuse([]refusal{{name, source, dest, b.metadata, args, code, says}})
	b.untouched(content)
}

// superblockCopies are the offsets of both, and superblockSize their size, in bytes (metadata/FORMAT.md).
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

// One copy of the superblock with any wrong byte: check says which, and the clone starts with a warning.
func TestDamagedSuperblockCopy(t *testing.T) {
	runs.On(t, "7.3")
	b := newMetadataBench(t)
	rng := b.m.random()
	for n, copyAt := range superblockCopies {
		name := fmt.Sprintf("copy %d", n)
		offsets := []int64{0, superblockSize - 1}
		for range count(2, 200) {
			offsets = append(offsets, rng.Int64N(superblockSize))
		}
		for _, off := range offsets {
			damaged := flipped(b.content, copyAt+off)
			b.put(damaged)
			o := b.m.try(command, "metadata", "check", b.metadata.path)
			if o.code != exit.Metadata || !strings.Contains(o.stdout+o.stderr, name) {
				t.Errorf("byte %d of %s is wrong: check: exit status %d: %s%s", off, name, o.code, o.stdout, o.stderr)
			}
			b.untouched(damaged)
		}
		o := b.m.try(command, append([]string{"add", b.name}, b.args...)...)
		if o.code != 0 {
			t.Fatalf("add with one sound copy: exit status %d: %s", o.code, o.stderr)
		}
		b.path = strings.TrimSpace(o.stdout)
		if s := b.status(); !strings.Contains(o.stderr, name) || !slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, name) }) {
			t.Errorf("add warns %q, the status %q, of a damaged %s", o.stderr, s.Warnings, name)
		}
		if s := b.status(); s.Regions.Hydrated < b.hydrated {
			t.Errorf("%d regions are hydrated, %d were", s.Regions.Hydrated, b.hydrated)
		}
		b.del()
		if o := b.m.try(command, "metadata", "check", b.metadata.path); o.code != 0 {
			t.Errorf("check after a use: exit status %d: %s%s", o.code, o.stdout, o.stderr)
		}
	}
}

// Both copies damaged: exit code 10 everywhere, and nothing is written.
func TestDamagedSuperblock(t *testing.T) {
	runs.On(t, "6.18")
	b := newMetadataBench(t)
	rng := b.m.random()
	for range count(1, 20) {
		damaged := flipped(b.content, superblockCopies[0]+rng.Int64N(superblockSize), superblockCopies[1]+rng.Int64N(superblockSize))
		b.put(damaged)
		o := b.m.try(command, "metadata", "check", b.metadata.path)
		b.m.expectFailure(o, exit.Metadata, b.metadata.path)
		if !strings.Contains(o.stdout, "copy 0") || !strings.Contains(o.stdout, "copy 1") {
			t.Errorf("check does not name both copies: %s", o.stdout)
		}
		b.refused("both copies damaged", b.source, b.dest, nil, exit.Metadata, b.metadata.path)
		b.refused("both copies damaged, --open", b.source, b.dest, []string{"--open"}, exit.Metadata, b.metadata.path)
	}
}

// Random bytes are no metadata, and nobody's to overwrite.
func TestRandomMetadata(t *testing.T) {
	runs.On(t, "7.3")
	b := newMetadataBench(t)
	rng := b.m.random()
	content := make([]byte, len(b.content))
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	b.put(content)
	b.m.expectFailure(b.m.try(command, "metadata", "check", b.metadata.path), exit.Metadata, b.metadata.path)
	b.refused("random bytes", b.source, b.dest, nil, exit.Metadata, b.metadata.path)
	b.refused("random bytes, --create", b.source, b.dest, []string{"--create"}, exit.Metadata, b.metadata.path)
	b.put(b.content[:len(b.content)/2])
	b.refused("cut in half", b.source, b.dest, []string{"--open"}, exit.Metadata, b.metadata.path)
}

// Metadata of another clone.
func TestMetadataOfAnother(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	b := m.metadataBench(m.known("dst", m.nullBlk("dst", nullOptions{mib: 16}), 16*mib))
	other := m.nullBlk("other", nullOptions{mib: 16})
	m.fillDisk(other, original+1)
	b.refused("another region size", b.source, b.dest, []string{"--region-size", "64KiB"}, exit.Metadata, "region size")
	b.refused("another source", m.linear("othersrc", other, b.source.size), b.dest, nil, exit.Metadata, "source")
	b.refused("another destination", b.source, m.known("otherdst", other, b.dest.size), nil, exit.Metadata, "destination")
	b.refused("a larger source", m.nullBlk("larger", nullOptions{mib: 32}), b.dest, nil, exit.Dest, b.dest.path)
	b.refused("a smaller source", m.linear("small", b.source, b.source.size-mib), b.dest, nil, exit.Metadata, "size")
}
