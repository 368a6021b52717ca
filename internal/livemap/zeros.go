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

// The bits of bitmap.Map.KeepZeros lie in a file of their own beside the map, because version 2 of
// the map has no room for them and daemons of before they were there take over maps of that
// version:
//
//	0                  64     4096            h
//	+--------------------+-------+--- ... ---+
//	| identity, checksum |   0   | a bit a    |
//	| as of the map      |       | page       |
//	+--------------------+-------+--- ... ---+
//
// The map's words say that there are such bits. A daemon that does not know them finds a committed
// page that is zero throughout in the metadata, where it reads all pages without memory; and as the
// map alone is then not the whole truth for it, the word that says so to it is not set, but another
// one. What it would not know of is a page that was marked as a whole and is not committed yet. A
// daemon that leaves in order has committed all.

const zerosMagic = "ublkzero"

// zerosPath is the file beside a map.
func zerosPath(path string) string { return strings.TrimSuffix(path, ".map") + ".zeros" }

// zeroBits are those bits, in their file beside the map.
type zeroBits struct {
	mapping *sys.Mapping
	bits    bits // nil: there are none
}

// KeepZeros makes the bits, none of them set, unless the map has them already.
func (m *Map) KeepZeros() error {
	if m.zeroBits.bits != nil {
		return nil
	}
	if err := m.zeroBits.create(m.path, m.id); err != nil {
		return fmt.Errorf("make bits beside live map %s: %w", m.path, err)
	}
	m.words.zeros.Store(1)
	if m.words.loaded.Load() != 0 {
		m.SetLoaded()
	}
	return nil
}

// create makes the file beside a map, which may have its name already or not.
func (z *zeroBits) create(path string, id Identity) error {
	path = strings.TrimSuffix(path, newSuffix)
	var f *os.File
	err := withNames(filepath.Dir(path), func() (err error) { // the map has its name already: collectZeros leaves them alone
		f, err = os.OpenFile(zerosPath(path), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	b := make([]byte, block+id.pageBits()) // its memory is there from now on
	copy(b, encodeAs(zerosMagic, id))
	if _, err = f.WriteAt(b, 0); err == nil {
		err = z.mapFile(f, id)
	}
	if err != nil {
		return errors.Join(err, os.Remove(zerosPath(path)))
	}
	return nil
}

// open opens the file beside a map that has one.
func (z *zeroBits) open(path string, id Identity) error {
	f, err := os.OpenFile(zerosPath(path), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	want := encodeAs(zerosMagic, id)
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, 0)
	info, statErr := f.Stat()
	if err = errors.Join(err, statErr); err == nil && (string(got) != string(want) || info.Size() != block+id.pageBits()) {
		err = errors.New("of other metadata, or of another size")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%w: %s: %w", ErrDamaged, f.Name(), err), f.Close())
	}
	return z.mapFile(f, id)
}

// mapFile maps the file, which it closes.
func (z *zeroBits) mapFile(f *os.File, id Identity) (err error) {
	z.mapping, err = sys.MapFile(int(f.Fd()), int(block+id.pageBits()))
	if err != nil {
		return errors.Join(err, f.Close())
	}
	z.bits = sys.As[atomic.Uint64](z.mapping)[block/8:]
	return f.Close()
}

// Zeros are the bits for bitmap.Map.KeepZeros; nil: there are none.
func (z *zeroBits) Zeros() []atomic.Uint64 { return z.bits }

// Zero says whether the bit of a page is set.
func (z *zeroBits) Zero(page uint64) bool { return z.bits != nil && z.bits.has(page) }

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

// RemoveFiles removes the map of the metadata with this UUID, and what lies beside it, if they are
// there.
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
