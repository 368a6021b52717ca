package devices

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// What cannot be a clone, as far as files can show it: each is refused with its exit code, the
// thing, the cause and a next step, and nothing is left or written.

func TestRefusedParts(t *testing.T) {
	f := newFiles(t)
	missing := filepath.Join(f.dir, "missing")
	small := f.make(filepath.Join(f.dir, "small"), testMiB/2)
	odd := f.make(filepath.Join(f.dir, "odd"), testMiB-1)
	held := f.make(filepath.Join(f.dir, "held"), testMiB)
	lock, err := os.Open(held)
	if err == nil {
		err = sys.FlockExclusive(int(lock.Fd()))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	empty := f.make(filepath.Join(f.dir, "empty"), 0)

	for _, c := range []struct {
		what   string
		change func(*definition.Start)
		code   int
		says   string
	}{
		{"no source", func(s *definition.Start) { s.Definition.Source = missing }, exit.Source, missing},
		{"no directory for the destination", func(s *definition.Start) { s.Definition.Dest = missing + "/dest" }, exit.Dest, missing},
		{"no such device", func(s *definition.Start) { s.Definition.Dest = "/dev/missing" }, exit.Dest, "/dev/missing"},
		{"no metadata", func(s *definition.Start) { s.Definition.Metadata = missing; s.Open = true }, exit.Metadata, missing},
		{"no directory for the metadata", func(s *definition.Start) { s.Definition.Metadata = missing + "/meta" }, exit.Metadata, missing},
		{"empty metadata", func(s *definition.Start) { s.Definition.Metadata = empty; s.Open = true }, exit.Metadata, empty},
		{"source too small", func(s *definition.Start) { s.Definition.Size = 2 * testMiB }, exit.Source, "1048576"},
		{"destination too small", func(s *definition.Start) { s.Definition.Dest = small }, exit.Dest, small},
		{"destination too small for the length", func(s *definition.Start) { s.Definition.Dest, s.Definition.Size = small, testMiB/2+4096 }, exit.Dest, small},
		{"ragged source", func(s *definition.Start) { s.Definition.Source = odd }, exit.Source, odd},
		{"ragged length", func(s *definition.Start) { s.Definition.Size = 4096 + 1 }, exit.Usage, "4097"},
		{"source held", func(s *definition.Start) { s.Definition.Source = held }, exit.Busy, held},
		{"destination held", func(s *definition.Start) { s.Definition.Dest = held }, exit.Busy, held},
		{"metadata held", func(s *definition.Start) { s.Definition.Metadata = held }, exit.Busy, held},
		{"source and destination the same", func(s *definition.Start) { s.Definition.Dest, s.Force = f.source, true }, exit.Refused, f.source},
		{"source and metadata the same", func(s *definition.Start) { s.Definition.Metadata, s.Force = f.source, true }, exit.Refused, f.source},
		{"destination and metadata the same", func(s *definition.Start) { s.Definition.Metadata, s.Force = f.dest, true }, exit.Refused, f.dest},
		{"a directory as source", func(s *definition.Start) { s.Definition.Source = f.dir }, exit.Source, "neither a block device nor a regular file"},
		{"no block device", func(s *definition.Start) { s.Definition.Dest = "/dev/null" }, exit.Dest, "/dev/null"},
	} {
		before := f.names()
		f.expect(c.what, f.open(c.change, nothing), c.code, c.says)
		if after := f.names(); !slices.Equal(before, after) {
			t.Errorf("%s: files before %q, after %q", c.what, before, after)
		}
	}
}

// names are the files in the directory.
func (f *files) names() (names []string) {
	f.t.Helper()
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// with opens metadata of this content, which a refusal must leave as they are.
func (f *files) with(what string, content []byte, change func(*definition.Start), code int, says ...string) {
	f.t.Helper()
	if err := os.WriteFile(f.metadata, content, 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.expect(what, f.open(change, nothing), code, says...)
	now, err := os.ReadFile(f.metadata)
	if err != nil {
		f.t.Fatal(err)
	}
	if code != exit.OK && !bytes.Equal(now, content) {
		f.t.Errorf("%s: refused, and the metadata were written", what)
	}
}

func TestRefusedMetadata(t *testing.T) {
	f := newFiles(t)
	f.expect("new metadata", f.open(plain, nothing), exit.OK)
	good, err := os.ReadFile(f.metadata)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, len(good))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	const copyOne = 64 << 10 // metadata/FORMAT.md
	flipped := func(at ...int) []byte {
		b := slices.Clone(good)
		for _, off := range at {
			b[off] ^= 1 << (off % 8)
		}
		return b
	}
	other := f.make(filepath.Join(f.dir, "other"), testMiB)

	f.with("as they were", good, plain, exit.OK)
	f.with("--create", good, withCreate, exit.Refused, f.metadata)
	f.with("random bytes", noise, plain, exit.Metadata, "damaged")
	f.with("random bytes, --create", noise, withCreate, exit.Metadata, "damaged")
	f.with("random bytes, --create --force", noise, func(s *definition.Start) { s.Create, s.Force = true, true }, exit.OK)
	f.with("a line of text", []byte("text\n"), plain, exit.Metadata, "damaged")
	f.with("cut in half", good[:len(good)/2], plain, exit.Metadata, f.metadata)
	f.with("both copies damaged", flipped(100, copyOne+100), plain, exit.Metadata, "copy 0", "copy 1")
	f.with("another region size", good, func(s *definition.Start) { s.Definition.RegionSize = 64 << 10 }, exit.Metadata, "region size is 4KiB, not 64KiB")
	f.with("another size", good, func(s *definition.Start) { s.Definition.Size = testMiB / 2 }, exit.Metadata, "device size")
	f.with("another source", good, func(s *definition.Start) { s.Definition.Source = other }, exit.Metadata, "source")
	f.with("another destination", good, func(s *definition.Start) { s.Definition.Dest = other }, exit.Metadata, "destination")
	for off := 0; off < 4096; off += 61 {
		for n, at := range []int{off, copyOne + off} {
			content := flipped(at)
			if err := os.WriteFile(f.metadata, content, 0o600); err != nil {
				t.Fatal(err)
			}
			damaged := fmt.Sprintf("copy %d", n)
			err := f.open(plain, func(d *Devices) error {
				if len(d.Warned) == 0 || !strings.Contains(d.Warned[0], damaged) {
					return fmt.Errorf("warnings %q", d.Warned)
				}
				return nil
			})
			f.expect(fmt.Sprintf("byte %d of %s", off, damaged), err, exit.OK)
		}
	}
}
