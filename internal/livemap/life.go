package livemap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Life is how far the session of a map has come, as far as its daemons have noted it.
type Life uint32

// The order of a session's steps keeps these true whenever a daemon dies:
//
//	LifeMade   there before the metadata says that the session has begun
//	LifeBegun  noted before the metadata says so
//	LifeEnded  noted after the metadata says that the session has ended in order
//
// So with the first and the last the metadata needs no map. With LifeBegun only the metadata can
// tell.
const (
	LifeUnknown Life = iota // made by a version that notes nothing
	LifeMade
	LifeBegun
	LifeEnded
)

// maxPlace is the longest path of metadata that is noted, in bytes.
const maxPlace = 1000

// place is where the metadata lies, for whoever wonders later if it needs this map. It is in the
// state's block, behind the trouble.
type place struct {
	_      [3072]byte
	length atomic.Uint32
	path   [maxPlace]byte
}

// SetMetadata notes the path of the metadata. One that is too long is left out.
func (p *place) SetMetadata(path string) {
	if len(path) <= maxPlace {
		p.length.Store(0)
		copy(p.path[:], path)
		p.length.Store(uint32(len(path)))
	}
}

// Metadata is the path that was noted, "" if there is none.
func (p *place) Metadata() string {
	return string(p.path[:min(p.length.Load(), maxPlace)])
}

// A map in use has a shared lock (flock) on its file, from before the first look at it until Close:
// by a daemon, or whoever reads it. Who removes a map that nobody needs holds the exclusive one,
// from before it looks until the file is gone.

// lookLimit is how long whoever removes maps may look at one.
const lookLimit = 5 * time.Second

// openInUse opens a map's file with the shared lock.
func openInUse(path string, flags int) (*os.File, error) {
	for deadline := time.Now().Add(lookLimit); ; time.Sleep(10 * time.Millisecond) {
		f, err := sys.Open(path, flags, 0o600)
		if err != nil {
			return nil, err
		}
		err = sys.FlockShared(int(f.Fd()))
		if err == nil && sameFile(f, path) {
			return f, nil
		}
		f.Close()
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("another command has looked at %s for %s", path, lookLimit)
		}
	}
}

func sameFile(f *os.File, path string) bool {
	open, errOpen := f.Stat()
	named, errNamed := os.Stat(path)
	return errOpen == nil && errNamed == nil && os.SameFile(open, named)
}

// withNames does something to the names in a directory of maps that nobody else does meanwhile.
func withNames(dir string, do func() error) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := sys.FlockWait(int(f.Fd())); err != nil {
		return err
	}
	return do()
}

// Unused is a map that nobody has in use.
type Unused struct {
	*Map        // nil: the file is no map, or was never complete
	Path string // of the file
	UUID [16]byte
}

// Collect removes from dir the maps that nobody has in use and needless says nobody needs, and
// those that their makers have never completed.
func Collect(dir string, needless func(Unused) bool) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*.map*"))
	if err != nil {
		return fmt.Errorf("list live maps: %w", err)
	}
	for _, path := range paths {
		err = errors.Join(err, collectOne(path, needless))
	}
	return errors.Join(err, collectZeros(dir))
}

func collectOne(path string, needless func(Unused) bool) (err error) {
	f, err := sys.Open(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at live map: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if sys.FlockExclusive(int(f.Fd())) != nil {
		return nil // in use
	}
	if strings.HasSuffix(path, newSuffix) {
		return removeName(f, path, func() error { return removeIfThere(path) }) // the bits beside may be those of the map that has the name
	}
	uuid, ok := uuidOf(path)
	if !ok {
		return nil
	}
	u := unused(f, path, uuid)
	if u.Map != nil {
		defer func() { err = errors.Join(err, u.unmap()) }()
	}
	if !needless(u) {
		return nil
	}
	return removeName(f, path, (&Map{path: path}).Remove)
}

// removeName has remove take away the file's name, unless another file has it by now.
func removeName(f *os.File, path string, remove func() error) error {
	return withNames(filepath.Dir(path), func() error {
		if !sameFile(f, path) {
			return nil
		}
		return remove()
	})
}

// collectZeros removes bits without a map, which whoever removed it, and was killed, has left.
func collectZeros(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*.zeros"))
	for _, path := range paths {
		of := strings.TrimSuffix(path, ".zeros") + ".map"
		err = errors.Join(err, withNames(dir, func() error {
			for _, name := range [...]string{of, of + newSuffix} {
				if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
					return err
				}
			}
			return removeIfThere(path)
		}))
	}
	return err
}

// unused opens what is locked already, as far as it can be opened.
func unused(f *os.File, path string, uuid [16]byte) Unused {
	m := &Map{path: path, file: f}
	if m.read(uuid) != nil || m.open() != nil {
		return Unused{Path: path, UUID: uuid}
	}
	return Unused{Map: m, Path: path, UUID: uuid}
}
