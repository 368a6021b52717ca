package bitmap

import (
	"fmt"
	"math/bits"
	"sync/atomic"
)

// Geometry of a page. It is part of the metadata's disk format and does not change.
const (
	PageBytes      = 4096            // bytes of a page
	PageWords      = PageBytes / 8   // 64-bit words of a page
	PlaneWords     = 252             // words of a plane in a page; the rest is a slot's header on disk
	RegionsPerPage = PlaneWords * 64 // regions of a page
)

// State says where a region's bytes are.
type State uint8

// The states of a region, in the only order in which a region goes through them.
const (
	Source   State = iota // in the source
	Zero                  // nowhere: it reads as zeros
	Hydrated              // in the destination
)

// String returns the state's name in lower case.
func (s State) String() string {
	switch s {
	case Source:
		return "source"
	case Zero:
		return "zero"
	case Hydrated:
		return "hydrated"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Plane is one of the two bitsets.
type Plane uint8

// The planes.
const (
	PlaneZero Plane = iota
	PlaneHydrated
	nrPlanes
)

// base returns the plane's first word in a page.
func (p Plane) base() uint64 {
	if p == PlaneHydrated {
		return 0
	}
	return PlaneWords
}

// Page is the image of one page: words 0..251 H, 252..503 Z, 504..511 zero.
type Page [PageWords]uint64

// word returns word w of a plane.
func (pg *Page) word(p Plane, w uint64) *uint64 { return &pg[p.base()+w] }

// load loads a word of a plane that others may be setting bits in. The memory must be one that may
// be touched.
func (pg *Page) load(p Plane, w uint64) uint64 { return atomic.LoadUint64(pg.word(p, w)) }

// fillZeros makes the memory of a page of n regions say that none of them is in state Source.
func (pg *Page) fillZeros(n uint64) {
	for w := range uint64(PlaneWords) {
		atomic.StoreUint64(pg.word(PlaneZero, w), maskBelow(n, w))
	}
}

// Counts returns how many regions the image has in H, and how many in Z and not in H.
func (pg *Page) Counts() (hydrated, zero uint64) {
	for w := range PlaneWords {
		h, z := pg[w], pg[PlaneWords+w]
		hydrated += uint64(bits.OnesCount64(h))
		zero += uint64(bits.OnesCount64(z &^ h))
	}
	return hydrated, zero
}

// PagesFor returns the number of pages that nrRegions regions need.
func PagesFor(nrRegions uint64) uint64 {
	n := nrRegions / RegionsPerPage
	if nrRegions%RegionsPerPage != 0 {
		n++
	}
	return n
}

// PageOf returns the page of a region.
func PageOf(region uint64) uint64 { return region / RegionsPerPage }

// regionsIn returns how many of nrRegions regions lie in a page.
func regionsIn(nrRegions, page uint64) uint64 {
	first := page * RegionsPerPage
	if first >= nrRegions {
		return 0
	}
	return min(RegionsPerPage, nrRegions-first)
}

// Valid reports as an error what cannot be in the image of a page of a map of nrRegions
// regions: a page number or a bit beyond the last region, or a word that is not used.
func Valid(nrRegions, page uint64, img *Page) error {
	n := regionsIn(nrRegions, page)
	if n == 0 {
		return fmt.Errorf("page %d: beyond the last of %d pages", page, PagesFor(nrRegions))
	}
	for w := uint64(0); w < PlaneWords; w++ {
		if beyond := ^maskBelow(n, w); (img[w]|img[PlaneWords+w])&beyond != 0 {
			return fmt.Errorf("page %d word %d: bits beyond the last of %d regions", page, w, nrRegions)
		}
	}
	for w := 2 * PlaneWords; w < PageWords; w++ {
		if img[w] != 0 {
			return fmt.Errorf("page %d word %d: not zero", page, w)
		}
	}
	return nil
}

// maskBelow returns the bits of word w that stand for the first n regions of a page.
func maskBelow(n, w uint64) uint64 {
	switch {
	case n >= (w+1)*64:
		return ^uint64(0)
	case n <= w*64:
		return 0
	}
	return 1<<(n-w*64) - 1
}

// chunk is the part of a range of regions that lies in one word of one page.
type chunk struct {
	page, word, mask uint64
	next             uint64 // the region after the part
}

// chunkAt returns the first chunk of [first, end), which must not be empty.
func chunkAt(first, end uint64) chunk {
	page, bit := first/RegionsPerPage, first%RegionsPerPage
	n := min(64-bit%64, end-first)
	mask := ^uint64(0) >> (64 - n) << (bit % 64)
	return chunk{page: page, word: bit / 64, mask: mask, next: first + n}
}
