package bitmap

import (
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"
)

// Delta is a sparse set of marks: those made since the last commit began. The core has
// two, active (marks go in) and frozen (being committed), and swaps them at the freeze.
//
// A page of the map has a slot in the Delta while one of its bits is in it. The slots are
// a pool, so a write never allocates (I9): the core asks Missing before it lets a
// write in, and commits when the pool runs low. Somebody else may add slots, and take
// them away from a set that is empty. The core's lock guards all of it.
type Delta struct {
	index []int32  // per page of the map: its slot + 1, or 0
	pool  []*Page  // slots; those in use are not all zero, the others are
	pages []uint64 // the page of each used slot, in order of first use
	count [nrPlanes]uint64

	zero   []uint64 // a bit a page: all of it was marked zero, and nothing of it before; takes no slot
	nrZero int      // of these bits
}

// NewDelta returns an empty Delta for a map of nrPages pages, with a pool of capacity
// slots. The index takes 4 bytes a page and the pool 4 KiB a slot, which is touched.
func NewDelta(nrPages uint64, capacity int) *Delta {
	d := &Delta{
		index: make([]int32, nrPages),
		zero:  make([]uint64, (nrPages+63)/64),
	}
	d.Reserve(capacity)
	return d
}

// Most makes room for so many slots, so that Add does not allocate.
func (d *Delta) Most(slots int) {
	d.pool = slices.Grow(d.pool, max(0, slots-len(d.pool)))
	d.pages = slices.Grow(d.pages, max(0, slots-len(d.pages)))
}

// AddSlots adds slots over memory that reads as zeros, no more than there is room for.
func (d *Delta) AddSlots(memory []Page) {
	if len(d.pool)+len(memory) > cap(d.pool) || len(d.pool)+len(memory) > cap(d.pages) {
		panic(fmt.Sprintf("bitmap: delta: no room for %d slots beside %d", len(memory), len(d.pool)))
	}
	for i := range memory {
		d.pool = append(d.pool, &memory[i])
	}
}

// DropSlots leaves so many of the slots, those that were there first. The set must be empty.
func (d *Delta) DropSlots(left int) {
	if d.Used() > 0 {
		panic(fmt.Sprintf("bitmap: delta: %d slots in use are to be dropped", d.Used()))
	}
	clear(d.pool[left:])
	d.pool = d.pool[:left]
}

// addZeroPage records that all n regions of a page were marked zero, of which nothing was marked
// before.
func (d *Delta) addZeroPage(page, n uint64) {
	d.zero[page/64] |= 1 << (page % 64)
	d.nrZero++
	d.count[PlaneZero] += n
}

// zeroPage reports whether addZeroPage has recorded a page.
func (d *Delta) zeroPage(page uint64) bool {
	return d.nrZero > 0 && d.zero[page/64]>>(page%64)&1 != 0
}

// Empty reports whether nothing is in the set.
func (d *Delta) Empty() bool { return d.Used() == 0 && d.nrZero == 0 }

// Touches reports whether something of a page is in the set.
func (d *Delta) Touches(page uint64) bool { return d.Page(page) != nil || d.zeroPage(page) }

// Each calls visit for each page of which something is in the set, until it fails. It must not
// change the set.
func (d *Delta) Each(visit func(page uint64) error) error {
	for _, page := range d.pages {
		if err := visit(page); err != nil {
			return err
		}
	}
	for w := 0; w < len(d.zero) && d.nrZero > 0; w++ {
		for left := d.zero[w]; left != 0; left &= left - 1 {
			page := uint64(w*64 + bits.TrailingZeros64(left))
			if d.index[page] != 0 {
				continue // visited
			}
			if err := visit(page); err != nil {
				return err
			}
		}
	}
	return nil
}

// Add records a mark of one region.
func (d *Delta) Add(p Plane, region uint64) {
	c := chunkAt(region, region+1)
	d.record(p, c.page, c.word, c.mask)
}

