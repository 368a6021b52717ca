package metadata

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

// FuzzSuperblock: decode never panics, and what it accepts is what encode makes.
func FuzzSuperblock(f *testing.F) {
	sb := sample()
	sb.create()
	b := make([]byte, BlockSize)
	sb.encode(b, 0)
	f.Add(b, true)
	f.Add(b[:300], false)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		b := make([]byte, BlockSize)
		copy(b, data)
		if seal {
			reseal(func([]byte) {})(b)
		}
		var sb Superblock
		if sb.decode(b, 0) != nil || sb.FeatureCompat&^knownCompat != 0 || sb.FeatureROCompat != 0 {
			return
		}
		again := make([]byte, BlockSize)
		if sb.encode(again, 0); !bytes.Equal(b, again) {
			t.Errorf("decoded and encoded, it is another block: %+v", sb)
		}
	})
}

// FuzzSlot: likewise.
func FuzzSlot(f *testing.F) {
	sb := sample()
	sb.create()
	b := make([]byte, BlockSize)
	encodeSlot(b, &sb.UUID, 2, 7, image(60))
	f.Add(b, uint64(2), true)
	f.Add(b[:80], uint64(0), false)
	f.Fuzz(func(t *testing.T, data []byte, page uint64, seal bool) {
		b := make([]byte, BlockSize)
		copy(b, data)
		if seal {
			reseal(func([]byte) {})(b)
		}
		s := new(slot)
		s.decode(b, sb, page%testPages)
		if !s.valid() {
			return
		}
		again := make([]byte, BlockSize)
		if encodeSlot(again, &sb.UUID, page%testPages, s.sequence, &s.img); !bytes.Equal(b, again) {
			t.Errorf("decoded and encoded, it is another block: sequence %d", s.sequence)
		}
	})
}

// FuzzDevice overlays a good device with bytes at a block, sealed or not, and opens it.
// Open, Check and Dump never panic and come to the same verdict, nothing is written to
// what is refused, and what opens is without problems, or with those of one superblock
// copy, afterwards.
func FuzzDevice(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0}, uint8(0), uint16(100), true, true)
	f.Add([]byte{9, 9}, uint8(3), uint16(slotSequence), true, false)
	f.Add([]byte("UBLKCLMP"), uint8(6), uint16(0), false, true)
	blocks := []int64{copyOffset(0), copyOffset(1), slotOffset(0, 0), slotOffset(0, 1), slotOffset(1, 0),
		slotOffset(1, 1), slotOffset(2, 0), slotOffset(2, 1)}
	f.Fuzz(func(t *testing.T, data []byte, where uint8, at uint16, seal, clean bool) {
		d, s := create(t)
		mustCommit(t, s, 3, 0, 1)
		mustCommit(t, s, 4, 1)
		mustUpdate(t, s, func(sb *Superblock) { sb.Clean = clean })
		edit(t, d, blocks[int(where)%len(blocks)], func(b []byte) {
			copy(b[int(at)%BlockSize:], data)
			if seal {
				le.PutUint32(b[offCRC:], checksum(b))
			}
		})
		report, checked := Check(d)
		if err := errors.Join(Dump(d, io.Discard), DumpJSON(d, io.Discard)); checked == nil && err != nil {
			t.Errorf("dump: %v", err)
		}
		writes := d.Stats().Writes
		s, _, err := Open(d)
		if err == nil {
			nr := s.Superblock().NrRegions
			err = s.Load(func(page uint64, img *bitmap.Page) error { return bitmap.Valid(nr, page, img) })
		}
		if checked != nil || report.OK() != (err == nil) {
			t.Errorf("open says %v, check %v %+v", err, checked, report.Problems)
		}
		if err != nil && d.Stats().Writes != writes {
			t.Errorf("refused and written: %v", err)
		}
		after, checked := Check(d.CrashClone(fakedisk.KeepNone))
		if err == nil && (checked != nil || !after.OK() || len(after.Problems) > 1) {
			t.Errorf("after open: %v %+v", checked, after.Problems)
		}
	})
}
