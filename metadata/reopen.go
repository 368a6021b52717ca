package metadata

import (
	"fmt"
	"math"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// nowhere is the Device of metadata that cannot be reached.
type nowhere struct{}

func (nowhere) ReadAt([]byte, int64) error    { return ErrDetached }
func (nowhere) WriteAt([]byte, int64) error   { return ErrDetached }
func (nowhere) Flush() error                  { return ErrDetached }
func (nowhere) Size() int64                   { return math.MaxInt64 }
func (nowhere) NextData(int64) (int64, error) { return 0, ErrDetached }

// Copy returns the superblock as it was last written, as one block for Parse and Detached:
// to be kept where it can be read when the metadata cannot.
func (s *Store) Copy() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := make([]byte, BlockSize)
	copy(b, s.raw)
	s.sb.encode(b, 0)
	return b
}

// Parse reads what Copy has made. Errors: ErrDamaged, ErrVersion.
func Parse(block []byte) (sb Superblock, err error) {
	if len(block) != BlockSize || isZero(block) {
		return sb, fmt.Errorf("copy of the superblock: %w", ErrDamaged)
	}
	if err := sb.decode(block, 0); err != nil {
		return Superblock{}, fmt.Errorf("copy of the superblock: %w: %w", ErrDamaged, err)
	}
	return sb, nil
}

// Detached returns a store without a device: it knows the superblock that Copy has kept,
// and every read or write fails with ErrDetached until Reopen gives it one.
func Detached(block []byte) (*Store, error) {
	sb, err := Parse(block)
	if err != nil {
		return nil, err
	}
	s := &Store{medium: newMedium(nowhere{})}
	s.adopt(sb, append([]byte(nil), block...))
	return s, nil
}

// Reopen makes dev the store's device, for metadata that had failed: one that has come back,
// or the same again. newest is the last commit that is known to have succeeded. What Reopen
// finds is only looked at to choose slots: the caller writes every page anew. seen is
// called with each image that a page may have after a power loss; an error from it ends Reopen.
//
//  1. Flush: what is read next may be in a cache only, left by whoever copied it there.
//  2. The superblock must be of the same metadata, in the same session, without clean flag,
//     and of no commit that nobody can have tried: ErrMismatch says that somebody else has had
//     them. It may name the commit after newest, which has failed: earlier versions wrote that.
//  3. Of each page the current slot is the newest one that is not of a later commit than
//     newest. A later one was written by a commit that failed: it can be read, and be lost all
//     the same. So that is the slot to be written, as is a bad one (see "The slot that is
//     overwritten" in the package comment).
//
// Nothing is written. If it fails the store is as it was.
func (s *Store) Reopen(dev Device, newest uint64, seen func(page uint64, img *bitmap.Page) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &Store{medium: newMedium(dev)}
	if err := dev.Flush(); err != nil { // 1
		return fmt.Errorf("reopen metadata: flush: %w", err)
	}
	copies := readCopies(dev, r.scratch) // 2
	winner, _, err := pick(&copies)
	if err == nil {
		err = s.sameAs(&copies[winner].sb, newest, dev.Size())
	}
	if err != nil {
		return fmt.Errorf("reopen metadata: %w", err)
	}
	r.adopt(copies[winner].sb, copies[winner].raw)
	r.safe = safeCopy(&copies, winner)
	err = walk(dev, r.scratch, &r.sb, func(page uint64, slots *[2]slot) error { // 3
		return r.reopenPage(page, slots, newest, seen)
	})
	if err != nil {
		return fmt.Errorf("reopen metadata: %w", err)
	}
	s.medium, s.slotTable = r.medium, r.slotTable
	s.committed = newest
	s.raw, s.safe, s.unsecured, s.flagged = r.raw, r.safe, copies[r.safe].raw, false
	s.sequence = max(s.sequence, r.sb.Sequence)
	s.loaded, s.spoiled = true, nil
	return nil
}

// sameAs says why a superblock is not that of this metadata as it was left.
func (c *copies) sameAs(found *Superblock, newest uint64, size int64) error {
	old := &c.sb
	switch {
	case found.UUID != old.UUID:
		return fmt.Errorf("%w: UUID: found %v, expected %v", ErrMismatch, found.UUID, old.UUID)
	case found.Session != old.Session || found.Clean:
		return fmt.Errorf("%w: session: found %d (clean: %t), expected %d, not ended", ErrMismatch, found.Session, found.Clean, old.Session)
	case found.NrRegions != old.NrRegions || found.FeatureROCompat != old.FeatureROCompat:
		return fmt.Errorf("%w: regions or features", ErrMismatch)
	case size < Size(old.NrRegions):
		return fmt.Errorf("%w: %d bytes, need %d", ErrTooSmall, size, Size(old.NrRegions))
	}
	return notTried(found.CommitSequence, newest)
}

// reopenPage is step 3 for a page.
func (t *slotTable) reopenPage(page uint64, slots *[2]slot, newest uint64, seen func(uint64, *bitmap.Page) error) error {
	for i := range slots {
		if slots[i].valid() {
			if err := seen(page, &slots[i].img); err != nil {
				return err
			}
		}
	}
	current := newestKnown(slots, newest)
	if current < 0 { // nothing to lose: an empty slot, if there is one, stays what it is
		if slots[0].err == nil && slots[0].sequence == 0 {
			t.setNext(page, 1)
		}
		return nil
	}
	t.current[page] = slots[current].sequence
	t.sum += mix(page, t.current[page])
	t.setNext(page, 1-current)
	return nil
}
