package bitmap

import "testing"

// TestRangesOverPages: every mixture of pages without marks, with all but one and with all, in each
// plane, and ranges that begin and end next to their boundaries: each answer about them is the
// naive one.
func TestRangesOverPages(t *testing.T) {
	const pages, nr = 3, 3*RegionsPerPage - 7
	fills := []func(first, end uint64) (uint64, uint64){ // what is marked of a page
		func(first, _ uint64) (uint64, uint64) { return first, first },
		func(first, end uint64) (uint64, uint64) { return first, end },
		func(first, end uint64) (uint64, uint64) { return first + 1, end },
		func(first, end uint64) (uint64, uint64) { return first, end - 1 },
	}
	var edges []uint64
	for page := range uint64(pages + 1) {
		for _, at := range []uint64{0, 1, 2} {
			edges = append(edges, min(nr, max(page*RegionsPerPage+at, 1)-1))
		}
	}
	for _, p := range []Plane{PlaneZero, PlaneHydrated} {
		for mixture := range len(fills) * len(fills) * len(fills) {
			m, md := newMap(nr), &model{regions: make([]modelRegion, nr)}
			active := NewDelta(pages, pages)
			for page, left := uint64(0), mixture; page < pages; page, left = page+1, left/len(fills) {
				first, end := fills[left%len(fills)](page*RegionsPerPage, min(nr, (page+1)*RegionsPerPage))
				if got, want := m.Mark(p, first, end, active), md.mark(p, first, end); got != want {
					t.Fatalf("mixture %d: %d marked, expected %d", mixture, got, want)
				}
			}
			for _, first := range edges {
				for _, end := range edges {
					if first < end {
						compareAnswers(t, m, md, first, end)
					}
				}
			}
			if t.Failed() {
				t.Fatalf("plane %d, mixture %d", p, mixture)
			}
		}
	}
}

// compareAnswers is compareReads without what looks at all of the map.
func compareAnswers(t *testing.T, m *Map, md *model, first, end uint64) {
	t.Helper()
	st, next := m.Run(first, end)
	if wantSt, want := md.run(first, end); st != wantSt || next != want {
		t.Errorf("run [%d, %d): %v to %d, expected %v to %d", first, end, st, next, wantSt, want)
	}
	want, found := md.next(first, end, func(s State) bool { return s != Hydrated })
	if m.AllHydrated(first, end) == found {
		t.Errorf("all hydrated [%d, %d): %t", first, end, found)
	}
	if got, ok := m.NextUnhydrated(first, end); got != want || ok != found {
		t.Errorf("next unhydrated [%d, %d): %d %t, expected %d %t", first, end, got, ok, want, found)
	}
}
