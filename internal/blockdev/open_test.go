package blockdev

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/fingerprint"
)

func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustOpen(t *testing.T, role Role, path string, o Options) *Device {
	t.Helper()
	d, err := Open(role, path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.file.Close() })
	return d
}

func wantCode(t *testing.T, what string, err error, code int, words ...string) {
	t.Helper()
	if exit.Code(err) != code {
		t.Errorf("%s: exit code %d (%v), want %d", what, exit.Code(err), err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q does not say %q", what, err, w)
		}
	}
}

func TestSourceFileIsReadOnlyAndShared(t *testing.T) {
	path := image(t, mib)
	a := mustOpen(t, Source, path, Options{})
	mustOpen(t, Source, path, Options{})
	if _, err := a.File().WriteAt([]byte("x"), 0); err == nil {
		t.Error("the source can be written")
	}
	_, err := Open(Dest, path, Options{Force: true})
	wantCode(t, "source as destination", err, exit.Busy, "lock the destination", path)
}

func TestDestFileIsExclusive(t *testing.T) {
	path := image(t, mib)
	d := mustOpen(t, Dest, path, Options{Force: true})
	for _, role := range []Role{Source, Dest, Metadata} {
		_, err := Open(role, path, Options{Force: true})
		wantCode(t, "second open as "+role.String(), err, exit.Busy)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, Dest, path, Options{Force: true})
}

func TestCreatedDestHasItsSpaceAndIsRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dest")
	d := mustOpen(t, Dest, path, Options{Create: true, Size: 8 * mib, Force: true})
	if d.Size() != 8*mib || !d.Created() {
		t.Errorf("created destination has %d bytes, created %v", d.Size(), d.Created())
	}
	st, err := d.File().Stat()
	if err != nil {
		t.Fatal(err)
	}
	if blocks := st.Sys().(*syscall.Stat_t).Blocks; blocks*512 < 8*mib {
		t.Errorf("%d bytes are reserved", blocks*512)
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

func TestRemoveKeepsWhatWasThere(t *testing.T) {
	path := image(t, mib)
	d := mustOpen(t, Dest, path, Options{Create: true, Size: mib, Force: true})
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a file that was there is gone: %v", err)
	}
}

func TestRemoveKeepsAnotherFileOfThatName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta")
	d := mustOpen(t, Metadata, path, Options{Create: true, Force: true})
	if err := errors.Join(d.Publish(), os.Remove(path), os.WriteFile(path, []byte("new"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("another file of that name is gone: %v", err)
	}
}

// TestCreatedIsWholeOrNotThere: a file that is made has its name only when it is complete, so that
// a maker who dies leaves none or a whole one. The second round is a file system without files
// without names.
func TestCreatedIsWholeOrNotThere(t *testing.T) {
	for _, begun := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "meta")
		begin := func() *Device {
			t.Helper()
			if !begun {
				return mustOpen(t, Metadata, path, Options{Create: true, Force: true})
			}
			d, err := openBegun(Metadata, path)
			if err != nil {
				t.Fatal(err)
			}
			d.created, d.unnamed = true, true
			return d
		}
		d := begin()
		if err := os.WriteFile(path+BegunSuffix, []byte("of one that died"), 0o600); begun && err != nil {
			t.Fatal(err)
		}
		d.file.Close() // it dies
		d = begin()
		if st, err := d.file.Stat(); err != nil || st.Size() != 0 {
			t.Errorf("it begins with %v, %v", st.Size(), err)
		}
		if begun {
			_, err := openBegun(Metadata, path)
			wantCode(t, "another maker", err, exit.Busy)
		}
		m := &MetadataFile{Device: d}
		b := m.AllocBuffer(4096)
		for i := range b {
			b[i] = 'c'
		}
		if err := m.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it has its name before it is complete: %v", err)
		}
		if err := d.Publish(); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != strings.Repeat("c", 4096) {
			t.Errorf("under its name are %d bytes, %v", len(b), err)
		}
		if left, _ := filepath.Glob(path + "?*"); begun && len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		late := d
		if late.unnamed, late.begun = true, ""; begun {
			late.begun = path + BegunSuffix
			if err := os.WriteFile(late.begun, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := late.Publish(); err == nil {
			t.Error("the name of another file was taken")
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != strings.Repeat("c", 4096) {
			t.Errorf("under its name are %d bytes, %v", len(b), err)
		}
	}
}

// TestEmptyDestGetsItsSpace: a destination file of 0 bytes, as an earlier version left when it was
// killed, holds nobody's data and is taken for one that is to be made. A failed start leaves it as
// it was.
func TestEmptyDestGetsItsSpace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dest")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if d := mustOpen(t, Dest, path, Options{Create: true, Size: 8 * mib, Force: true, DryRun: true}); d.Size() != 8*mib {
		t.Errorf("a dry run says %d bytes", d.Size())
	} else {
		d.file.Close()
	}
	size := func() (int64, int64) {
		t.Helper()
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size(), st.Sys().(*syscall.Stat_t).Blocks * 512
	}
	if n, _ := size(); n != 0 {
		t.Errorf("after a dry run it has %d bytes", n)
	}
	d := mustOpen(t, Dest, path, Options{Create: true, Size: 8 * mib, Force: true})
	if n, space := size(); n != 8*mib || space < n || d.Size() != n {
		t.Errorf("it has %d bytes, %d of space, and is said to have %d", n, space, d.Size())
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if n, _ := size(); n != 0 {
		t.Errorf("after a failed start it has %d bytes", n)
	}
	d.file.Close()
	if err := os.Truncate(path, mib); err != nil {
		t.Fatal(err)
	}
	if d := mustOpen(t, Dest, path, Options{Create: true, Size: mib, Force: true}); d.Sparse() != mib {
		t.Errorf("%d bytes have no space, not %d", d.Sparse(), mib)
	}
}

