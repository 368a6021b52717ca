package clonetest

import (
	"fmt"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// openMap opens the metadata and fills the map from them and from what a dead daemon has left. If they cannot be
// read, the latter has to do (I11).
func (s *sim) openMap(regions *bitmap.Map) (*bitmap.Delta, error) {
	s.detached = s.live.inherited && s.cfg.Unreadable > 0 && !s.healed && s.rng.Float64() < s.cfg.Unreadable
	if s.detached {
		return s.takeOverAlone(regions)
	}
	store, _, err := metadata.Open(metaDevice{s.disks.meta, s})
	if err != nil {
		return nil, err
	}
	s.store = store
	uncommitted, err := s.live.takeOver(store, regions)
	if err != nil {
		return nil, err
	}
	if store.Superblock().Clean { // else it is left alone: Open alone has to see to what a dead daemon wrote
		if err := store.Update(func(sb *metadata.Superblock) error { sb.Clean = false; return nil }); err != nil {
			return nil, err
		}
	}
	if !s.live.inherited || s.live.mode == clone.ReadWrite {
		s.live.commit = store.CommitSequence()
	}
	s.live.superblock = store.Copy()
	return uncommitted, nil
}

// takeOverAlone makes the region map of the live map.
func (s *sim) takeOverAlone(regions *bitmap.Map) (_ *bitmap.Delta, err error) {
	s.note("METADATA UNREADABLE", nil, 0, 0, 0, nil)
	s.live.mode = max(s.live.mode, clone.ReadOnly)
	if s.store, err = metadata.Detached(s.live.superblock); err != nil {
		return nil, err
	}
	for page := range s.live.pages {
		switch {
		case s.live.full[page]:
			regions.LoadFull(uint64(page))
		case s.live.pages[page] != bitmap.Page{}:
			if err := regions.Recover(uint64(page), nil, nil); err != nil {
				return nil, err
			}
		}
	}
	return bitmap.NewDelta(uint64(len(s.live.pages)), 0), nil
}

// repair has somebody say that the metadata are repaired, whether they are or not.
func (s *sim) repair() {
	s.repairs--
	s.broken[writeMeta], s.broken[flushMeta] = false, false
	s.committer.repair = true
	s.committer.resume()
}

// doRepair is the committer's part of it.
func (c *committer) doRepair() error {
	s := c.sim
	err := s.store.Reopen(metaDevice{s.disks.meta, s}, s.live.commit, func(page uint64, img *bitmap.Page) error {
		if !s.core.Regions().Holds(page, img) {
			s.fail(fmt.Errorf("page %d of the metadata has marks that the live map has not", page))
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = s.core.Repair(c, mapStore{s}, func() error {
		return s.store.Update(func(sb *metadata.Superblock) error { sb.Mode = metadata.ModeReadWrite; return nil })
	})
	if err == nil {
		s.repairsDone++
		if s.detached {
			s.repairsAlone++
		}
		s.repaired, s.detached = s.oracle.now, false
		s.live.superblock = s.store.Copy()
	}
	return err
}
