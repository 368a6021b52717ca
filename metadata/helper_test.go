package metadata

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

// testPages is the size of the map of most tests, in pages; its last page is ragged.
const testPages = 3

// sample returns a superblock with every field that a caller sets different from zero, for
// a device of testPages pages of regions of 4 KiB.
func sample() *Superblock {
	sb := &Superblock{
		UUID:      UUID{0x3f, 0x1c, 0x9a, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13},
		CreatedNs: 1_700_000_000_123_456_789,
		State:     State{Complete: true, DestFlushFailed: true, Mode: ModeReadOnly, Session: 0x0102030405060708},
		Host:      Host{MachineID: UUID{0xaa, 15: 0xbb}, BootID: UUID{0xcc, 15: 0xdd}},
		Geometry:  Geometry{RegionSize: 4096, DeviceSize: (testPages*bitmap.RegionsPerPage-100)*4096 - 512, LogicalBlockSize: 512},
		Source: Identity{Kind: KindBlock, Size: 1 << 40, ID: "naa.5000c500a1b2c3d4", ModTimeNs: -5,
			Sample: Hash{1, 2, 31: 3}, Path: "/dev/disk/by-id/source"},
		Dest: Identity{Kind: KindFile, Size: 1<<40 + 512, ID: "8f0c5d:1234", Path: strings.Repeat("p", MaxPathBytes)},
		Settings: Settings{Paused: true, ReadThrough: true, DiscardPassdown: true, Rate: 200 << 20, MinRate: 1 << 20,
			Threshold: 256, Batch: 128, Retries: 5},
		Counters: Counters{1, 2, 3, 4, 5, 6},
	}
	return sb
}

func newDisk() *fakedisk.Disk { return fakedisk.New(Size(testPages*bitmap.RegionsPerPage), 1) }

// create makes metadata on a new disk and clears the clean flag, as a start does.
func create(t *testing.T) (*fakedisk.Disk, *Store) {
	t.Helper()
	d := newDisk()
	s, err := Create(d, sample(), CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean, sb.Complete = false, false })
	return d, s
}

func mustUpdate(t *testing.T, s *Store, change func(*Superblock)) {
	t.Helper()
	if err := s.Update(func(sb *Superblock) error { change(sb); return nil }); err != nil {
		t.Fatal(err)
	}
}

// image returns a page image with the first n regions in H and the n after them in Z.
func image(n uint64) *bitmap.Page {
	var img bitmap.Page
	for r := range n {
		img[r/64] |= 1 << (r % 64)
		img[bitmap.PlaneWords+(r+n)/64] |= 1 << ((r + n) % 64)
	}
	return &img
}

// commit writes image(n) of the pages and flushes.
func commit(s *Store, n uint64, pages ...uint64) error {
	for _, p := range pages {
		if err := s.WritePage(p, image(n)); err != nil {
			return err
		}
	}
	return s.Flush()
}

func mustCommit(t *testing.T, s *Store, n uint64, pages ...uint64) {
	t.Helper()
	if err := commit(s, n, pages...); err != nil {
		t.Fatal(err)
	}
}

// pooled is a fake disk whose stores share one buffer, as the crash tests open many
// thousands and use one at a time. It starts dirty: no store may rely on zeros in it.
type pooled struct{ *fakedisk.Disk }

var pool = bytes.Repeat([]byte{0xee}, scratchBytes)

func (pooled) AllocBuffer(int) []byte { return pool }

// open opens and loads. The returned levels say, per page, which image(n) it holds.
func open(dev Device) (*Store, [testPages]uint64, error) {
	var levels [testPages]uint64
	if d, ok := dev.(*fakedisk.Disk); ok {
		dev = pooled{d}
	}
	s, _, err := Open(dev)
	if err != nil {
		return nil, levels, err
	}
	err = s.Load(func(page uint64, img *bitmap.Page) error {
		h, _ := img.Counts()
		if *img != *image(h) {
			return errors.New("an image that nobody wrote")
		}
		levels[page] = h
		return nil
	})
	return s, levels, err
}

