package bitmap

import "math/bits"

// State returns the state of a region. Any thread.
func (m *Map) State(region uint64) State {
	m.checkRange(region, region+1)
	st, _ := m.piece(region, region+1)
	return st
}

// Run returns the state of first and the end of its run: the regions of [first, returned)
// are in that state, and the returned region, if it is below end, is in another. The range
// must not be empty. Any thread. What other threads mark meanwhile may or may not be seen,
// each region by itself; a run is a hint where nothing is claimed.
func (m *Map) Run(first, end uint64) (State, uint64) {
	m.checkRange(first, end)
	st, next := m.piece(first, end)
	for next < end {
		s, n := m.piece(next, end)
		if s != st {
			break
		}
		next = n
	}
	return st, next
}

// NextUnhydrated returns the first region of [from, end) that is not hydrated. Any thread.
func (m *Map) NextUnhydrated(from, end uint64) (region uint64, ok bool) {
	return m.next(from, end, 1<<Source|1<<Zero)
}

// NextSource returns the first region of [from, end) that is in state Source. Any thread.
func (m *Map) NextSource(from, end uint64) (region uint64, ok bool) {
	return m.next(from, end, 1<<Source)
}

// NextZero returns the first region of [from, end) that is in state Zero. Any thread.
func (m *Map) NextZero(from, end uint64) (region uint64, ok bool) {
	return m.next(from, end, 1<<Zero)
}

// NextHydrated returns the first region of [from, end) that is hydrated. Any thread.
func (m *Map) NextHydrated(from, end uint64) (region uint64, ok bool) {
	return m.next(from, end, 1<<Hydrated)
}

// next returns the first region of [from, end) whose state's bit is in wanted, or end.
func (m *Map) next(from, end uint64, wanted uint8) (uint64, bool) {
	m.checkRange(from, end)
	for from < end {
		st, n := m.piece(from, end)
		if wanted>>st&1 != 0 {
			return from, true
		}
		from = n
	}
	return end, false
}

// piece returns the state of region r and the end of the stretch from r, at most to end,
// that is known to be in the same state from one look at one word or at one page's
// counters. Every reader of states goes through it; it holds the double look.
//
// H is loaded before Z. A region that was clear in H and then in Z was Source at the first
// load; one that was clear in H and then set in Z was Zero at some time in between, as a
// region that is hydrated is never marked zero. No state is returned that it did not have.
func (m *Map) piece(r, end uint64) (State, uint64) {
	page := r / RegionsPerPage
	full := uint32(regionsIn(m.nr, page))
	end = min(end, (page+1)*RegionsPerPage)
	h := m.marked[PlaneHydrated][page].Load()
	z := m.marked[PlaneZero][page].Load()
	switch {
	case h == full:
		return Hydrated, end
	case h == 0 && z == 0:
		return Source, end
	case h == 0 && z == full:
		return Zero, end
	}
	word := r % RegionsPerPage / 64
	hw := m.mem[page].load(PlaneHydrated, word)
	zw := m.mem[page].load(PlaneZero, word)
	if m.marked[PlaneHydrated][page].Load() == full {
		return Hydrated, end
	}
	if m.noSource(page) {
		zw = ^uint64(0)
	}
	st, same := classify(hw, zw, r%64)
	n := uint64(bits.TrailingZeros64(^(same >> (r % 64))))
	return st, min(end, r+n)
}

// classify returns the state of a bit of a word, and the word's bits that share it.
func classify(hw, zw, bit uint64) (st State, same uint64) {
	switch {
	case hw>>bit&1 != 0:
		return Hydrated, hw
	case zw>>bit&1 != 0:
		return Zero, zw &^ hw
	}
	return Source, ^(hw | zw)
}
