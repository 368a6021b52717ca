package bitmap

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRecover kills a process at a random moment between marks and commits: the next one finds
// every mark of the live map, and knows exactly which of them are durable.
func TestRecover(t *testing.T) {
	const pages, nr = 5, 4*RegionsPerPage + 700
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 5))
		mem := make([]Page, pages)
		durable := map[uint64]*Page{}
		m, active := New(nr, mem), NewDelta(pages, pages)
		for range rng.IntN(40) {
			first := rng.Uint64N(nr)
			m.Mark(Plane(rng.IntN(2)), first, min(nr, first+1+rng.Uint64N(9000)), active)
			if rng.IntN(5) == 0 {
				commit(m, active, durable)
			}
		}
		before := slices.Clone(mem)
		r, uncommitted := recoverMap(t, nr, slices.Clone(mem), durable)
		for page := range uint64(pages) {
			var want, got Page
			m.DurableImage(page, active, &want)
			r.DurableImage(page, uncommitted, &got)
			if want != got {
				t.Fatalf("seed %d: page %d: another durable image", seed, page)
			}
		}
		for region := uint64(0); region < nr; region += 1 + rng.Uint64N(50) {
			if a, b := m.State(region), r.State(region); a != b {
				t.Fatalf("seed %d: region %d was %v, is %v", seed, region, a, b)
			}
		}
		if m.NrHydrated() != r.NrHydrated() || m.NrZero() != r.NrZero() {
			t.Fatalf("seed %d: %d hydrated and %d zero were, %d and %d are", seed, m.NrHydrated(), m.NrZero(), r.NrHydrated(), r.NrZero())
		}
		if a, b := active.Count(PlaneHydrated), uncommitted.Count(PlaneHydrated); a != b {
			t.Fatalf("seed %d: %d marks were not committed, %d are", seed, a, b)
		}
		for range 3 { // the next one dies too, and the one after it
			uncommitted.Reserve(pages)
			first := rng.Uint64N(nr)
			r.Mark(Plane(rng.IntN(2)), first, min(nr, first+1+rng.Uint64N(9000)), uncommitted)
			if rng.IntN(2) == 0 {
				commit(r, uncommitted, durable)
			}
			h, z := counts(r)
			if h != r.NrHydrated() || z != r.NrZero() {
				t.Fatalf("seed %d: %d hydrated and %d zero counted, %d and %d told", seed, h, z, r.NrHydrated(), r.NrZero())
			}
			r, uncommitted = recoverMap(t, nr, r.mem, durable)
			if h != r.NrHydrated() || z != r.NrZero() {
				t.Fatalf("seed %d: %d hydrated and %d zero counted, %d and %d told after recovery", seed, h, z, r.NrHydrated(), r.NrZero())
			}
		}
		if !slices.Equal(before, mem) {
			t.Fatalf("seed %d: the dead process's memory has changed", seed)
		}
	}
}

func counts(m *Map) (hydrated, zero uint64) {
	for region := range m.NrRegions() {
		switch m.State(region) {
		case Hydrated:
			hydrated++
		case Zero:
			zero++
		}
	}
	return hydrated, zero
}

// commit makes what is in active durable.
func commit(m *Map, active *Delta, durable map[uint64]*Page) {
	for _, page := range active.Pages() {
		img := new(Page)
		m.DurableImage(page, NewDelta(m.NrPages(), 0), img)
		durable[page] = img
	}
	active.Reset()
}

// recoverMap opens what a process has left: page by page, what lives in memory with Recover, the
// rest with Load.
func recoverMap(t *testing.T, nr uint64, mem []Page, durable map[uint64]*Page) (*Map, *Delta) {
	t.Helper()
	m, d := New(nr, mem), NewDelta(uint64(len(mem)), 1)
	for page := range uint64(len(mem)) {
		img := durable[page]
		switch {
		case mem[page] != Page{}:
			if err := m.Recover(page, img, d); err != nil {
				t.Fatal(err)
			}
		case img != nil:
			if err := m.Load(page, img); err != nil {
				t.Fatal(err)
			}
		}
	}
	return m, d
}

