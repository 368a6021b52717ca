package metadata

import "github.com/ublk-clone/ublk-clone/bitmap"

// slotTable says of each page which slot is current and which is written next, and has the pages of
// the commit under way.
type slotTable struct {
	committed uint64   // sequence of the last commit
	sum       uint64   // map sum of the current slots
	current   []uint64 // per page: sequence of the slot known to be flushed, 0 = none
	flags     []uint8  // per page: slotNext, slotUndecided, slotPending
	undecided uint64   // pages with slotUndecided
	pending   []uint64 // pages with slotPending; as large as the map, so that it never grows
}

// Flags of a page.
const (
	slotNext      = 1 << 0 // the slot to write: 0 or 1, never the current one
	slotUndecided = 1 << 1 // that slot was written and no flush of it has succeeded
	slotPending   = 1 << 2 // it was written, whole, since the last flush
)

func newSlotTable(committed, nrRegions uint64) slotTable {
	pages := bitmap.PagesFor(nrRegions)
	return slotTable{committed: committed, current: make([]uint64, pages), flags: make([]uint8, pages), pending: make([]uint64, 0, pages)}
}

func (t *slotTable) next(page uint64) int { return int(t.flags[page] & slotNext) }

func (t *slotTable) setNext(page uint64, slot int) {
	t.flags[page] = t.flags[page]&^slotNext | uint8(slot)
}

func (t *slotTable) setUndecided(page uint64) {
	if t.flags[page]&slotUndecided == 0 {
		t.flags[page] |= slotUndecided
		t.undecided++
	}
}

// written notes that the slot of a page was written, whole.
func (t *slotTable) written(page uint64) {
	if t.flags[page]&slotPending == 0 {
		t.flags[page] |= slotPending
		t.pending = append(t.pending, page)
	}
}

// commit makes the slots written current: they were flushed.
func (t *slotTable) commit() {
	t.committed++
	for _, page := range t.pending {
		t.sum += mix(page, t.committed) - mix(page, t.current[page])
		t.current[page] = t.committed
		t.flags[page] = t.flags[page]&slotNext ^ slotNext // the other one is next, the rest cleared
	}
	t.undecided -= uint64(len(t.pending))
	t.pending = t.pending[:0]
}

// abort gives up the commit that is under way. Its pages stay undecided: what is in the
// slot written is not known, and the next write of the page goes there again.
func (t *slotTable) abort() {
	for _, page := range t.pending {
		t.flags[page] &^= slotPending
	}
	t.pending = t.pending[:0]
}

// forget empties the tables.
func (t *slotTable) forget() {
	clear(t.current)
	clear(t.flags)
	t.undecided = 0
}
