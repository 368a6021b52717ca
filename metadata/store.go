package metadata

import (
	"fmt"
	"slices"
	"sync"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// Store is open metadata. Its methods may be called from any goroutine; but for Superblock they wait for each
// other and block for the device's time, so no lane calls them.
type Store struct {
	dev      Device
	scratch  []byte // the only I/O buffer
	block    []byte // its first block
	readOnly bool

	// shown is a copy of sb, for those who must not wait for the device. A leaf lock.
	shown struct {
		sync.Mutex
		sb Superblock
	}

	mu        sync.Mutex // guards everything below; held across I/O
	sb        Superblock // as last written with success
	raw       []byte     // the block it came from, for bytes that we do not know
	sequence  uint64     // last superblock sequence tried
	safe      int        // a copy that is known to be good and flushed, once it is settled
	unsettled []byte     // that copy as it was found, until it was written again; nil: settled
	marked    bool       // a copy on disk has, or may have after a failed Update, the clean mark
	loaded    bool
	report    Report
	committed uint64   // sequence of the last commit
	sum       uint64   // map sum of the current slots
	current   []uint64 // per page: sequence of the slot known to be flushed, 0 = none
	flags     []uint8  // per page: slotNext, slotUndecided, slotPending
	undecided uint64   // pages with slotUndecided
	pending   []uint64 // pages with slotPending; as large as the map, so that it never grows
	spoiled   error    // of an Update, whose failed flush may have lost pages of the commit under way; told to that once
}

// Flags of a page.
const (
	slotNext      = 1 << 0 // the slot to write: 0 or 1, never the current one
	slotUndecided = 1 << 1 // that slot was written and no flush of it has succeeded
	slotPending   = 1 << 2 // it was written, whole, since the last flush
)

func newStore(dev Device) *Store {
	scratch := newScratch(dev)
	return &Store{dev: dev, scratch: scratch, block: scratch[:BlockSize:BlockSize]}
}

// adopt takes over a valid superblock and makes the tables for its map.
func (s *Store) adopt(sb Superblock, raw []byte) {
	s.raw = raw
	s.setSuperblock(sb)
	s.marked = sb.Clean
	s.sequence = sb.Sequence
	s.committed = sb.CommitSequence
	s.readOnly = sb.FeatureROCompat&^knownROCompat != 0
	pages := bitmap.PagesFor(sb.NrRegions)
	s.current = make([]uint64, pages)
	s.flags = make([]uint8, pages)
	s.pending = make([]uint64, 0, pages)
}

// Superblock returns a copy of the superblock as it was last written. It never waits for the device.
func (s *Store) Superblock() Superblock {
	s.shown.Lock()
	defer s.shown.Unlock()
	return s.shown.sb
}

// setSuperblock takes what was read or written. mu must be held, unless the store is new.
func (s *Store) setSuperblock(sb Superblock) {
	s.sb = sb
	s.shown.Lock()
	defer s.shown.Unlock()
	s.shown.sb = sb
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
	if s.flags[page]&slotPending == 0 {
		s.flags[page] |= slotPending
		s.pending = append(s.pending, page)
	}
	return nil
}

func (s *Store) writable(page uint64, img *bitmap.Page) error {
	switch {
	case s.readOnly:
		return ErrReadOnly
	case !s.loaded:
		return ErrNotLoaded
	case s.marked:
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
	s.committed++
	for _, page := range s.pending {
		s.sum += mix(page, s.committed) - mix(page, s.current[page])
		s.current[page] = s.committed
		s.flags[page] = s.flags[page]&slotNext ^ slotNext // the other one is next, the rest cleared
	}
	s.undecided -= uint64(n)
	s.pending = s.pending[:0]
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

// abort gives up the commit that is under way. Its pages stay undecided: what is in the
// slot written is not known, and the next write of the page goes there again.
func (s *Store) abort() {
	for _, page := range s.pending {
		s.flags[page] &^= slotPending
	}
	s.pending = s.pending[:0]
}

func (s *Store) next(page uint64) int { return int(s.flags[page] & slotNext) }

func (s *Store) setNext(page uint64, slot int) {
	s.flags[page] = s.flags[page]&^slotNext | uint8(slot)
}

func (s *Store) setUndecided(page uint64) {
	if s.flags[page]&slotUndecided == 0 {
		s.flags[page] |= slotUndecided
		s.undecided++
	}
}

// Update changes the superblock: change gets a copy with the current values and the
// result is written. Fields marked "store" are set here, with the clean mark the map sum
// among them. change must not call the Store. If Update fails, Superblock has the old
// values and the device may have the old or the new ones.
//
//  0. Where another daemon may have written the safe copy, write that again as it is, and flush (settle).
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
	if err := s.complete(&sb); err != nil {
		return fmt.Errorf("update superblock: %w", err)
	}
	if err := s.writeCopies(sb); err != nil {
		return fmt.Errorf("update superblock: %w", err)
	}
	return nil
}

// complete sets the fields that the Store sets, and refuses what must not be written.
func (s *Store) complete(sb *Superblock) error {
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
	if sb.DestMark.Session != 0 || sb.DestSample.Session != 0 {
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

// setMapSum sets the map sum that belongs to the clean mark.
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

// writeCopies writes sb to both copies; see Update for the steps.
func (s *Store) writeCopies(sb Superblock) error {
	if err := s.settle(); err != nil { // 0
		return err
	}
	s.sequence = sb.Sequence // used up, whether or not it gets there
	s.marked = s.marked || sb.Clean
	for range 2 {
		i := 1 - s.safe
		copy(s.block, s.raw)
		sb.encode(s.block, copyOffset(i))
		if err := s.dev.WriteAt(s.block, copyOffset(i)); err != nil { // 1, 3
			return fmt.Errorf("write superblock copy %d: %w", i, err)
		}
		if err := s.flushForUpdate(); err != nil { // 2, 4
			return fmt.Errorf("flush superblock copy %d: %w", i, err)
		}
		s.safe = i
	}
	copy(s.raw, s.block)
	s.marked = sb.Clean
	s.setSuperblock(sb)
	return nil
}

// settle makes the safe copy durable before the other one is touched, by writing it again as it was found. See "The
// superblock copy that is overwritten" in the package comment.
func (s *Store) settle() error {
	if s.unsettled == nil {
		return nil
	}
	copy(s.block, s.unsettled)
	if err := s.dev.WriteAt(s.block, copyOffset(s.safe)); err != nil {
		return fmt.Errorf("write superblock copy %d again: %w", s.safe, err)
	}
	if err := s.flushForUpdate(); err != nil {
		return fmt.Errorf("flush superblock copy %d: %w", s.safe, err)
	}
	s.unsettled = nil
	return nil
}
