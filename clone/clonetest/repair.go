package clonetest

import (
	"errors"
	"fmt"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// openMap opens the metadata and makes the region map of them and of what a dead daemon has left,
// as the engine does:
//
//  1. The superblock says whether a session begins: with the clean flag, or on another boot.
//     Otherwise the live map must be that of the session which goes on.
//  2. Fill the map. The live map knows the last commit of a session that goes on.
//  3. Write the superblock of the session, whichever it is.
//
// If the metadata of a dead daemon cannot be read or written the live map has to do (I11).
func (o *opening) openMap() (*bitmap.Map, *bitmap.Delta, error) {
	s := o.sim
	died := o.died
	o.detached = died && s.cfg.Unreadable > 0 && !s.healed && s.rng.Float64() < s.cfg.Unreadable
	if !o.detached {
		o.faulty = died
		regions, uncommitted, err := o.openMetadata()
		o.faulty = false
		if err == nil || !died || asDiskError(err) == nil {
			return regions, uncommitted, err
		}
		s.log("CANNOT OPEN", nil, 0, 0, 0, err)
		o.detached = true
	}
	return o.takeOverAlone()
}

func (o *opening) openMetadata() (*bitmap.Map, *bitmap.Delta, error) {
	s := o.sim
	store, _, err := metadata.Open(metaDevice{s.disks.meta, s})
	if err != nil {
		return nil, nil, err
	}
	s.store = store
	sb := store.Superblock()
	begins := sb.Clean || sb.BootID != o.bootID() // 1
	switch {
	case !begins && (s.live == nil || s.live.session != sb.Session):
		return nil, nil, fmt.Errorf("the metadata is of session %d, and there is no live map of that", sb.Session)
	case begins:
		if err := o.force(); err != nil {
			return nil, nil, err
		}
		sb = store.Superblock()
		s.live = newLiveMap(s.geo, &sb)
	}
	regions, uncommitted, err := o.fillMap(begins) // 2
	if err != nil {
		return nil, nil, err
	}
	err = store.Update(func(sb *metadata.Superblock) error { // 3
		sb.Clean, sb.Session, sb.BootID = false, s.live.session, o.bootID()
		sb.Counters.Starts++
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	s.live.superblock = store.Copy()
	return regions, uncommitted, nil
}

func (o *opening) fillMap(begins bool) (regions *bitmap.Map, uncommitted *bitmap.Delta, err error) {
	s := o.sim
	regions = bitmap.New(s.geo.Regions(), s.live.pages)
	regions.KeepZeros(s.live.zeros)
	if begins {
		return regions, nil, s.live.load(s.store, regions)
	}
	uncommitted, err = s.live.takeOver(s.store, regions)
	return regions, uncommitted, err
}

// force is --force: metadata and destination are taken to be repaired.
func (o *opening) force() error {
	s := o.sim
	if sb := s.store.Superblock(); !o.forced || sb.Mode == metadata.ModeReadWrite {
		return nil
	}
	return s.store.Update(func(sb *metadata.Superblock) error {
		sb.Mode, sb.DestFlushFailed = metadata.ModeReadWrite, false
		return nil
	})
}

func (o *opening) bootID() metadata.UUID { return metadata.UUID{15: o.sim.boot} }

// refresh is what the superblock says of the core.
func (s *sim) refresh(sb *metadata.Superblock) error {
	sb.Mode = max(sb.Mode, metadata.Mode(s.core.Mode()))
	sb.DestFlushFailed = sb.DestFlushFailed || s.core.FlushLost()
	sb.Complete = sb.Complete || s.core.Complete()
	return nil
}

// update changes the superblock, and the live map's copy of it.
func (s *sim) update(change func(*metadata.Superblock) error) error {
	err := s.store.Update(change)
	if err == nil {
		s.live.superblock = s.store.Copy()
	}
	return err
}

// takeOverAlone makes the region map of the live map.
func (o *opening) takeOverAlone() (regions *bitmap.Map, _ *bitmap.Delta, err error) {
	s := o.sim
	s.log("METADATA UNREADABLE", nil, 0, 0, 0, nil)
	s.live.mode = max(s.live.mode, clone.ReadOnly)
	if s.store, err = metadata.Detached(s.live.superblock); err != nil {
		return nil, nil, err
	}
	regions = bitmap.New(s.geo.Regions(), s.live.pages)
	regions.KeepZeros(s.live.zeros)
	for page := range s.live.pages {
		switch {
		case s.live.full[page]:
			regions.LoadFull(uint64(page))
		case s.live.pages[page] != bitmap.Page{}:
			if err := regions.Recover(uint64(page), nil, nil); err != nil {
				return nil, nil, err
			}
		case s.live.zero(page):
			if err := regions.RecoverZero(uint64(page), nil, nil); err != nil {
				return nil, nil, err
			}
		}
	}
	return regions, bitmap.NewDelta(uint64(len(s.live.pages)), 0), nil
}

// repairing is the repairs of metadata that has failed.
type repairing struct {
	repairs  int // still to be tried
	repaired int // when one has ended well, as the oracle counts
	// repairsDone counts those that ended well, repairsAlone those of metadata that could not be
	// read.
	repairsDone, repairsAlone int
}

// repair has somebody say that the metadata is repaired, whether it is or not.
func (s *sim) repair() {
	s.repairs--
	s.broken[writeMeta], s.broken[flushMeta] = false, false
	s.committer.repair = true
	s.committer.resume()
}

// doRepair is the committer's part of it. A repair of healthy metadata must succeed: only an error
// that was injected while it ran, or a flush of the destination that was lost, keeps it from that.
func (c *committer) doRepair() error {
	s := c.sim
	err := c.tryRepair()
	switch {
	case err == nil:
		s.repairsDone++
		if s.detached {
			s.repairsAlone++
		}
		s.repaired, s.detached = s.oracle.now, false
	case asDiskError(err) == nil && !(errors.Is(err, clone.ErrFlushLost) && s.core.FlushLost()):
		s.fail(fmt.Errorf("the metadata is healthy and cannot be repaired: %w", err))
	}
	return err
}

func (c *committer) tryRepair() error {
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
	for {
		err := s.core.Repair(c, mapStore{s}, func() error {
			return s.update(func(sb *metadata.Superblock) error {
				err := s.refresh(sb)
				sb.Mode = metadata.ModeReadWrite
				return err
			})
		})
		if !errors.Is(err, clone.ErrCommitPutOff) {
			return err
		}
		c.pause()
	}
}

// repairAtLast demands that what has failed can be repaired when nothing fails any more.
func (s *sim) repairAtLast() error {
	s.repair()
	if err := s.until(func() bool { return s.committer.idle }); err != nil {
		return err
	}
	if s.core.Mode() != clone.ReadWrite {
		return fmt.Errorf("mode %v after a repair without errors", s.core.Mode())
	}
	return nil
}