func mustOpen(t *testing.T, dev Device) (*Store, [testPages]uint64) {
	t.Helper()
	s, levels, err := open(dev)
	if err != nil {
		t.Fatal(err)
	}
	return s, levels
}

// expectLevels opens the device and compares what the pages hold.
func expectLevels(t *testing.T, dev Device, want ...uint64) *Store {
	t.Helper()
	s, levels := mustOpen(t, dev)
	if levels != [testPages]uint64(want) {
		t.Fatalf("pages hold %v, expected %v", levels, want)
	}
	return s
}

// edit changes one block of a disk, durably.
func edit(t *testing.T, d *fakedisk.Disk, off int64, change func(b []byte)) {
	t.Helper()
	b := make([]byte, BlockSize)
	if err := d.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	change(b)
	if err := errors.Join(d.WriteAt(b, off), d.Flush()); err != nil {
		t.Fatal(err)
	}
}

func flip(i int) func([]byte) { return func(b []byte) { b[i] ^= 0x40 } }

func zero(b []byte) { clear(b) }

// reseal gives a block that was changed a right checksum.
func reseal(change func([]byte)) func([]byte) {
	return func(b []byte) {
		change(b)
		le.PutUint32(b[offCRC:], checksum(b))
	}
}

// maxSubsets bounds how many random crashes are tried at one step. Up to 10 unflushed
// sectors all subsets are tried; beyond that none, all, each of the blocks up to the first
// slot alone, and random ones, by the seed of the step.
const maxSubsets = 1 << 9

// crashes calls visit with the disk after each possible power loss at this moment.
func crashes(d *fakedisk.Disk, visit func(after *fakedisk.Disk, keep string)) {
	unflushed := d.Unflushed()
	if n := len(unflushed); n <= 10 && allSingle(unflushed) {
		for set := range 1 << n {
			i := 0
			after := d.CrashClone(func(fakedisk.Unflushed) int { i++; return set >> (i - 1) & 1 })
			visit(after, "subset "+subset(set, n))
		}
		return
	}
	visit(d.CrashClone(fakedisk.KeepNone), "none")
	visit(d.CrashClone(fakedisk.KeepAll), "all")
	for _, first := range unflushed {
		if off := first.Sector * fakedisk.SectorBytes; off%BlockSize == 0 && off <= slotOffset(0, 0) {
			visit(d.CrashClone(func(u fakedisk.Unflushed) int {
				if u.Sector*fakedisk.SectorBytes/BlockSize != off/BlockSize {
					return 0
				}
				return u.Versions
			}), "one block alone")
		}
	}
	rng := rand.New(rand.NewPCG(uint64(len(unflushed)), 4))
	for range maxSubsets {
		visit(d.CrashClone(fakedisk.KeepRandom(rng)), "random")
	}
}

func allSingle(list []fakedisk.Unflushed) bool {
	for _, u := range list {
		if u.Versions > 1 {
			return false
		}
	}
	return true
}

// subset prints which of n unflushed sectors were kept, lowest sector first.
func subset(set, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = '0' + byte(set>>i&1)
	}
	return string(b)
}

// fillDistinct gives every leaf of v another value that is not zero.
func fillDistinct(v reflect.Value, next *uint64) {
	*next++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fillDistinct(v.Field(i), next)
		}
	case reflect.Array:
		for i := range v.Len() {
			if v.Index(i).Kind() == reflect.Struct {
				fillDistinct(v.Index(i), next)
				continue
			}
			v.Index(i).SetUint(*next + uint64(i)&0x7f)
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(strings.Repeat(string(rune('a'+*next%26)), int(*next%100)+1))
	case reflect.Int64:
		v.SetInt(int64(*next * 0x0101010101))
	case reflect.Uint32:
		v.SetUint(*next * 0x010101)
	case reflect.Uint64:
		v.SetUint(*next * 0x0101010101)
	default:
		panic("no value for " + v.Kind().String())
	}
}
