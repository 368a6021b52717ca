package bitmap

import (
	"fmt"
	"sync/atomic"
)

// tally says how much is marked: of each page in each plane, and of the whole map. Whoever marks
// sees to it, in the order that the package comment gives; anybody may look, at any time. What a
// page's counters say decides whether its memory is looked at.
type tally struct {
	nr uint64

	// marked counts the set bits of each page of each plane: 0 = none, never look at
	// the memory; regionsIn(page) = all, in H never look at the memory again.
	marked [nrPlanes][]atomic.Uint32

	hydrated atomic.Uint64
	zero     atomic.Int64 // Z and not H
}

func (t *tally) init(nrRegions uint64) {
	t.nr = nrRegions
	for p := range t.marked {
		t.marked[p] = make([]atomic.Uint32, PagesFor(nrRegions))
	}
}

// NrRegions returns the number of regions of the map.
func (t *tally) NrRegions() uint64 { return t.nr }

// NrPages returns the number of pages of the map.
func (t *tally) NrPages() uint64 { return uint64(len(t.marked[0])) }

// NrHydrated returns how many regions are hydrated. Any thread.
func (t *tally) NrHydrated() uint64 { return t.hydrated.Load() }

// NrZero returns how many regions are zero and not hydrated. Any thread.
func (t *tally) NrZero() uint64 { return uint64(t.zero.Load()) }

// Used says whether any region of the page is zero or hydrated.
func (t *tally) Used(page uint64) bool {
	return t.marked[PlaneHydrated][page].Load() != 0 || t.marked[PlaneZero][page].Load() != 0
}

// Full reports whether every region of the page is hydrated. Any thread.
func (t *tally) Full(page uint64) bool {
	return uint64(t.marked[PlaneHydrated][page].Load()) == regionsIn(t.nr, page)
}

// AllZero reports whether every region of the page is zero and not hydrated: its memory is not
// looked at. Any thread.
func (t *tally) AllZero(page uint64) bool {
	return t.marked[PlaneHydrated][page].Load() == 0 && t.noSource(page)
}

// noSource reports whether no region of the page is in state Source, for having been marked zero:
// then the Z plane of its memory is not looked at. It stays so.
func (t *tally) noSource(page uint64) bool {
	return uint64(t.marked[PlaneZero][page].Load()) == regionsIn(t.nr, page)
}

// countFull counts a page, of which nothing was marked, as hydrated throughout.
func (t *tally) countFull(page uint64) {
	n := regionsIn(t.nr, page)
	t.hydrated.Add(n)
	t.marked[PlaneHydrated][page].Store(uint32(n))
}

// countZero counts a page, of which nothing was marked, as zero throughout.
func (t *tally) countZero(page uint64) {
	n := regionsIn(t.nr, page)
	t.zero.Add(int64(n))
	t.marked[PlaneZero][page].Store(uint32(n))
}

// FullImage reports whether an image of a page has every region hydrated.
func (t *tally) FullImage(page uint64, img *Page) bool {
	hydrated, _ := img.Counts()
	return hydrated == regionsIn(t.nr, page)
}

// zeroImage reports whether an image of a page has every region zero and none hydrated.
func (t *tally) zeroImage(page uint64, img *Page) bool {
	hydrated, zero := img.Counts()
	return hydrated == 0 && zero == regionsIn(t.nr, page)
}

// checkRange panics unless [first, end) lies in the map: a caller that computes regions
// beyond the device would otherwise corrupt the map silently.
func (t *tally) checkRange(first, end uint64) {
	if end > t.nr || first > end {
		panicRange(first, end, t.nr)
	}
}

func panicRange(first, end, nr uint64) {
	panic(fmt.Sprintf("bitmap: regions [%d, %d) outside a map of %d", first, end, nr))
}

// zeroBits is a bit a page that says that no region of it is in state Source (Map.KeepZeros); nil:
// there are none.
type zeroBits []atomic.Uint64

func (z zeroBits) has(page uint64) bool { return z != nil && z[page/64].Load()>>(page%64)&1 != 0 }

func (z zeroBits) set(page uint64) { z[page/64].Or(1 << (page % 64)) }
