package metadata

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// Report says what Open and Load found.
type Report struct {
	Clean    bool     // the metadata was closed in order
	ReadOnly bool     // a feature permits reading only: every write fails with ErrReadOnly
	Warnings []string // one sentence each: a bad or older superblock copy, bad slots
}

// maxSlotWarnings bounds how many bad slots a Report names one by one.
const maxSlotWarnings = 16

// sbCopy is a superblock copy as read.
type sbCopy struct {
	sb  Superblock
	raw []byte
	err error // why it is not valid; errBlank if it is all zero
}

var errBlank = errors.New("all zero")

// readCopies reads both superblock copies. One that cannot be read counts as bad: it is
// only ever overwritten once the other is known to be good.
func readCopies(dev Device, buf []byte) (copies [2]sbCopy) {
	b := buf[:BlockSize]
	for i := range copies {
		c := &copies[i]
		if dev.Size() == 0 { // a file just created
			c.err = errBlank
			continue
		}
		if c.err = dev.ReadAt(b, copyOffset(i)); c.err != nil {
			continue
		}
		c.raw = append([]byte(nil), b...)
		if isZero(b) {
			c.err = errBlank
			continue
		}
		c.err = c.sb.decode(b, copyOffset(i))
	}
	return copies
}

// pick returns the copy that wins and what is to be said of the other.
func pick(copies *[2]sbCopy) (winner int, warnings []string, err error) {
	a, b := &copies[0], &copies[1]
	both := fmt.Errorf("superblock copy 0 at byte %d: %w; copy 1 at byte %d: %w",
		copyOffset(0), orGood(a), copyOffset(1), orGood(b))
	switch {
	case a.err == errBlank && b.err == errBlank:
		return 0, nil, ErrEmpty
	case errors.Is(a.err, ErrVersion) || errors.Is(b.err, ErrVersion):
		return 0, nil, both
	case a.err != nil && b.err != nil:
		return 0, nil, fmt.Errorf("%w: %w", ErrDamaged, both)
	case a.err != nil:
		return 1, []string{badCopy(0, a.err)}, nil
	case b.err != nil:
		return 0, []string{badCopy(1, b.err)}, nil
	}
	return pickNewer(a, b)
}

var errGood = errors.New("good")

// orGood returns what is wrong with a copy, or errGood.
func orGood(c *sbCopy) error {
	if c.err == nil {
		return errGood
	}
	return c.err
}

func badCopy(i int, err error) string {
	return fmt.Sprintf("superblock copy %d at byte %d is bad, the other is used: %v", i, copyOffset(i), err)
}

// pickNewer picks between two valid copies.
func pickNewer(a, b *sbCopy) (winner int, warnings []string, err error) {
	switch {
	case a.sb.UUID != b.sb.UUID:
		return 0, nil, fmt.Errorf("%w: superblock copies of two clones, %v and %v", ErrDamaged, a.sb.UUID, b.sb.UUID)
	case a.sb.Sequence == b.sb.Sequence && a.sb != b.sb:
		return 0, nil, fmt.Errorf("%w: superblock copies differ and both have sequence %d", ErrDamaged, a.sb.Sequence)
	case a.sb.Sequence == b.sb.Sequence:
		return 0, nil, nil
	case a.sb.Sequence > b.sb.Sequence:
		return 0, []string{olderCopy(1, b, a)}, nil
	}
	return 1, []string{olderCopy(0, a, b)}, nil
}

func olderCopy(i int, older, newer *sbCopy) string {
	return fmt.Sprintf("superblock copy %d at byte %d is older (sequence %d, other %d): its update was interrupted",
		i, copyOffset(i), older.sb.Sequence, newer.sb.Sequence)
}

