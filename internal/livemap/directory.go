package livemap

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Dir is where the live maps of a machine are: a tmpfs of its own, in no service's directory, which
// would go when the service stops.
const Dir = "/run/ublk-clone-maps"

// Mount sees to it that dir is a tmpfs of its own. The directory above it must exist.
func Mount(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory for live maps: %w", err)
	}
	lock, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("lock directory of live maps: %w", err)
	}
	defer lock.Close()
	if err := sys.FlockWait(int(lock.Fd())); err != nil {
		return fmt.Errorf("lock directory of live maps %s: %w", dir, err)
	}
	if err := sys.MountTmpfs(dir); err != nil {
		return fmt.Errorf("live maps in %s: %w", dir, err)
	}
	return nil
}

// TryMount says whether Mount would succeed, and how much could be written there; 0: there is none
// yet. Nothing is changed.
func TryMount(dir string) (free int64, err error) {
	there, err := sys.TmpfsThere(dir)
	switch {
	case errors.Is(err, os.ErrNotExist), err == nil && !there:
		err = sys.TryNoSwap()
	case err == nil:
		free, err = sys.FreeAt(dir)
	}
	if err != nil {
		return 0, fmt.Errorf("live maps in %s: %w", dir, err)
	}
	return free, nil
}

// Path is the file of the metadata with this UUID.
func Path(dir string, uuid [16]byte) string { return filepath.Join(dir, fmt.Sprintf("%x.map", uuid)) }

// List gives the metadata that has a map in dir, which need not be there.
func List(dir string) (uuids [][16]byte, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.map"))
	if err != nil {
		return nil, fmt.Errorf("list live maps: %w", err)
	}
	for _, path := range paths {
		if uuid, ok := uuidOf(path); ok {
			uuids = append(uuids, uuid)
		}
	}
	return uuids, nil
}

// uuidOf reads the name of a map.
func uuidOf(path string) (uuid [16]byte, ok bool) {
	b, err := hex.DecodeString(strings.TrimSuffix(filepath.Base(path), ".map"))
	if err != nil || len(b) != len(uuid) {
		return uuid, false
	}
	return [16]byte(b), true
}

// Find opens the map of the metadata whose UUID begins with these eight bytes, for when they cannot
// be asked for all of it. os.ErrNotExist: there is none.
func Find(dir string, begin [8]byte) (*Map, error) {
	found, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("%x*.map", begin)))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d files: %w", len(found), os.ErrNotExist)
	}
	var uuid []byte
	if err == nil {
		uuid, err = hex.DecodeString(strings.TrimSuffix(filepath.Base(found[0]), ".map"))
	}
	if err == nil && len(uuid) != 16 {
		err = ErrDamaged
	}
	if err != nil {
		return nil, fmt.Errorf("find live map: %w", err)
	}
	return Open(dir, [16]byte(uuid))
}
