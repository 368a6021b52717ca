package bitmap

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// kept is what outlives a map's process.
type kept struct {
	mem  []Page
	bits []atomic.Uint64
}

func keep(nr uint64) kept {
	return kept{make([]Page, PagesFor(nr)), make([]atomic.Uint64, PagesFor(nr)/64+1)}
}

func (k kept) open(nr uint64) *Map {
	m := New(nr, k.mem)
	m.KeepZeros(k.bits)
	return m
}

// sameStates compares two maps region by region.
func sameStates(t *testing.T, what string, got, want *Map) {
	t.Helper()
	for r := range want.NrRegions() {
		if g, w := got.State(r), want.State(r); g != w {
			t.Fatalf("%s: region %d is %v, not %v", what, r, g, w)
		}
	}
	if got.NrZero() != want.NrZero() || got.NrHydrated() != want.NrHydrated() {
		t.Errorf("%s: counts %d %d, not %d %d", what, got.NrZero(), got.NrHydrated(), want.NrZero(), want.NrHydrated())
	}
}

// TestZeroPages: pages that are marked zero as a whole take neither memory nor a slot, are
// committed as what they are, and are found again by the next process, whatever of them is durable.
func TestZeroPages(t *testing.T) {
	const nr = 3*RegionsPerPage + 100 // the last page is a short one
	k := keep(nr)
	m, plain := k.open(nr), newMap(nr)
	active, ignored := NewDelta(4, 4), NewDelta(4, 4)
	both := func(p Plane, first, end uint64) {
		t.Helper()
		if n, want := m.Mark(p, first, end, active), plain.Mark(p, first, end, ignored); n != want {
			t.Errorf("%d regions newly marked, not %d", n, want)
		}
	}
	both(PlaneZero, 10, nr) // page 0 in part
	for page := uint64(1); page < 4; page++ {
		if k.mem[page] != (Page{}) || active.Page(page) != nil || !active.Touches(page) || !m.AllZero(page) {
			t.Errorf("page %d has memory or a slot, or is not zero throughout", page)
		}
	}
	if active.Used() != 1 || active.Count(PlaneZero) != nr-10 || active.Empty() {
		t.Errorf("%d slots, %d marks", active.Used(), active.Count(PlaneZero))
	}
	sameStates(t, "marked", m, plain)
	var img Page
	if m.DurableImage(1, active, &img); img != (Page{}) {
		t.Error("what is not committed is in the durable image")
	}
	both(PlaneHydrated, RegionsPerPage+5, RegionsPerPage+7)
	sameStates(t, "hydrated in part", m, plain)

	next := func(what string, durable map[uint64]*Page, uncommitted uint64) {
		t.Helper()
		again := kept{append([]Page(nil), k.mem...), make([]atomic.Uint64, len(k.bits))}
		for w := range k.bits {
			again.bits[w].Store(k.bits[w].Load())
		}
		n, d := again.open(nr), NewDelta(4, 0)
		for page := range n.NrPages() {
			var err error
			switch {
			case again.mem[page] != Page{}:
				err = n.Recover(page, durable[page], d)
			default:
				err = n.RecoverZero(page, durable[page], d)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		sameStates(t, what, n, plain)
		if got := d.Count(PlaneZero); got != uncommitted {
			t.Errorf("%s: %d zero marks are not committed, expected %d", what, got, uncommitted)
		}
	}
	next("nothing was committed", nil, nr-10)

	frozen := active
	active = NewDelta(4, 4)
	durable := map[uint64]*Page{}
	var order []uint64
	_ = frozen.Each(func(page uint64) error {
		order = append(order, page)
		durable[page] = new(Page)
		m.DurableImage(page, active, durable[page])
		return nil
	})
	if len(order) != 4 {
		t.Errorf("pages %v are committed", order)
	}
	loaded := newMap(nr)
	for page, img := range durable {
		if err := loaded.Load(page, img); err != nil {
			t.Fatal(err)
		}
	}
	sameStates(t, "committed", loaded, plain)
	next("all was committed", durable, 0)
	half := *durable[2]
	half[PlaneWords] = 0
	next("page 2 in part", map[uint64]*Page{0: durable[0], 1: durable[1], 2: &half, 3: durable[3]}, 64)

	if frozen.Reset(); !frozen.Empty() || frozen.Touches(2) {
		t.Error("not empty after a reset")
	}
	both(PlaneHydrated, 0, nr) // all of it fills up
	sameStates(t, "hydrated", m, plain)
	for page := range m.NrPages() {
		if !m.Full(page) {
			t.Errorf("page %d is not full", page)
		}
	}
}

// TestReleaseZeroUnderReaders: a page fills up with zeros bit by bit, is released, and is used
// again. No reader sees a region go back to a state that it had before.
func TestReleaseZeroUnderReaders(t *testing.T) {
	const pages, readers = 12, 3
	const nr = pages * RegionsPerPage
	k := keep(nr)
	m, d := k.open(nr), NewDelta(pages, pages)
	var hydrated, zero atomic.Uint64 // regions below are marked
	var done atomic.Bool
	errs := make(chan string, readers)
	for seed := range uint64(readers) {
		go func() { errs <- readStates(m, rand.New(rand.NewPCG(seed, 3)), &hydrated, &zero, &done) }()
	}
	for page := range uint64(pages) {
		first, end := page*RegionsPerPage, (page+1)*RegionsPerPage
		for r := first; r < end; r += 48 {
			m.Mark(PlaneZero, r, min(r+48, end), d)
			zero.Store(min(r+48, end))
		}
		d.Reset() // committed
		if !m.ReleaseZero(page, zeroPage) {
			t.Errorf("page %d is not zero throughout", page)
		}
		for r := first; r < end; r += 48 {
			m.Mark(PlaneHydrated, r, min(r+48, end), d)
			hydrated.Store(min(r+48, end))
			if m.ReleaseZero(page, zeroPage) {
				t.Errorf("page %d was released while it was hydrated in part", page)
			}
		}
		d.Reset()
		m.Release(page, zeroPage)
	}
	done.Store(true)
	for range readers {
		if e := <-errs; e != "" {
			t.Error(e)
		}
	}
}

// TestReleaseZeroWhileLookedAt is its narrow case: a reader that loads the counter before, and the
// word after, the last region of the page is marked zero and the page released.
func TestReleaseZeroWhileLookedAt(t *testing.T) {
	releaseWhileLookedAt(t, PlaneZero, (*Map).ReleaseZero, inState(Zero), func(m *Map) string {
		if r, ok := m.NextSource(0, 63); ok {
			return "source at region " + m.State(r).String()
		}
		return ""
	})
}
