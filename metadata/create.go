package metadata

import "fmt"

// CreateOptions change what Create may do.
type CreateOptions struct {
	// Force creates over whatever the device holds.
	Force bool
}

// Create makes empty, clean metadata on dev and returns them open and loaded. Of sb the
// fields that are not marked "store" count; mode, clean flag and counters start as they
// are there, the clean flag is set. Errors: ErrNotEmpty without Force, ErrTooSmall,
// ErrInvalid, or the device's.
//
//  1. Without Force: both superblock blocks and the first page's slots must be zero.
//  2. Zero both superblock copies, flush. Whatever was there is gone as a whole: no crash
//     from here on leaves an old superblock with a new map, or the other way round.
//  3. Zero all the rest, flush. Only what is not zero is written, so a sparse file stays
//     one, and a block device with old content loses it. Now every slot is valid and empty.
//  4. Write superblock copy 0, flush; copy 1, flush (Update).
//
// A crash before step 4 leaves no metadata or, with a torn copy 0, damaged ones; in step
// 4, metadata that open.
func Create(dev Device, sb *Superblock, opt CreateOptions) (*Store, error) {
	fresh := *sb
	fresh.Clean = true
	fresh.create()
	if err := fresh.validate(); err != nil {
		return nil, fmt.Errorf("create metadata: %w: %w", ErrInvalid, err)
	}
	size := Size(fresh.NrRegions)
	if dev.Size() < size {
		return nil, fmt.Errorf("create metadata: %w: %d bytes, need %d", ErrTooSmall, dev.Size(), size)
	}
	s := &Store{medium: newMedium(dev)}
	if !opt.Force { // 1
		if err := s.refuseContent(); err != nil {
			return nil, fmt.Errorf("create metadata: %w", err)
		}
	}
	if err := s.erase(size); err != nil {
		return nil, fmt.Errorf("create metadata: %w", err)
	}
	s.adopt(fresh, make([]byte, BlockSize))
	s.loaded = true
	s.safe = 1 // copy 0 is written first
	if err := s.copies.write(&s.medium, fresh, s.flushForUpdate); err != nil {
		return nil, fmt.Errorf("create metadata: %w", err)
	}
	s.report = Report{Clean: true}
	return s, nil
}

// create fills the fields that the Store sets.
func (sb *Superblock) create() {
	sb.Version = version
	sb.FeatureCompat, sb.FeatureROCompat, sb.FeatureIncompat = 0, 0, 0
	sb.useFeatures()
	sb.Sequence = 1
	sb.CommitSequence = 0
	sb.MapSum = 0
	sb.MapOffset = mapOffset
	if sb.RegionSize > 0 && sb.DeviceSize > 0 { // else validate refuses it
		sb.NrRegions = NrRegions(sb.DeviceSize, sb.RegionSize)
	}
}

// useFeatures sets the bits of the features that the superblock's fields need. A bit that is set
// stays.
func (sb *Superblock) useFeatures() {
	if sb.SourcePieces != (Pieces{}) || sb.SourceChangeNs != 0 || sb.Settings.SourceTimeout != 0 {
		sb.FeatureCompat |= compatSource
	}
	if sb.Settings.Indirect {
		sb.FeatureCompat |= compatDirect
	}
	if sb.Settings.FinishAuto {
		sb.FeatureCompat |= compatFinish
	}
}

// refuseContent fails with ErrNotEmpty if there is anything where the superblock copies
// and the first page go.
func (m *medium) refuseContent() error {
	for _, off := range []int64{copyOffset(0), copyOffset(1), slotOffset(0, 0), slotOffset(0, 1)} {
		if err := m.dev.ReadAt(m.block, off); err != nil {
			return fmt.Errorf("read byte %d: %w", off, err)
		}
		if !isZero(m.block) {
			return fmt.Errorf("%w: found data at byte %d", ErrNotEmpty, off)
		}
	}
	return nil
}

// erase makes the first size bytes of the device zero, the superblock copies first.
func (m *medium) erase(size int64) error {
	for i := range 2 { // 2
		clear(m.block)
		if err := m.dev.WriteAt(m.block, copyOffset(i)); err != nil {
			return fmt.Errorf("zero superblock copy %d: %w", i, err)
		}
	}
	if err := m.dev.Flush(); err != nil {
		return fmt.Errorf("flush zeroed superblock: %w", err)
	}
	if err := chunks(m.dev, m.scratch, 0, size, m.zeroChunk); err != nil { // 3
		return err
	}
	if err := m.dev.Flush(); err != nil {
		return fmt.Errorf("flush zeroed region map: %w", err)
	}
	return nil
}

// zeroChunk zeroes the bytes at off, of which b is the content, unless they are zero.
func (m *medium) zeroChunk(off int64, b []byte) error {
	if isZero(b) {
		return nil
	}
	if z, ok := m.dev.(Zeroer); ok {
		if err := z.ZeroRange(off, int64(len(b))); err != nil {
			return fmt.Errorf("zero %d bytes at byte %d: %w", len(b), off, err)
		}
		return nil
	}
	clear(b)
	if err := m.dev.WriteAt(b, off); err != nil {
		return fmt.Errorf("write %d zero bytes at byte %d: %w", len(b), off, err)
	}
	return nil
}