// TestRecoverReleasedPage: the memory of a page that is durably hydrated throughout may be gone.
func TestRecoverReleasedPage(t *testing.T) {
	const pages, nr = 2, 2 * RegionsPerPage
	mem, durable := make([]Page, pages), map[uint64]*Page{}
	m, active := New(nr, mem), NewDelta(pages, pages)
	m.Mark(PlaneHydrated, 0, RegionsPerPage+9, active)
	commit(m, active, durable)
	m.Release(0, zeroPage)
	m.Mark(PlaneZero, RegionsPerPage+9, RegionsPerPage+12, active)
	r, uncommitted := recoverMap(t, nr, mem, durable)
	if r.NrHydrated() != RegionsPerPage+9 || r.NrZero() != 3 || uncommitted.Count(PlaneZero) != 3 || uncommitted.Used() != 1 {
		t.Errorf("%d hydrated, %d zero, %d zero not committed in %d pages", r.NrHydrated(), r.NrZero(), uncommitted.Count(PlaneZero), uncommitted.Used())
	}
}

// TestRecoverRefusesWhatCannotBe: bits beyond the last region, in memory or in the metadata.
func TestRecoverRefusesWhatCannotBe(t *testing.T) {
	var bad Page
	bad[2] = 1 << 60
	m := newMap(130)
	if err := m.Recover(0, &bad, NewDelta(1, 1)); err == nil {
		t.Error("metadata with a bit beyond the last region are taken")
	}
	m.mem[0] = bad
	if err := m.Recover(0, nil, NewDelta(1, 1)); err == nil || m.NrHydrated() != 0 {
		t.Errorf("memory with a bit beyond the last region: %v, %d regions", err, m.NrHydrated())
	}
}

// TestRecoverAlone: what a process has left is enough when nobody can say what is durable; full
// pages are told apart.
func TestRecoverAlone(t *testing.T) {
	const pages, nr = 3, 2*RegionsPerPage + 9
	mem := make([]Page, pages)
	m, d := New(nr, mem), NewDelta(pages, pages)
	m.Mark(PlaneHydrated, 0, RegionsPerPage, d)
	m.Mark(PlaneZero, RegionsPerPage+3, RegionsPerPage+7, d)
	m.Mark(PlaneHydrated, RegionsPerPage+5, RegionsPerPage+6, d)
	d.Reset()
	m.Release(0, zeroPage)
	r := New(nr, mem)
	r.LoadFull(0)
	if err := r.Recover(1, nil, nil); err != nil {
		t.Fatal(err)
	}
	for region := range uint64(nr) {
		if a, b := m.State(region), r.State(region); a != b {
			t.Fatalf("region %d was %v, is %v", region, a, b)
		}
	}
	if r.NrHydrated() != RegionsPerPage+1 || r.NrZero() != 3 {
		t.Errorf("%d hydrated, %d zero", r.NrHydrated(), r.NrZero())
	}
	mustPanic(t, func() { r.LoadFull(1) })
}

// TestHolds: an image is in the map if each mark of it is, a Z perhaps as H.
func TestHolds(t *testing.T) {
	const nr = 2 * RegionsPerPage
	m, d := newMap(nr), NewDelta(2, 2)
	m.Mark(PlaneHydrated, 70, 72, d)
	m.Mark(PlaneZero, 72, 74, d)
	m.LoadFull(1)
	image := func(p Plane, bit uint64) *Page {
		img := new(Page)
		*img.word(p, bit/64) = 1 << (bit % 64)
		return img
	}
	for _, c := range []struct {
		plane  Plane
		region uint64
		want   bool
	}{
		{PlaneHydrated, 71, true}, {PlaneZero, 71, true}, {PlaneZero, 73, true},
		{PlaneHydrated, 73, false}, {PlaneHydrated, 69, false}, {PlaneZero, 74, false}, {PlaneHydrated, 3000, false},
	} {
		if got := m.Holds(0, image(c.plane, c.region)); got != c.want {
			t.Errorf("plane %d region %d: %t", c.plane, c.region, got)
		}
	}
	if !m.Holds(1, image(PlaneHydrated, 5)) || !m.Holds(0, &Page{}) {
		t.Error("a full page does not hold a mark, or another no marks")
	}
	if newMap(nr).Holds(0, image(PlaneZero, 5)) {
		t.Error("an empty page holds a mark")
	}
}
