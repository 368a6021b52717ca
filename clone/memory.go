package clone

import (
	"sync"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// mapMemory takes the memory of the map's pages before they are marked, so that a mark cannot fail,
// and gives it back when nobody can look at it any more (I9).
type mapMemory struct {
	*view
	release func(page uint64, memory *bitmap.Page) // Config.Release, or nil
	touch   func(page uint64) error                // Config.Touch, or nil
	touched []atomic.Bool                          // by page of the map
	// touching is held while a page's memory is taken or given back, and touched set; a leaf.
	touching sync.Mutex
}

// zeroed says whether a page is marked zero as a whole, or is so: that needs no memory.
func (m *mapMemory) zeroed(s span, page uint64) bool {
	first := page * bitmap.RegionsPerPage
	end := min(first+bitmap.RegionsPerPage, m.geo.nr)
	return s.zero <= first && end <= s.zeroEnd && (m.regions.AllZero(page) || m.regions.KeepsZeros() && !m.regions.Used(page))
}

// lacks says whether the marks of a claim of s need memory of a page that is not there.
func (m *mapMemory) lacks(s span, page uint64) bool {
	return m.touch != nil && !m.touched[page].Load() && !m.regions.Full(page) && !m.zeroed(s, page)
}

// take sees to it that the marks of a claim of s need no memory that is not there (I9).
func (m *mapMemory) take(s span) error {
	for page := bitmap.PageOf(s.first); page <= bitmap.PageOf(s.end-1); page++ {
		if !m.lacks(s, page) {
			continue
		}
		if err := m.takePage(page); err != nil {
			return err
		}
	}
	return nil
}

// takePage: between the taking and the note of it nobody gives the memory back.
func (m *mapMemory) takePage(page uint64) error {
	m.touching.Lock()
	defer m.touching.Unlock()
	err := m.touch(page)
	if err == nil {
		m.touched[page].Store(true)
	}
	return err
}

// give gives back the memory of a page that is durably hydrated, or zero, throughout. Core.mu must
// be held.
func (m *mapMemory) give(page uint64, claims *claimTable) {
	if !m.regions.Release(page, func(memory *bitmap.Page) { m.release(page, memory) }) {
		m.giveZero(page, claims)
	}
}

// giveZero gives back the memory of a page that is durably zero throughout, unless a claim is open
// there: its end may mark the page. Whoever claims next takes the memory again (claimFor). Core.mu
// must be held.
func (m *mapMemory) giveZero(page uint64, claims *claimTable) {
	first := page * bitmap.RegionsPerPage
	m.touching.Lock()
	defer m.touching.Unlock()
	if !m.touched[page].Load() || claims.find(first, first+bitmap.RegionsPerPage) != nil {
		return
	}
	if m.regions.ReleaseZero(page, func(memory *bitmap.Page) { m.release(page, memory) }) {
		m.touched[page].Store(false)
	}
}