func TestOpenRefuses(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	_, err := Open(Source, missing, Options{Create: true})
	wantCode(t, "missing source", err, exit.Source, "open the source", missing)
	_, err = Open(Metadata, missing, Options{})
	wantCode(t, "missing metadata", err, exit.Metadata)
	_, err = Open(Dest, t.TempDir(), Options{})
	wantCode(t, "directory as destination", err, exit.Dest, "neither a block device nor a regular file")
	_, err = Open(Source, "/dev/null", Options{})
	wantCode(t, "character device as source", err, exit.Source)
}

func device(size int64, logical int) *Device {
	return &Device{watched: watched{opened: opened{node: node{path: "/dev/x", size: size}}}, units: units{logical: logical, physic: logical}}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		name         string
		source, dest *Device
		size         int64 // 0: the source's
		force        bool
		code, block  int
	}{
		{"same", device(mib, 512), device(mib, 512), 0, false, 0, 512},
		{"larger destination", device(mib, 512), device(2*mib, 512), 0, false, 0, 512},
		{"smaller destination", device(mib, 512), device(mib-512, 512), 0, true, exit.Dest, 0},
		{"smaller destination for a shorter clone", device(mib, 512), device(mib-512, 512), mib - 512, false, 0, 512},
		{"shorter clone", device(mib, 512), device(mib, 512), 4096, false, 0, 512},
		{"longer clone", device(mib, 512), device(2*mib, 512), mib + 512, false, exit.Source, 0},
		{"longer clone than the destination", device(mib, 512), device(mib-4096, 512), mib - 512, false, exit.Dest, 0},
		{"ragged length", device(mib, 512), device(mib, 4096), mib - 512, true, exit.Usage, 0},
		{"4096 source", device(mib, 4096), device(mib, 512), 0, false, 0, 4096},
		{"4096 destination", device(mib, 512), device(mib, 4096), 0, false, exit.Refused, 0},
		{"4096 destination, force", device(mib, 512), device(mib, 4096), 0, true, 0, 4096},
		{"ragged source", device(mib+512, 512), device(2*mib, 4096), 0, true, exit.Source, 0},
		{"ragged source, shorter clone", device(mib+512, 512), device(2*mib, 4096), mib, true, 0, 4096},
		{"ragged file", device(mib+1, 512), device(2*mib, 512), 0, true, exit.Source, 0},
		{"empty source", device(0, 512), device(mib, 512), 0, true, exit.Source, 0},
		{"large blocks on the source", device(mib, 16384), device(mib, 512), 0, true, exit.Source, 0},
		{"large blocks on the destination", device(mib, 4096), device(mib, 16384), 0, true, exit.Dest, 0},
	} {
		c.dest.role = Dest
		size := cmp.Or(c.size, c.source.size)
		g, err := Match(c.source, c.dest, size, c.force)
		wantCode(t, c.name, err, c.code)
		if c.code == 0 && (g.LogicalBlock != c.block || g.Size != size) {
			t.Errorf("%s: %+v", c.name, g)
		}
		if warned := len(g.Warnings) > 0; c.code == 0 && warned != c.force {
			t.Errorf("%s: warnings %q", c.name, g.Warnings)
		}
	}
}