// Open opens metadata. Load must follow before anything is marked. Errors: ErrEmpty,
// ErrDamaged (names both copies), ErrVersion, ErrTooSmall, or the device's. Nothing is
// written, but the device is flushed: what was read here, and what Load will read, may be
// in a cache only, left by a dead daemon, and is about to be taken for durable (see "The
// slot that is overwritten" in the package comment).
func Open(dev Device) (*Store, Report, error) {
	if dev.Size() == 0 { // a file that was just made
		return nil, Report{}, fmt.Errorf("open metadata: %w", ErrEmpty)
	}
	s := &Store{medium: newMedium(dev)}
	copies := readCopies(dev, s.scratch)
	winner, warnings, err := pick(&copies)
	if err != nil {
		return nil, Report{}, fmt.Errorf("open metadata: %w", err)
	}
	w := &copies[winner]
	if need := Size(w.sb.NrRegions); dev.Size() < need {
		return nil, Report{}, fmt.Errorf("open metadata: %w: %d bytes, need %d", ErrTooSmall, dev.Size(), need)
	}
	if err := dev.Flush(); err != nil {
		return nil, Report{}, fmt.Errorf("open metadata: flush: %w", err)
	}
	s.adopt(w.sb, w.raw)
	s.safe = safeCopy(&copies, winner)
	s.unsecured = copies[s.safe].raw
	s.report = Report{Clean: w.sb.Clean, ReadOnly: s.readOnly, Warnings: warnings}
	return s, s.Report(), nil
}

// Peek reads the superblock of metadata that somebody else serves, and may be writing just now.
// Nothing is written or flushed. Errors: as of Open.
func Peek(dev Device) (Superblock, error) {
	buf := newScratch(dev)
	for try := 0; ; try++ {
		copies := readCopies(dev, buf)
		winner, _, err := pick(&copies)
		switch {
		case err == nil:
			return copies[winner].sb, nil
		case !errors.Is(err, ErrDamaged) || try == peekTries:
			return Superblock{}, fmt.Errorf("look at metadata: %w", err)
		}
		time.Sleep(peekPause)
	}
}

// The two copies are written one after the other, and both can be found half written only if two
// updates came in between.
const (
	peekTries = 3
	peekPause = 20 * time.Millisecond
)

// safeCopy is the copy that is not to be overwritten first.
func safeCopy(copies *[2]sbCopy, winner int) int {
	if copies[1-winner].err != nil || copies[0].sb.Sequence != copies[1].sb.Sequence {
		return winner
	}
	return 1 // both good: copy 0 is written first
}

// badSlot is a slot to be rewritten at open.
type badSlot struct {
	page uint64
	slot int
}

// loading is the state of one Load.
type loading struct {
	s       *Store
	fn      func(page uint64, img *bitmap.Page) error
	newest  uint64 // the last commit that counts
	bad     []badSlot
	sum     uint64
	highest uint64 // commit of which there are traces
}

// allCommits is the last commit that counts when nobody knows better than the metadata.
const allCommits = math.MaxUint64

// Load reads the region map and calls fn with the current image of each page that is not
// empty; the image holds until fn returns. fn must not call the Store. If Load fails, what
// fn was given is void.
//
//  1. Read every slot; the higher valid sequence of a page wins (judge).
//  2. With the clean flag the winners must be those that the map sum was made of, else
//     a slot was lost or has gone back in time: ErrDamaged. Without it a bad slot is one
//     that a crash tore, and the other slot has what was committed.
//  3. Zero the bad slots, then flush. From here on a bad slot is damage again, so that
//     after a clean stop step 2 can tell.
func (s *Store) Load(fn func(page uint64, img *bitmap.Page) error) error {
	return s.LoadKnown(allCommits, fn)
}

// LoadKnown is Load for a session that goes on: newest is the last commit that is known to
// have succeeded. The one after it has failed, or its daemon has died before it ended. Its
// slots can be read, and be lost all the same; so they count for nothing: their pages are
// undecided, as they were for the Store that wrote them (see "The slot that is overwritten"
// in the package comment), and the next commit has the same sequence. The caller has its marks
// and commits them again, all in that commit: a slot that is left out would count with it.
//
// Errors, before anything is written: ErrOlder if the metadata lack commit newest, ErrMismatch
// if they have a commit that nobody can have tried.
func (s *Store) LoadKnown(newest uint64, fn func(page uint64, img *bitmap.Page) error) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.undecided > 0 {
		return fmt.Errorf("load region map: %w", ErrUnflushed)
	}
	s.forget()
	defer func() {
		if err != nil {
			s.forget()
		}
	}()
	l := loading{s: s, fn: fn, newest: newest, highest: s.sb.CommitSequence}
	if err := walk(s.dev, s.scratch, &s.sb, l.page); err != nil { // 1
		return err
	}
	if err := l.compare(); err != nil { // 2
		return fmt.Errorf("load region map: %w", err)
	}
	if !s.readOnly {
		if err := s.rewrite(l.bad); err != nil { // 3
			return err
		}
	}
	s.sum = l.sum
	s.committed = min(newest, l.highest)
	s.loaded = true
	return nil
}