// record adds bits of one word. It panics if the pool is exhausted, as the mark would be
// lost for every commit to come.
func (d *Delta) record(p Plane, page, w, set uint64) {
	slot := d.index[page]
	if slot == 0 {
		slot = d.takeSlot(page)
	}
	word := d.pool[slot-1].word(p, w)
	d.count[p] += uint64(bits.OnesCount64(set &^ *word))
	*word |= set
}

// takeSlot takes the next free slot for a page.
func (d *Delta) takeSlot(page uint64) int32 {
	if len(d.pages) == len(d.pool) {
		panic(fmt.Sprintf("bitmap: delta: no slot for page %d, all %d in use", page, len(d.pool)))
	}
	d.pages = append(d.pages, page)
	d.index[page] = int32(len(d.pages))
	return d.index[page]
}

// Has reports whether a region is in the set.
func (d *Delta) Has(p Plane, region uint64) bool { return d.Any(p, region, region+1) }

// growFor makes room for another page, if that is what page is.
func (d *Delta) growFor(page uint64) {
	if d.index[page] == 0 && d.Used() == d.Cap() {
		d.Reserve(max(64, 2*d.Cap()))
	}
}

// Reserve makes the pool capacity slots large, if it is smaller. It allocates: not on a
// write's way.
func (d *Delta) Reserve(capacity int) {
	if capacity <= d.Cap() {
		return
	}
	memory := make([]Page, capacity-d.Cap())
	for i := range memory {
		atomic.StoreUint64(&memory[i][0], 0) // touches it: a mark must not have to wait for memory
	}
	d.Most(capacity)
	d.AddSlots(memory)
}

// Any reports whether any region of [first, end) is in the set.
func (d *Delta) Any(p Plane, first, end uint64) bool {
	if d.Empty() {
		return false
	}
	for first < end {
		if p == PlaneZero && d.zeroPage(PageOf(first)) {
			return true
		}
		pg := d.Page(PageOf(first))
		if pg == nil {
			first = (PageOf(first) + 1) * RegionsPerPage
			continue
		}
		c := chunkAt(first, end)
		if *pg.word(p, c.word)&c.mask != 0 {
			return true
		}
		first = c.next
	}
	return false
}

// Used returns how many slots are in use.
func (d *Delta) Used() int { return len(d.pages) }

// Cap returns how many slots there are.
func (d *Delta) Cap() int { return len(d.pool) }

// Count returns how many marks of a plane are in the set.
func (d *Delta) Count(p Plane) uint64 { return d.count[p] }

// Pages returns the pages that have a slot, in order of first use. The slice is the
// Delta's own and holds until the next change.
func (d *Delta) Pages() []uint64 { return d.pages }

// Page returns the marks in a page, or nil if there are none. Not to be changed.
func (d *Delta) Page(page uint64) *Page {
	if d.Used() == 0 {
		return nil
	}
	if slot := d.index[page]; slot != 0 {
		return d.pool[slot-1]
	}
	return nil
}

// Missing returns how many pages of the regions [first, end) have no slot yet: what the
// range can take from the pool at most. An empty range takes nothing.
func (d *Delta) Missing(first, end uint64) int {
	if first >= end {
		return 0
	}
	n := 0
	for page := PageOf(first); page <= PageOf(end-1); page++ {
		if d.index[page] == 0 {
			n++
		}
	}
	return n
}

// Drop gives the memory of an empty set up: nothing will be marked any more.
func (d *Delta) Drop() { d.index, d.pool, d.pages, d.zero = nil, nil, nil, nil }

// Reset empties the set. It costs what was used, not the capacity.
func (d *Delta) Reset() {
	for i, page := range d.pages {
		*d.pool[i] = Page{}
		d.index[page] = 0
	}
	d.pages = d.pages[:0]
	d.count = [nrPlanes]uint64{}
	if d.nrZero > 0 {
		clear(d.zero)
		d.nrZero = 0
	}
}
