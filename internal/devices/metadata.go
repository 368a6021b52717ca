package devices

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/metadev"
	"github.com/ublk-clone/ublk-clone/internal/neighbours"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// MetadataSide is the clone's metadata: the file or device, and the store in it. The superblock
// says who the clone is. The steps open it; while the clone is served only the committer's
// goroutine changes it. Any goroutine may ask Detached, and the store for what it shows.
type MetadataSide struct {
	*Shared
	File    *blockdev.MetadataFile // nil: it could not be opened. Changed by the committer's goroutine
	Found   *metadata.Superblock   // nil: there was none before this start
	Store   *metadata.Store
	Created bool // by this start

	mu struct {
		sync.Mutex
		detached error // why the live map stands in for it
	}
}

// open opens the metadata device first: what it holds says whether the clone is new.
func (m *MetadataSide) open(context.Context) error {
	if err := neighbours.Refuse(&m.Wanted, blockdev.Metadata, m.Warn); err != nil {
		return err
	}
	d, err := blockdev.Open(blockdev.Metadata, m.Wanted.Definition.Metadata, blockdev.Options{
		Force: m.accepts(), Create: !m.Wanted.Open, DryRun: m.Wanted.DryRun, Tolerate: m.tolerance(),
	})
	if err != nil && metadev.Unopened(err) {
		return m.StandIn(err)
	}
	if err != nil {
		return err
	}
	if m.File, err = blockdev.NewMetadataFile(d); err != nil {
		return errors.Join(err, d.Remove(), d.Close())
	}
	return nil
}

func (m *MetadataSide) close() error {
	if m.File == nil {
		return nil
	}
	m.erase()
	return errors.Join(m.File.Close(), m.Ending.Fault(10))
}

func (m *MetadataSide) remove() error {
	if m.File == nil {
		return nil
	}
	return m.File.Remove()
}

// find looks for metadata that was there before this start, or what stands in for them.
func (m *MetadataSide) find() error {
	if m.Wanted.Create {
		return nil
	}
	store, err := m.Store, m.Detached()
	if err == nil {
		store, _, err = metadata.Open(m.File)
		if err != nil && m.Wanted.Recover && metadev.Unreadable(err) {
			store, err = metadev.FromLiveMap(m.Wanted.Definition.Cookie)
		}
		if err != nil {
			return err
		}
	}
	sb := store.Superblock()
	m.Found = &sb
	return nil
}

// room refuses a block device that is too small for any metadata of the clone, before a copy of
// the superblock that cannot be there looks damaged.
func (m *MetadataSide) room(deviceSize int64) error {
	size := cmp.Or(m.Wanted.Definition.RegionSize, definition.MaxRegionSize)
	need := metadata.Size(metadata.NrRegions(deviceSize, size))
	if !m.File.IsBlock() || m.File.Size() >= need {
		return nil
	}
	return explain.Metadata("use", m.Wanted.Definition.Metadata, fmt.Errorf("%w: %d bytes, need %d", metadata.ErrTooSmall, m.File.Size(), need))
}

// recoverMode: a clone whose metadata or destination failed starts no better than it was left;
// force is the explicit word that ends it (I10).
func (m *MetadataSide) recoverMode(mode metadata.Mode) error {
	if mode == metadata.ModeReadWrite {
		return nil
	}
	if !m.Wanted.Force {
		m.Log.Warn().Stringer("mode", mode).Msg("the metadata or the destination has failed before: no region can be marked")
		return nil
	}
	m.Log.Warn().Stringer("mode", mode).Msg("--force: metadata and destination count as repaired")
	err := m.Store.Update(func(sb *metadata.Superblock) error {
		sb.Mode, sb.DestFlushFailed = metadata.ModeReadWrite, false
		return nil
	})
	if err != nil {
		return explain.Metadata("repair", m.Wanted.Definition.Metadata, err)
	}
	return nil
}

// StandIn makes the live map stand in for metadata that cannot be used because of cause, or gives
// back cause.
func (m *MetadataSide) StandIn(cause error) error {
	if !m.Wanted.Recover {
		return cause
	}
	store, err := metadev.FromLiveMap(m.Wanted.Definition.Cookie)
	if err != nil {
		m.Log.Warn().Err(err).Msg("the live map cannot stand in for the metadata")
		return cause
	}
	m.Store = store
	m.SetDetached(cause)
	m.Warn("the metadata %s cannot be used: %v. The live map stands in for it, read-only", m.Wanted.Definition.Metadata, cause)
	return nil
}

// Detached says why the metadata is not read or written; nil: it is.
func (m *MetadataSide) Detached() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.detached
}

func (m *MetadataSide) SetDetached(cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.detached = cause
}

// Reopen gives the device that the metadata's path names: the one that is open if it is that.
func (m *MetadataSide) Reopen(dest, source *blockdev.Device) (*blockdev.MetadataFile, error) {
	others := []*blockdev.Device{dest}
	if source != nil {
		others = append(others, source)
	}
	d, err := blockdev.Open(blockdev.Metadata, m.Wanted.Definition.Metadata, blockdev.Options{Others: others})
	if err == nil {
		var file *blockdev.MetadataFile
		if file, err = blockdev.NewMetadataFile(d); err == nil {
			return file, nil
		}
		err = errors.Join(err, d.Close())
	}
	if m.File == nil {
		return nil, err
	}
	m.Log.Debug().Err(err).Msg("the metadata that is open is used again")
	return m.File, nil // held by us; or gone, and then about to be seen to fail
}

// Replace takes a device in place of the one that had failed, which is closed.
func (m *MetadataSide) Replace(file *blockdev.MetadataFile) {
	old := m.File
	m.File = file
	if old == nil || old == file {
		return
	}
	if err := old.Close(); err != nil { // it has gone, and says so once more
		m.Log.Info().Err(err).Msg("close the metadata that had failed")
	}
}

// erase is step 10 of a finish (internal/engine/finish.go). Metadata that stay are no harm while
// the destination is as it is: they say that all of it is there.
func (m *MetadataSide) erase() {
	if !m.Ending.Finished || m.Ending.KeepMetadata || m.File == nil {
		return
	}
	if err := etc.DefaultDir().Retired(m.Wanted.Definition.Name); err != nil {
		m.Log.Warn().Err(err).Str("metadata", m.File.Path()).Msg("the metadata is kept: it keeps the next boot from cloning anew")
		return
	}
	if err := m.File.Erase(metadata.Size(0)); err != nil {
		m.Log.Warn().Err(err).Str("metadata", m.File.Path()).Msg("the metadata is not needed any more, but could not be removed")
	}
}
