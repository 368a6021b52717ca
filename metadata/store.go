package metadata

import (
	"fmt"
	"slices"
	"sync"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// Store is open metadata. Its methods may be called from any goroutine; but for Superblock they
// wait for each other and block for the device's time, so no lane calls them.
type Store struct {
	mu sync.Mutex // guards everything below, but what copies show; held across I/O
	medium
	copies
	slotTable
	readOnly bool
	loaded   bool
	report   Report
	spoiled  error // of an Update, whose failed flush may have lost pages of the commit under way; told to that once
}

// adopt takes over a valid superblock and makes the tables for its map.
func (s *Store) adopt(sb Superblock, raw []byte) {
	s.copies.adopt(sb, raw)
	s.slotTable = newSlotTable(sb.CommitSequence, sb.NrRegions)
	s.readOnly = sb.FeatureROCompat&^knownROCompat != 0
}

// Report returns what was found at open, with what Load has added.
func (s *Store) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.report
	r.Warnings = slices.Clone(r.Warnings)
	return r
}

// CommitSequence returns the sequence of the last commit: of the last Flush that had
// something to flush and succeeded.
func (s *Store) CommitSequence() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.committed
}

// WritePage writes the new image of a page: step 3 of a commit (I4). It counts once Flush
// has succeeded. The slot written is not the current one, so a crash costs nothing; after
// a failure it is the same slot again. Nothing is allocated.
// Errors: ErrReadOnly, ErrNotLoaded, ErrClean, or the device's; after the latter nothing
// of this commit counts. That includes the error of an Update that came in between.
func (s *Store) WritePage(page uint64, img *bitmap.Page) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writable(page, img); err != nil {
		return fmt.Errorf("write page %d: %w", page, err)
	}
	if err := s.takeSpoiled(); err != nil {
		return fmt.Errorf("write page %d: %w", page, err)
	}
	slot := s.next(page)
	encodeSlot(s.block, &s.sb.UUID, page, s.committed+1, img)
	s.setUndecided(page)
	if err := s.dev.WriteAt(s.block, slotOffset(page, slot)); err != nil {
		s.abort()
		return fmt.Errorf("write page %d slot %d: %w", page, slot, err)
	}
	s.written(page)
	return nil
}

func (s *Store) writable(page uint64, img *bitmap.Page) error {
	switch {
	case s.readOnly:
		return ErrReadOnly
	case !s.loaded:
		return ErrNotLoaded
	case s.flagged:
		return ErrClean
	}
	return bitmap.Valid(s.sb.NrRegions, page, img)
}

// Flush makes the pages written since the last one durable and current: step 4 of a
// commit (I4). With none written it does nothing. After an error nothing of this commit
// counts: the pages must be written again. That includes the error of an Update that came
// in between.
func (s *Store) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.takeSpoiled(); err != nil {
		return fmt.Errorf("flush commit %d: %w", s.committed+1, err)
	}
	if len(s.pending) == 0 {
		return nil
	}
	n := len(s.pending)
	if err := s.flush(); err != nil {
		return fmt.Errorf("flush %d pages of commit %d: %w", n, s.committed+1, err)
	}
	s.commit()
	return nil
}

// flush flushes the device. A failure is told once and may concern any write before it,
// so it is the end of a commit that is under way too.
func (s *Store) flush() error {
	err := s.dev.Flush()
	if err != nil {
		s.abort()
	}
	return err
}

// flushForUpdate is flush for an Update. A commit that is under way does not see the error,
// and would find nothing to flush at its end: it is told then.
func (s *Store) flushForUpdate() error {
	underWay := len(s.pending) > 0
	err := s.flush()
	if err != nil && underWay {
		s.spoiled = fmt.Errorf("an update of the superblock failed meanwhile: %w", err)
	}
	return err
}

// takeSpoiled gives what is to be told to the commit under way.
func (s *Store) takeSpoiled() error {
	err := s.spoiled
	s.spoiled = nil
	return err
}

// Update changes the superblock: change gets a copy with the current values and the
// result is written. Fields marked "store" are set here, with the clean flag the map sum
// among them. change must not call the Store. If Update fails, Superblock has the old
// values and the device may have the old or the new ones.
//
//  0. Where another daemon may have written the safe copy, write that again as it is, and flush
//     (secure).
//  1. Write the copy that is not known to be good; normally that is copy 0.
//  2. Flush. From here on a crash leaves the new values.
//  3. Write the other copy.
//  4. Flush. From here on one bad copy leaves the new values.
//
// Until 2 has succeeded the other copy is not touched, so that a torn write never finds
// the only good copy: were copy 0 always first, one bad copy 1 and a crash would be the end.
//
// Errors: change's own, ErrReadOnly, ErrNotLoaded, ErrUnflushed, ErrInvalid, the device's.
func (s *Store) Update(change func(*Superblock) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readOnly {
		return fmt.Errorf("update superblock: %w", ErrReadOnly)
	}
	sb := s.sb
	if err := change(&sb); err != nil {
		return err
	}
	if err := s.fillIn(&sb); err != nil {
		return fmt.Errorf("update superblock: %w", err)
	}
	if err := s.copies.write(&s.medium, sb, s.flushForUpdate); err != nil {
		return fmt.Errorf("update superblock: %w", err)
	}
	return nil
}

// fillIn sets the fields that the Store sets, and refuses what must not be written.
func (s *Store) fillIn(sb *Superblock) error {
	old := &s.sb
	if sb.UUID != old.UUID || sb.CreatedNs != old.CreatedNs || sb.RegionSize != old.RegionSize ||
		sb.DeviceSize != old.DeviceSize || sb.LogicalBlockSize != old.LogicalBlockSize {
		return fmt.Errorf("%w: UUID, creation time and sizes are fixed", ErrInvalid)
	}
	sb.Version = version
	sb.FeatureCompat, sb.FeatureROCompat, sb.FeatureIncompat = old.FeatureCompat, old.FeatureROCompat, old.FeatureIncompat
	sb.useFeatures()
	sb.NrRegions, sb.MapOffset = old.NrRegions, old.MapOffset
	sb.Sequence = s.sequence + 1
	if sb.DestInstance.Session != 0 || sb.DestSample.Session != 0 {
		sb.FeatureCompat |= featureKnown
	}
	if sb.DestSample.ExactAt == ThisUpdate {
		sb.DestSample.ExactAt = sb.Sequence
	}
	sb.CommitSequence = s.committed
	if err := s.setMapSum(sb); err != nil {
		return err
	}
	if err := sb.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// setMapSum sets the map sum that belongs to the clean flag.
func (s *Store) setMapSum(sb *Superblock) error {
	switch {
	case !sb.Clean:
		sb.MapSum = 0
	case s.undecided > 0:
		return fmt.Errorf("%w: %d pages", ErrUnflushed, s.undecided)
	case s.loaded:
		sb.MapSum = s.sum
	case !s.sb.Clean:
		return ErrNotLoaded
	}
	return nil
}
