package metadata

import (
	"bytes"
	"fmt"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

var slotMagic = [8]byte{'U', 'B', 'L', 'K', 'C', 'L', 'M', 'P'}

// Offsets in a slot, and sizes, in bytes.
const (
	slotSequence = 16
	slotPage     = 24
	slotUUID     = 32
	slotReserved = 48 // 16 bytes
	slotH        = 64
	slotZ        = slotH + bitmap.PlaneWords*8

	slotPairBytes = 2 * BlockSize
)

// A slot is as large as a page: the header takes the place of the page's unused words.
var _ [slotZ + bitmap.PlaneWords*8]byte = [BlockSize]byte{}
var _ [bitmap.PageBytes]byte = [BlockSize]byte{}

// Size returns the bytes that metadata for nrRegions regions need.
func Size(nrRegions uint64) int64 {
	return mapOffset + int64(bitmap.PagesFor(nrRegions))*slotPairBytes
}

// slotOffset returns where a slot (0 or 1) of a page is.
func slotOffset(page uint64, slot int) int64 {
	return mapOffset + int64(page)*slotPairBytes + int64(slot)*BlockSize
}

// encodeSlot writes a page's image into block b.
func encodeSlot(b []byte, id *UUID, page, sequence uint64, img *bitmap.Page) {
	clear(b[:slotH])
	copy(b[offMagic:], slotMagic[:])
	le.PutUint64(b[slotSequence:], sequence)
	le.PutUint64(b[slotPage:], page)
	copy(b[slotUUID:], id[:])
	for w := range 2 * bitmap.PlaneWords {
		le.PutUint64(b[slotH+8*w:], img[w])
	}
	le.PutUint32(b[offCRC:], checksum(b))
}

// slot is a slot as read. It is empty (sequence 0, no error), valid, or bad (error).
type slot struct {
	sequence uint64
	err      error
	img      bitmap.Page
}

func (s *slot) valid() bool { return s.err == nil && s.sequence != 0 }

// decode reads a slot of a page from block b.
func (s *slot) decode(b []byte, sb *Superblock, page uint64) {
	s.sequence, s.err = 0, nil
	if isZero(b) {
		return
	}
	s.err = s.decodeFields(b, sb, page)
}

func (s *slot) decodeFields(b []byte, sb *Superblock, page uint64) error {
	if !bytes.Equal(b[offMagic:offMagic+8], slotMagic[:]) {
		return fmt.Errorf("magic: found %q, expected %q", b[offMagic:offMagic+8], slotMagic[:])
	}
	if found, want := le.Uint32(b[offCRC:]), checksum(b); found != want {
		return fmt.Errorf("checksum: found %08x, expected %08x", found, want)
	}
	if id := UUID(b[slotUUID:]); id != sb.UUID {
		return fmt.Errorf("UUID: found %v, expected %v", id, sb.UUID)
	}
	if p := le.Uint64(b[slotPage:]); p != page {
		return fmt.Errorf("page number: found %d, expected %d", p, page)
	}
	if !isZero(b[offCRC+4:slotSequence]) || !isZero(b[slotReserved:slotH]) {
		return fmt.Errorf("reserved bytes are not zero")
	}
	for w := range 2 * bitmap.PlaneWords {
		s.img[w] = le.Uint64(b[slotH+8*w:])
	}
	if err := bitmap.Valid(sb.NrRegions, page, &s.img); err != nil {
		return err
	}
	if s.sequence = le.Uint64(b[slotSequence:]); s.sequence == 0 {
		return fmt.Errorf("sequence is 0")
	}
	return nil
}

// judge returns the slot of a page that wins: the valid one with the higher sequence, -1
// if the page is empty. A bad slot loses to a valid and to an empty one, as a torn write
// does; with two bad slots, or with two that claim the same sequence, nobody can tell.
func judge(page uint64, slots *[2]slot) (winner int, err error) {
	a, b := &slots[0], &slots[1]
	switch {
	case a.err != nil && b.err != nil:
		return -1, fmt.Errorf("%w: page %d: slot 0 at byte %d: %w; slot 1 at byte %d: %w", ErrDamaged, page,
			slotOffset(page, 0), a.err, slotOffset(page, 1), b.err)
	case a.valid() && b.valid() && a.sequence == b.sequence:
		return -1, fmt.Errorf("%w: page %d at byte %d: both slots have sequence %d", ErrDamaged, page,
			slotOffset(page, 0), a.sequence)
	case a.valid() && (!b.valid() || a.sequence > b.sequence):
		return 0, nil
	case b.valid():
		return 1, nil
	}
	return -1, nil
}

// newestKnown returns the slot of a page with the highest sequence up to newest, -1 if there
// is none.
func newestKnown(slots *[2]slot, newest uint64) int {
	known := func(i int) bool { return slots[i].valid() && slots[i].sequence <= newest }
	switch {
	case known(0) && (!known(1) || slots[0].sequence > slots[1].sequence):
		return 0
	case known(1):
		return 1
	}
	return -1
}

// walk reads the region map and calls visit for each page with a slot that is not empty.
// The slots are the same two structs every time.
func walk(dev Device, buf []byte, sb *Superblock, visit func(page uint64, slots *[2]slot) error) error {
	slots := new([2]slot)
	err := chunks(dev, buf, mapOffset, Size(sb.NrRegions), func(off int64, b []byte) error {
		for page := uint64(off-mapOffset) / slotPairBytes; len(b) > 0; page++ {
			if !isZero(b[:slotPairBytes]) {
				slots[0].decode(b[:BlockSize], sb, page)
				slots[1].decode(b[BlockSize:slotPairBytes], sb, page)
				if err := visit(page, slots); err != nil {
					return err
				}
			}
			b = b[slotPairBytes:]
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read region map: %w", err)
	}
	return nil
}

// mix is a page's part of the map sum: the sum, modulo 2^64, over all pages of mix(page,
// sequence of the winning slot). An empty page has no part. Part of the disk format.
func mix(page, sequence uint64) uint64 {
	if sequence == 0 {
		return 0
	}
	return scramble(scramble(page+1) ^ sequence)
}

// scramble is a bijection of 64-bit words in which each input bit changes about half of
// the output's (the finalizer of SplitMix64).
func scramble(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
