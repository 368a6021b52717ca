package bitmap

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestDeltaOverPages compares a Delta with a naive set of marks: few marks in many pages, most of
// them beside a page's boundary, and questions about ranges that begin and end there, with pages
// without marks between them. The pool grows while it is in use, over the size at which it grows by
// itself.
func TestDeltaOverPages(t *testing.T) {
	const pages = 180
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 9))
		near := func() uint64 { // a boundary, or a region a few beside it
			at := rng.Uint64N(pages+1) * RegionsPerPage
			return min(pages*RegionsPerPage-1, max(at+rng.Uint64N(5), 2)-2)
		}
		d, marks := NewDelta(pages, 1), [nrPlanes]map[uint64]bool{{}, {}}
		var order []uint64
		for step := range 400 {
			p, region := Plane(rng.IntN(2)), near()
			d.growFor(PageOf(region))
			d.Add(p, region)
			marks[p][region] = true
			if !slices.Contains(order, PageOf(region)) {
				order = append(order, PageOf(region))
			}
			if rng.IntN(100) == 0 {
				d.Reserve(d.Cap() + rng.IntN(9))
			}
			if step == 200 && seed%2 == 0 {
				d.Reset()
				marks, order = [nrPlanes]map[uint64]bool{{}, {}}, nil
			}
			first := near()
			end := min(pages*RegionsPerPage, first+1+rng.Uint64N(6)*RegionsPerPage+rng.Uint64N(5))
			compareMarks(t, d, marks, first, end)
			if !slices.Equal(d.Pages(), order) {
				t.Fatalf("seed %d, step %d: pages %v, expected %v", seed, step, d.Pages(), order)
			}
		}
	}
}

func compareMarks(t *testing.T, d *Delta, marks [nrPlanes]map[uint64]bool, first, end uint64) {
	t.Helper()
	used := map[uint64]bool{}
	for p := range marks {
		found := false
		for region := range marks[p] {
			used[PageOf(region)] = true
			found = found || first <= region && region < end
			if !d.Has(Plane(p), region) || *d.Page(PageOf(region)).word(Plane(p), region%RegionsPerPage/64)>>(region%64)&1 == 0 {
				t.Fatalf("the mark of region %d, plane %d, is lost", region, p)
			}
		}
		if d.Any(Plane(p), first, end) != found {
			t.Fatalf("any of [%d, %d), plane %d: %t, expected %t", first, end, p, !found, found)
		}
		if d.Has(Plane(p), first) != marks[p][first] {
			t.Fatalf("has %d, plane %d: %t", first, p, !marks[p][first])
		}
		if d.Count(Plane(p)) != uint64(len(marks[p])) {
			t.Fatalf("%d marks of plane %d, expected %d", d.Count(Plane(p)), p, len(marks[p]))
		}
	}
	missing := 0
	for page := PageOf(first); page <= PageOf(end-1); page++ {
		if !used[page] {
			missing++
		}
		if (d.Page(page) != nil) != used[page] {
			t.Fatalf("page %d is used: %t", page, used[page])
		}
	}
	if got := d.Missing(first, end); got != missing {
		t.Fatalf("missing [%d, %d): %d, expected %d", first, end, got, missing)
	}
}