// compare is step 2, and says whether the metadata is that of which newest is the last commit.
func (l *loading) compare() error {
	sb := &l.s.sb
	switch {
	case sb.Clean && l.sum != sb.MapSum:
		return fmt.Errorf("%w: clean, but map sum: found %016x, expected %016x%s", ErrDamaged, l.sum, sb.MapSum, l.badSlots())
	case l.newest == allCommits:
		return nil
	case l.highest < l.newest:
		return fmt.Errorf("%w: commit %d, not %d", ErrOlder, l.highest, l.newest)
	}
	return notTried(l.highest, l.newest)
}

// notTried is about a commit of which there are traces. One after the newest may have been tried:
// who fails in it tries no other.
func notTried(found, newest uint64) error {
	if found > newest+1 {
		return fmt.Errorf("%w: commit %d, the last one known is %d", ErrMismatch, found, newest)
	}
	return nil
}

// page takes one page that is not empty.
func (l *loading) page(page uint64, slots *[2]slot) error {
	if _, err := judge(page, slots); err != nil {
		return err
	}
	winner := newestKnown(slots, l.newest)
	l.setAside(page, slots)
	if winner < 0 {
		return nil
	}
	w := &slots[winner]
	l.s.current[page] = w.sequence
	l.s.setNext(page, 1-winner)
	l.sum += mix(page, w.sequence)
	return l.fn(page, &w.img)
}

// setAside sees to the slots of a page that do not count: bad ones are to be rewritten, and one of
// a later commit is the next to be written, whatever the other one is.
func (l *loading) setAside(page uint64, slots *[2]slot) {
	for i := range slots {
		if slots[i].err != nil {
			l.bad = append(l.bad, badSlot{page, i})
			l.s.warnSlot(len(l.bad), page, i, slots[i].err)
			l.s.setNext(page, i)
		}
	}
	for i := range slots {
		if !slots[i].valid() {
			continue
		}
		l.highest = max(l.highest, slots[i].sequence)
		if slots[i].sequence > l.newest {
			l.s.setUndecided(page)
			l.s.setNext(page, i)
		}
	}
}

// badSlots names the bad slots of a map that is refused.
func (l *loading) badSlots() string {
	text := ""
	for i, b := range l.bad {
		if i == maxSlotWarnings {
			return text + fmt.Sprintf(" and %d more", len(l.bad)-i)
		}
		text += fmt.Sprintf("; bad: page %d slot %d at byte %d", b.page, b.slot, slotOffset(b.page, b.slot))
	}
	return text
}

// warnSlot adds the n-th bad slot to the report.
func (s *Store) warnSlot(n int, page uint64, slot int, err error) {
	switch {
	case n <= maxSlotWarnings:
		s.warn("page %d slot %d at byte %d is bad, the other is used: %v", page, slot, slotOffset(page, slot), err)
	case n == maxSlotWarnings+1:
		s.warn("more bad slots, not named here")
	}
}

func (s *Store) warn(format string, args ...any) {
	s.report.Warnings = append(s.report.Warnings, fmt.Sprintf(format, args...))
}

// rewrite zeroes bad slots and flushes.
func (m *medium) rewrite(bad []badSlot) error {
	if len(bad) == 0 {
		return nil
	}
	clear(m.block)
	for _, b := range bad {
		if err := m.dev.WriteAt(m.block, slotOffset(b.page, b.slot)); err != nil {
			return fmt.Errorf("rewrite page %d slot %d: %w", b.page, b.slot, err)
		}
	}
	if err := m.dev.Flush(); err != nil {
		return fmt.Errorf("flush rewritten slots: %w", err)
	}
	return nil
}
