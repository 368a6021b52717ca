package livemap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// The bits of bitmap.Map.KeepZeros lie in a file of their own beside the map, because version 2 of the map has no room
// for them and daemons of before they were there take over maps of that version:
//
//	0                  64     4096            h
//	+--------------------+-------+--- ... ---+
//	| identity, checksum |   0   | a bit a    |
//	| as of the map      |       | page       |
//	+--------------------+-------+--- ... ---+
//
// The map's words say that there are such bits. A daemon that does not know them finds a committed page that is zero
// throughout in the metadata, where it reads all pages without memory; and as the map alone is then not the
// whole truth for it, the word that says so to it is not set, but another one. What it would not know of is a page that
// was marked as a whole and is not committed yet. A daemon that leaves in order has committed all.

const zerosMagic = "ublkzero"

// zerosPath is the file beside a map.
func zerosPath(path string) string { return strings.TrimSuffix(path, ".map") + ".zeros" }

// zerosSize is that of the file, in bytes.
func (m *Map) zerosSize() int64 { return block + (m.headerSize() - fullBlock*block) }

// KeepZeros makes the bits, none of them set, unless the map has them already.
func (m *Map) KeepZeros() error {
	if m.zeros != nil {
		return nil
	}
	if err := m.makeZeros(); err != nil {
		return fmt.Errorf("make bits beside live map %s: %w", m.path, err)
	}
	return nil
}

func (m *Map) makeZeros() error {
	path := strings.TrimSuffix(m.path, ".new")
	var f *os.File
	err := withNames(filepath.Dir(path), func() (err error) { // the map has its name already: collectZeros leaves them alone
		f, err = os.OpenFile(zerosPath(path), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	b := make([]byte, m.zerosSize()) // its memory is there from now on
	copy(b, encodeAs(zerosMagic, m.id))
	if _, err = f.WriteAt(b, 0); err == nil {
		err = m.mapZeros(f)
	}
	if err != nil {
		return errors.Join(err, os.Remove(zerosPath(path)))
	}
	m.words.zeros.Store(1)
	if m.words.loaded.Load() != 0 {
		m.SetLoaded()
	}
	return nil
}

// openZeros opens the bits of a map that has some.
func (m *Map) openZeros() error {
	if m.words.zeros.Load() == 0 {
		return nil
	}
	f, err := os.OpenFile(zerosPath(m.path), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	want := encodeAs(zerosMagic, m.id)
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, 0)
	info, statErr := f.Stat()
	if err = errors.Join(err, statErr); err == nil && (string(got) != string(want) || info.Size() != m.zerosSize()) {
		err = errors.New("of other metadata, or of another size")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%w: %s: %w", ErrDamaged, f.Name(), err), f.Close())
	}
	return m.mapZeros(f)
}

// mapZeros maps the file, which it closes.
func (m *Map) mapZeros(f *os.File) (err error) {
	m.zeroMapping, err = sys.MapFile(int(f.Fd()), int(m.zerosSize()))
	if err != nil {
		return errors.Join(err, f.Close())
	}
	m.zeros = sys.As[atomic.Uint64](m.zeroMapping)[block/8:]
	return f.Close()
}

// Zeros are the bits for bitmap.Map.KeepZeros; nil: there are none.
func (m *Map) Zeros() []atomic.Uint64 { return m.zeros }

// Zero says whether the bit of a page is set.
func (m *Map) Zero(page uint64) bool {
	return m.zeros != nil && m.zeros[page/64].Load()>>(page%64)&1 != 0
}

// EachZero calls visit for each page whose bit is set, in order, until it fails.
func (m *Map) EachZero(visit func(page uint64) error) error {
	for page := range uint64(len(m.pages)) {
		if m.Zero(page) {
			if err := visit(page); err != nil {
				return err
			}
		}
	}
	return nil
}

// RemoveFiles removes the map of the metadata with this UUID, and what lies beside it, if they are there.
func RemoveFiles(dir string, uuid [16]byte) error {
	path := Path(dir, uuid)
	for _, path := range [...]string{path, zerosPath(path)} {
		if err := removeIfThere(path); err != nil {
			return err
		}
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove live map: %w", err)
	}
	return nil
}
