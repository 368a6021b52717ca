package engine

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

// metadataSide is the clone's metadata: the file or device, and the store in it. The superblock says who the clone is.
type metadataSide struct {
	*shared
	file    *blockdev.MetadataFile // nil: it could not be opened. Changed by the committer's goroutine
	found   *metadata.Superblock   // nil: there was none before this start
	store   *metadata.Store
	created bool // by this start

	mu struct {
		sync.Mutex
		detached error // why the live map stands in for it
	}
}

// open opens the metadata device first: what it holds says whether the clone is new.
func (m *metadataSide) open(context.Context) error {
	if err := neighbours.Refuse(&m.start, blockdev.Metadata, m.Warn); err != nil {
		return err
	}
	d, err := blockdev.Open(blockdev.Metadata, m.start.Definition.Metadata, blockdev.Options{
		Force: m.accepts(), Create: !m.start.Open, DryRun: m.start.DryRun, Tolerate: m.tolerance(),
	})
	if err != nil && metadev.Unopened(err) {
		return m.standIn(err)
	}
	if err != nil {
		return err
	}
	if m.file, err = blockdev.NewMetadataFile(d); err != nil {
		return errors.Join(err, d.Remove(), d.Close())
	}
	return nil
}

func (m *metadataSide) close() error {
	if m.file == nil {
		return nil
	}
	m.erase()
	return errors.Join(m.file.Close(), m.ending.fault(10))
}

func (m *metadataSide) remove() error {
	if m.file == nil {
		return nil
	}
	return m.file.Remove()
}

// find looks for metadata that were there before this start, or what stands in for them.
func (m *metadataSide) find() error {
	if m.start.Create {
		return nil
	}
	store, err := m.store, m.detached()
	if err == nil {
		store, _, err = metadata.Open(m.file)
		if err != nil && m.start.Recover && metadev.Unreadable(err) {
			store, err = metadev.FromLiveMap(m.start.Definition.Mark)
		}
		if err != nil {
			return err
		}
	}
	sb := store.Superblock()
	m.found = &sb
	return nil
}

// room refuses a block device that is too small for any metadata of the clone, before a copy of
// the superblock that cannot be there looks damaged.
func (m *metadataSide) room(deviceSize int64) error {
	size := cmp.Or(m.start.Definition.RegionSize, definition.MaxRegionSize)
	need := metadata.Size(metadata.NrRegions(deviceSize, size))
	if !m.file.IsBlock() || m.file.Size() >= need {
		return nil
	}
	return explain.Metadata("use", m.start.Definition.Metadata, fmt.Errorf("%w: %d bytes, need %d", metadata.ErrTooSmall, m.file.Size(), need))
}

// recoverMode: a clone whose metadata or destination failed starts no better than it was left; force is the
// explicit word that ends it (I10).
func (m *metadataSide) recoverMode(mode metadata.Mode) error {
	if mode == metadata.ModeReadWrite {
		return nil
	}
	if !m.start.Force {
		m.log.Warn().Stringer("mode", mode).Msg("metadata or destination have failed before: no region can be marked")
		return nil
	}
	m.log.Warn().Stringer("mode", mode).Msg("--force: metadata and destination are taken to be repaired")
	err := m.store.Update(func(sb *metadata.Superblock) error {
		sb.Mode, sb.DestFlushFailed = metadata.ModeReadWrite, false
		return nil
	})
	if err != nil {
		return explain.Metadata("repair", m.start.Definition.Metadata, err)
	}
	return nil
}

// reopen gives the device that the metadata's path names: the one that is open if it is that.
func (m *metadataSide) reopen(dest, source *blockdev.Device) (*blockdev.MetadataFile, error) {
	others := []*blockdev.Device{dest}
	if source != nil {
		others = append(others, source)
	}
	d, err := blockdev.Open(blockdev.Metadata, m.start.Definition.Metadata, blockdev.Options{Others: others})
	if err == nil {
		var file *blockdev.MetadataFile
		if file, err = blockdev.NewMetadataFile(d); err == nil {
			return file, nil
		}
		err = errors.Join(err, d.Close())
	}
	if m.file == nil {
		return nil, err
	}
	m.log.Debug().Err(err).Msg("the metadata that are open are used again")
	return m.file, nil // held by us; or gone, and then about to be seen to fail
}

// replace takes a device in place of the one that had failed, which is closed.
func (m *metadataSide) replace(file *blockdev.MetadataFile) {
	old := m.file
	m.file = file
	if old == nil || old == file {
		return
	}
	if err := old.Close(); err != nil { // it has gone, and says so once more
		m.log.Info().Err(err).Msg("close the metadata that had failed")
	}
}

// erase is step 10 of a finish. Metadata that stay are no harm while the destination is as it is: they say that all of it is there.
func (m *metadataSide) erase() {
	if !m.ending.finished || m.ending.keepMetadata || m.file == nil {
		return
	}
	if err := etc.DefaultDir().Retired(m.start.Definition.Name); err != nil {
		m.log.Warn().Err(err).Str("metadata", m.file.Path()).Msg("the metadata is kept: it keeps the next boot from cloning anew")
		return
	}
	if err := m.file.Erase(metadata.Size(0)); err != nil {
		m.log.Warn().Err(err).Str("metadata", m.file.Path()).Msg("they are not needed any more, and are still there")
	}
}
