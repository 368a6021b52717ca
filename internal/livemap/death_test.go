package livemap

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// dies runs f, which touches memory of the mapping that is not there, and says whether it has died
// of that. What f has done until then is done, and nothing of what comes after: a death at that
// very point.
func dies(f func()) (dead bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { dead = recover() != nil }()
	f()
	return false
}

// cutOff is a mapping of n pages of which only the first is there.
func cutOff(t *testing.T, n int) *sys.Mapping {
	t.Helper()
	f, err := os.Create(filepath.Join(directory(t), "cut"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(n * block)); err != nil {
		t.Fatal(err)
	}
	m, err := sys.MapFile(int(f.Fd()), n*block)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if err := f.Truncate(block); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestDeathWithinSetSuperblock: a daemon that dies while it copies a superblock leaves the one
// before it, each time.
func TestDeathWithinSetSuperblock(t *testing.T) {
	m := newTestMap(t, directory(t))
	defer m.Close()
	source := cutOff(t, 3).Bytes()
	half := source[block/2:][:SuperblockBytes]
	fill(source[:block], 0xee)
	if !dies(func() { m.SetSuperblock(half) }) {
		t.Fatal("the copy of memory that is not there has ended well")
	}
	if m.Superblock() != nil {
		t.Fatal("half of the first superblock counts")
	}
	for i := range byte(4) {
		whole := bytes.Repeat([]byte{i + 1}, SuperblockBytes)
		m.SetSuperblock(whole)
		current := m.superblock(m.words.newer.Load() - 1)
		m.SetSuperblock(bytes.Repeat([]byte{0xdd}, SuperblockBytes))
		if !bytes.Equal(current, whole) {
			t.Fatalf("superblock %d is overwritten by the next one", i)
		}
		m.SetSuperblock(whole)
		if !dies(func() { m.SetSuperblock(half) }) {
			t.Fatal("the copy of memory that is not there has ended well")
		}
		if got := m.Superblock(); !bytes.Equal(got, whole) {
			t.Fatalf("superblock %d is %x... after a death within the next one", i, got[:4])
		}
	}
}

func fill(b []byte, with byte) {
	for i := range b {
		b[i] = with
	}
}

// TestDeathWithinSetBlames: none is blamed with what belongs to another.
func TestDeathWithinSetBlames(t *testing.T) {
	m := newTestMap(t, directory(t))
	defer m.Close()
	m.SetBlames([]Blame{{Request{1, 2, 3}, 4}, {Request{5, 6, 7}, 8}})
	cut := cutOff(t, 3)
	fill(cut.Bytes()[:block], 0xee)
	there := block / int(reflect.TypeFor[Blame]().Size())
	if !dies(func() { m.SetBlames(sys.As[Blame](cut)[there-1:][:4]) }) {
		t.Fatal("the copy of memory that is not there has ended well")
	}
	if got := m.Blames(); len(got) != 0 {
		t.Errorf("blames %+v after a death within SetBlames", got)
	}
}

// TestCreateInVain: a map that cannot be made leaves the one that is there as it is, and nothing
// beside it.
func TestCreateInVain(t *testing.T) {
	dir := directory(t)
	m := newTestMap(t, dir)
	m.SetSuperblock(bytes.Repeat([]byte{7}, SuperblockBytes))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	inTheWay := Path(dir, whose.UUID) + ".new" // where a new one is made before it gets its name
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, whose, State{}); err == nil {
		t.Fatal("a map was made where there is no room for it")
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	m, err := Open(dir, whose.UUID)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !bytes.Equal(m.Superblock(), bytes.Repeat([]byte{7}, SuperblockBytes)) {
		t.Error("the map that was there has another superblock")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 { // it and its bits (zeros.go)
		t.Errorf("in the directory: %v, %v", entries, err)
	}
}

// TestCreateWithoutMemory: a map that got its file and no memory leaves the bits of the one that is
// there.
func TestCreateWithoutMemory(t *testing.T) {
	dir := directory(t)
	if err := newTestMap(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	path := Path(dir, whose.UUID) + newSuffix
	f, err := openInUse(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	begun := &Map{path: path, file: f, id: whose}
	if err := errors.Join(begun.Remove(), begun.Close()); err != nil { // as create does then
		t.Fatal(err)
	}
	m, err := Open(dir, whose.UUID)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Remove(), m.Close()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestManyPages: the bits of full pages have as much room as they need, and each is its own.
func TestManyPages(t *testing.T) {
	const nr = 8*block + 70 // more bits than a block has
	id := whose
	id.Regions = nr * bitmap.RegionsPerPage
	m, err := Create(directory(t), id, State{Commit: 5, Mode: 1, FlushLost: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if want := (State{Commit: 5, Mode: 1, FlushLost: true}); m.State() != want {
		t.Errorf("state %+v, want %+v", m.State(), want)
	}
	full := []uint64{0, 63, 64, 65, 130, 8*block - 1, 8 * block, nr - 1}
	for _, page := range full {
		m.SetFull(page)
	}
	for page := range uint64(nr) {
		if m.Full(page) != slices.Contains(full, page) {
			t.Fatalf("page %d full: %t", page, m.Full(page))
		}
	}
	if m.Pages()[0] != (bitmap.Page{}) || m.Superblock() != nil {
		t.Error("the bits of full pages lie over something else")
	}
	for _, page := range []uint64{0, nr - 1} {
		if err := m.Touch(page); err != nil {
			t.Fatal(err)
		}
	}
	if got := used(t, m); !slices.Equal(got, []uint64{0, nr - 1}) {
		t.Errorf("pages %v have memory", got)
	}
	own := errors.New("own")
	if err := m.Used(func(uint64) error { return own }); !errors.Is(err, own) {
		t.Errorf("an error of the caller: %v", err)
	}
}

// TestListAndFind: files of other names are nobody's maps, and of two that begin alike neither is
// taken.
func TestListAndFind(t *testing.T) {
	dir := directory(t)
	other := whose
	other.UUID[9]++
	for _, id := range []Identity{whose, other} {
		m, err := Create(dir, id, State{})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"short.map", "0102.map", "0102.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := List(dir)
	if err != nil || len(got) != 2 || !slices.Contains(got, whose.UUID) || !slices.Contains(got, other.UUID) {
		t.Errorf("list %x, %v", got, err)
	}
	if m, err := Find(dir, [8]byte(whose.UUID[:8])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("found %v of two: %v", m, err)
	}
	if err := os.Rename(Path(dir, whose.UUID), Path(dir, [16]byte{9})); err != nil {
		t.Fatal(err)
	}
	if m, err := Open(dir, [16]byte{9}); !errors.Is(err, ErrDamaged) {
		t.Errorf("opened a map under another's name: %v, %v", m, err)
	}
}
