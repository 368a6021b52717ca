package metadev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// peekLimit is how long metadata may take to be looked at.
const peekLimit = 2 * time.Second

// Peek reads a superblock. A device that hangs is not waited for.
func Peek(path string) (metadata.Superblock, error) {
	type answer struct {
		sb  metadata.Superblock
		err error
	}
	if path == "" {
		return metadata.Superblock{}, errors.New("where the metadata lies was not noted")
	}
	result := make(chan answer, 1)
	guard.Go("look at metadata", func() {
		sb, err := readSuperblock(path)
		result <- answer{sb, err}
	})
	select {
	case a := <-result:
		return a.sb, a.err
	case <-time.After(peekLimit):
		return metadata.Superblock{}, fmt.Errorf("%s does not answer", path)
	}
}

func readSuperblock(path string) (metadata.Superblock, error) {
	m, err := LookAtMetadata(path)
	if err != nil {
		return metadata.Superblock{}, err
	}
	sb, err := metadata.Peek(m)
	return sb, errors.Join(err, m.Close())
}

// Unopened says that metadata cannot be opened to be read and written, for now.
func Unopened(err error) bool { return blockdev.Away(err) || blockdev.Unwritable(err) }

// Unreadable says that metadata was opened and cannot be read, or makes no sense.
func Unreadable(err error) bool {
	if errors.Is(err, metadata.ErrVersion) {
		return false
	}
	return blockdev.Away(err) || errors.Is(err, metadata.ErrDamaged) || errors.Is(err, metadata.ErrEmpty)
}

// FromLiveMap makes a store without device from the live map of the clone with this cookie, if that
// map is the whole truth.
func FromLiveMap(cookie uint64) (*metadata.Store, error) {
	m, err := livemap.Find(livemap.Dir, [8]byte(binary.LittleEndian.AppendUint64(nil, cookie)))
	if err != nil {
		return nil, err
	}
	defer m.Close()
	store, err := metadata.Detached(m.Superblock())
	if err != nil {
		return nil, err
	}
	sb, id := store.Superblock(), m.Identity()
	_, boot, err := host.Identities()
	switch {
	case err != nil:
		return nil, err
	case !m.State().Loaded || sb.Clean:
		return nil, errors.New("it had not been filled")
	case sb.UUID != id.UUID || sb.Session != id.Session || sb.BootID != boot:
		return nil, fmt.Errorf("its superblock is of session %d, it is of session %d", sb.Session, id.Session)
	}
	return store, nil
}

// EraseDead gives up the metadata of the clone with that cookie, if it is there.
func EraseDead(path string, cookie uint64) error {
	d, err := blockdev.Open(blockdev.Metadata, path, blockdev.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	meta, err := blockdev.NewMetadataFile(d)
	if err != nil {
		return errors.Join(err, d.Close())
	}
	store, _, err := metadata.Open(meta)
	switch {
	case errors.Is(err, metadata.ErrEmpty):
		err = nil
	case err != nil:
		err = explain.Metadata("look at", path, err)
	case store.Superblock().UUID.Cookie() == cookie:
		err = meta.Erase(metadata.Size(0))
	}
	return errors.Join(err, meta.Close())
}

// LookAtMetadata opens metadata that may be in use, for a look at the superblock.
func LookAtMetadata(path string) (*blockdev.MetadataFile, error) {
	d, err := blockdev.Peek(blockdev.Metadata, path, metadata.BlockSize)
	if err != nil {
		return nil, err
	}
	m, err := blockdev.NewMetadataFile(d)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return m, nil
}