func TestFingerprint(t *testing.T) {
	path := image(t, 3*mib+512)
	print := func() fingerprint.Print {
		d := mustOpen(t, Source, path, Options{})
		defer d.file.Close()
		f, err := d.Fingerprint(nil)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	before := print()
	if again := print(); again != before {
		t.Errorf("unchanged source: %+v, then %+v", before, again)
	}
	for _, off := range []int64{0, 3*mib + 511} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{1}, off)
		if err := errors.Join(err, f.Close(), os.Chtimes(path, time.Unix(0, before.Mtime), time.Unix(0, before.Mtime))); err != nil {
			t.Fatal(err)
		}
		after := print()
		if after.Sample == before.Sample || after.Mtime != before.Mtime {
			t.Errorf("a changed byte at %d: %+v, then %+v", off, before, after)
		}
		before = after
	}
}

func TestMetadataFile(t *testing.T) {
	const size = 1 << 20
	path := filepath.Join(t.TempDir(), "meta")
	d := mustOpen(t, Metadata, path, Options{Create: true, Force: true})
	m, err := NewMetadataFile(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Grow(size); err != nil || m.Size() != size {
		t.Fatalf("grow: %v, size %d", err, m.Size())
	}
	p := m.AllocBuffer(3 * pageBlock)
	for i := range p {
		p[i] = byte(i>>8) + 1
	}
	if data, err := m.NextData(0); err != nil || data != size {
		t.Errorf("first data of an empty file at %d, %v", data, err)
	}
	if err := errors.Join(m.WriteAt(p, 64<<10), m.Flush()); err != nil {
		t.Fatal(err)
	}
	if data, err := m.NextData(0); err != nil || data != 64<<10 {
		t.Errorf("first data at %d, %v, want %d", data, err, 64<<10)
	}
	if err := m.ZeroRange(64<<10+pageBlock, pageBlock); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(p) // the same buffer again is what AllocBuffer gives
	clear(want[pageBlock : 2*pageBlock])
	got := m.AllocBuffer(len(p))
	clear(got)
	if err := m.ReadAt(got, 64<<10); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read differs from what was written and zeroed (%v)", err)
	}
	if err := m.writeZeros(64<<10, int64(len(p))); err != nil {
		t.Fatal(err)
	}
	if err := m.ReadAt(got, 64<<10); err != nil || !bytes.Equal(got, make([]byte, len(p))) {
		t.Errorf("written zeros do not read as zeros (%v)", err)
	}
	if err := m.ReadAt(got, size-pageBlock); err == nil {
		t.Error("a read beyond the end succeeds")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// TestWrittenZeros: where there is no other way zeros are written, in pieces: each in its place,
// and no byte more.
func TestWrittenZeros(t *testing.T) {
	const size, first, length = 4 << 20, 3 * pageBlock, 2*zeroPiece + 5*pageBlock
	path := filepath.Join(t.TempDir(), "meta")
	want := bytes.Repeat([]byte{0xee}, size)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := NewMetadataFile(mustOpen(t, Metadata, path, Options{Force: true}))
	if err != nil {
		t.Fatal(err)
	}
	if small, large := m.AllocBuffer(pageBlock), m.AllocBuffer(3*pageBlock); len(small) != pageBlock || len(large) != 3*pageBlock {
		t.Errorf("buffers of %d and %d bytes", len(small), len(large))
	}
	if err := errors.Join(m.writeZeros(first, length), m.Flush(), m.Close()); err != nil {
		t.Fatal(err)
	}
	clear(want[first : first+length])
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file holds other bytes than zeros in [%d, %d) and what was there (%v)", first, first+length, err)
	}
}

// TestDryMetadata: what a dry run writes is not there afterwards, however it is written.
func TestDryMetadata(t *testing.T) {
	const size = 64 << 10
	path := filepath.Join(t.TempDir(), "meta")
	was := bytes.Repeat([]byte{0xee}, size)
	if err := os.WriteFile(path, was, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := NewMetadataFile(mustOpen(t, Metadata, path, Options{Force: true, DryRun: true}))
	if err != nil {
		t.Fatal(err)
	}
	p := m.AllocBuffer(2 * pageBlock)
	clear(p)
	if err := errors.Join(m.WriteAt(p, 0), m.ZeroRange(0, size), m.Grow(2*size), m.Flush()); err != nil {
		t.Fatal(err)
	}
	for off := range int64(2 * pageBlock) { // over the end that there is, and what is imagined behind it
		p[off] = 1
	}
	if err := m.ReadAt(p, size-pageBlock); err != nil || p[0] != 0xee || p[pageBlock-1] != 0xee || !bytes.Equal(p[pageBlock:], make([]byte, pageBlock)) {
		t.Errorf("%v; the last bytes are %x, those behind them %x", err, p[pageBlock-1], p[pageBlock])
	}
	if m.Size() != 2*size || m.FoundSize() != size {
		t.Errorf("size %d, found %d", m.Size(), m.FoundSize())
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, was) {
		t.Errorf("a dry run has changed the file (%v)", err)
	}
}

func TestSignature(t *testing.T) {
	for _, c := range []struct {
		out  string
		code int
		err  error
		want string
		ok   bool
	}{
		{"DEVNAME=/dev/x\nUUID=12-34\nTYPE=ext4\nUSAGE=filesystem\n", 0, nil, "it carries ext4, uuid 12-34", true},
		{"PTTYPE=gpt\n", 0, nil, "it carries gpt partition table", true},
		{"", 2, errors.New("exit status 2"), "", true},
		{"", 8, errors.New("exit status 8"), "it carries several signatures", true},
		{"", 4, errors.New("exit status 4"), "", false},
	} {
		got, err := probed(c.out, c.code, c.err)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("probed(%q, %d) = %q, %v, want %q", c.out, c.code, got, err, c.want)
		}
	}
}

func TestSignatureOfSwapArea(t *testing.T) {
	path := image(t, mib)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := mustOpen(t, Dest, path, Options{Force: true})
	if err := d.Signature(false); err != nil {
		t.Errorf("an empty destination: %v", err)
	}
	// A swap area: its magic at the end of the first page, version 1, last page.
	_, errMagic := f.WriteAt([]byte("SWAPSPACE2"), 4086)
	_, errHead := f.WriteAt([]byte{1, 0, 0, 0, 255, 0, 0, 0}, 1024)
	if err := errors.Join(errMagic, errHead, f.Close()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a swap area", d.Signature(false), exit.Refused, "swap")
	if err := d.Signature(true); err != nil {
		t.Errorf("with force: %v", err)
	}
	if len(d.Warnings()) == 0 {
		t.Error("force gave no warning")
	}
}

// TestOpenMissingDevice: a mistyped device must not become a file in /dev.
func TestOpenMissingDevice(t *testing.T) {
	const path = "/dev/ublk-clone-test-no-such-device"
	for _, role := range []Role{Dest, Metadata} {
		d, err := Open(role, path, Options{Create: true, Size: 4096})
		if err == nil {
			t.Fatalf("%v: made %s: %v", role, path, errors.Join(d.Remove(), d.Close()))
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v: %s is there: %v", role, path, err)
		}
	}
}

// A path that is one of the clone's other devices is refused as such, not found busy.
func TestOpenRefusesOthers(t *testing.T) {
	path := image(t, mib)
	source := mustOpen(t, Source, path, Options{})
	_, err := Open(Dest, path, Options{Force: true, Others: []*Device{source}})
	wantCode(t, "the source as destination", err, exit.Refused, path, "overlap")
	mustOpen(t, Dest, image(t, mib), Options{Others: []*Device{source}, Force: true})
}
