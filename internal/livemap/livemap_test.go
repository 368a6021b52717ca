package livemap

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

const pages = 40

// testHeader is the size of the header of a map of so few pages.
const testHeader = 4 * 4096

var whose = Identity{UUID: [16]byte{1, 2}, Boot: [16]byte{3}, Session: 7, Regions: (pages-1)*bitmap.RegionsPerPage + 5}

// directory is on tmpfs, as the real one.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "livemap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newTestMap(t *testing.T, dir string) *Map {
	t.Helper()
	m, err := Create(dir, whose, State{Commit: 3})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func used(t *testing.T, m *Map) (all []uint64) {
	t.Helper()
	if err := m.Used(func(page uint64) error { all = append(all, page); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestOutlivesItsProcess: what a map was left with, by no more than closing its mapping, is what
// the next Open finds.
func TestOutlivesItsProcess(t *testing.T) {
	dir := directory(t)
	m := newTestMap(t, dir)
	if got := m.State(); got != (State{Commit: 3}) || len(m.Pages()) != pages || len(used(t, m)) != 0 {
		t.Fatalf("new: state %+v, %d pages, used %v", got, len(m.Pages()), used(t, m))
	}
	for _, page := range []uint64{0, 7, 8, 31, pages - 1} {
		if err := m.Touch(page); err != nil {
			t.Fatal(err)
		}
		m.Pages()[page][5] = page + 1
	}
	if err := sys.GiveBack(&m.Pages()[31]); err != nil {
		t.Fatal(err)
	}
	m.SetCommit(9)
	m.SetState(1, true)
	m.SetState(1, false) // it does not become better
	if err := m.mapping.Close(); err != nil {
		t.Fatal(err)
	}

	m, err := Open(dir, whose.UUID)
	if err != nil {
		t.Fatal(err)
	}
	if want := (State{Commit: 9, Mode: 1, FlushLost: true}); m.State() != want || m.Identity() != whose {
		t.Errorf("found %+v of %+v, want %+v of %+v", m.State(), m.Identity(), want, whose)
	}
	if got, want := used(t, m), []uint64{0, 7, 8, pages - 1}; !slices.Equal(got, want) {
		t.Errorf("pages %v have memory, want %v", got, want)
	}
	for _, page := range used(t, m) {
		if m.Pages()[page][5] != page+1 {
			t.Errorf("page %d holds %d", page, m.Pages()[page][5])
		}
	}
	if err := errors.Join(m.Remove(), m.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, whose.UUID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

// TestCreateReplaces: a map that nobody believes any more makes way, and nothing else is left in
// the directory.
func TestCreateReplaces(t *testing.T) {
	dir := directory(t)
	m := newTestMap(t, dir)
	if err := m.Touch(2); err != nil {
		t.Fatal(err)
	}
	m.Pages()[2][0] = 1
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = newTestMap(t, dir)
	if len(used(t, m)) != 0 {
		t.Errorf("the new map has pages %v", used(t, m))
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 { // the map, and the bits beside it
		t.Errorf("in the directory: %v, %v", entries, err)
	}
}

// TestOtherVersion: a map that another version has made is told from a damaged one, and is not
// changed.
func TestOtherVersion(t *testing.T) {
	dir := directory(t)
	m := newTestMap(t, dir)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	other := fixed{Version: version + 1, Identity: whose}
	copy(other.Magic[:], magic)
	other.Checksum = crc32.Checksum(other.bytes(), table)
	write(t, m.Path(), other.bytes())
	if m, err := Open(dir, whose.UUID); !errors.Is(err, ErrVersion) {
		t.Errorf("opened %v, %v", m, err)
	}
}

// TestDamaged: what is no map of this metadata is refused, whatever byte of its header is another.
func TestDamaged(t *testing.T) {
	dir := directory(t)
	m := newTestMap(t, dir)
	path := m.Path()
	good := encode(whose)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	refused := func(what string) {
		t.Helper()
		if m, err := Open(dir, whose.UUID); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: opened %v, %v", what, m, err)
		}
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x10
		write(t, path, bad)
		refused("byte flipped")
	}
	write(t, path, good)
	if m, err := Open(dir, whose.UUID); err != nil {
		t.Errorf("whole again: %v", err)
	} else if err := m.Close(); err != nil {
		t.Error(err)
	}
	for _, size := range []int64{0, 20, testHeader, testHeader + (pages+1)*bitmap.PageBytes} {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		refused("another size")
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, 0)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestTouchCanFail: where memory cannot be had it is an error and no signal.
func TestTouchCanFail(t *testing.T) {
	m := newTestMap(t, directory(t))
	if err := os.Truncate(m.Path(), testHeader+3*bitmap.PageBytes); err != nil {
		t.Fatal(err)
	}
	if err := m.Touch(2); err != nil {
		t.Errorf("page 2: %v", err)
	}
	if err := m.Touch(3); err == nil {
		t.Error("page 3 is beyond the end of the file and was taken")
	}
}

// TestStandsAlone: superblock, full pages and the loaded mark outlive the process; a copy of the
// superblock that a death has cut short does not count; and the map is found by the beginning of
// its UUID.
func TestStandsAlone(t *testing.T) {
	dir := directory(t)
	m := newTestMap(t, dir)
	if m.Superblock() != nil || m.State().Loaded || m.Full(0) {
		t.Error("a new map has a superblock, is loaded or full")
	}
	for i := range byte(5) {
		m.SetSuperblock(bytes.Repeat([]byte{i}, SuperblockBytes))
	}
	copy(m.superblock(m.words.newer.Load()%2), "half of the next one")
	m.SetFull(31)
	m.SetFull(pages - 1)
	m.SetLoaded()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := Find(dir, [8]byte(whose.UUID[:8]))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.Superblock(), bytes.Repeat([]byte{4}, SuperblockBytes)) || !m.State().Loaded {
		t.Errorf("loaded %t, superblock %x...", m.State().Loaded, m.Superblock()[:4])
	}
	for page := range uint64(pages) {
		if want := page == 31 || page == pages-1; m.Full(page) != want {
			t.Errorf("page %d full: %t", page, !want)
		}
	}
	if n := used(t, m); len(n) > 0 {
		t.Errorf("pages %v have memory", n)
	}
	if err := errors.Join(m.Remove(), m.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(dir, [8]byte(whose.UUID[:8])); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("found after Remove: %v", err)
	}
}
