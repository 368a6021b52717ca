package bitmap

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

func newMap(nr uint64) *Map { return New(nr, make([]Page, PagesFor(nr))) }

// model is the naive region map: one struct a region.
type model struct {
	regions []modelRegion
}

type modelRegion struct {
	h, z             bool
	activeH, activeZ bool // marked since the freeze
}

func (r modelRegion) state() State {
	switch {
	case r.h:
		return Hydrated
	case r.z:
		return Zero
	}
	return Source
}

func (md *model) mark(p Plane, first, end uint64) (newly uint64) {
	for i := first; i < end; i++ {
		r := &md.regions[i]
		switch {
		case p == PlaneHydrated && !r.h:
			r.h, r.activeH = true, true
			newly++
		case p == PlaneZero && !r.h && !r.z:
			r.z, r.activeZ = true, true
			newly++
		}
	}
	return newly
}

func (md *model) run(first, end uint64) (State, uint64) {
	st := md.regions[first].state()
	i := first
	for i < end && md.regions[i].state() == st {
		i++
	}
	return st, i
}

func (md *model) next(from, end uint64, want func(State) bool) (uint64, bool) {
	for ; from < end; from++ {
		if want(md.regions[from].state()) {
			return from, true
		}
	}
	return end, false
}

func (md *model) counts() (hydrated, zero uint64) {
	for _, r := range md.regions {
		switch r.state() {
		case Hydrated:
			hydrated++
		case Zero:
			zero++
		}
	}
	return
}

// TestModel drives a Map and the naive model with the same random marks and freezes and
// compares every answer. Sizes are chosen for their ragged ends. Replay: the seed is the
// size; the first difference ends the test.
func TestModel(t *testing.T) {
	for _, nr := range []uint64{1, 63, 64, 65, 1000, RegionsPerPage - 1, RegionsPerPage, RegionsPerPage + 1, 3*RegionsPerPage - 5} {
		rng := rand.New(rand.NewPCG(nr, 1))
		m, md := newMap(nr), &model{regions: make([]modelRegion, nr)}
		active := NewDelta(m.NrPages(), int(m.NrPages()))
		span := func() (uint64, uint64) {
			first := rng.Uint64N(nr)
			return first, first + 1 + rng.Uint64N(min(nr-first, 1<<(1+rng.IntN(15))))
		}
		for step := range 300 {
			first, end := span()
			p := Plane(rng.IntN(2))
			if step%10 == 9 { // freeze
				active.Reset()
				for i := range md.regions {
					md.regions[i].activeH, md.regions[i].activeZ = false, false
				}
			}
			if got, want := m.Mark(p, first, end, active), md.mark(p, first, end); got != want {
				t.Fatalf("%d regions, step %d: mark %v [%d, %d): newly %d, expected %d", nr, step, p, first, end, got, want)
			}
			first, end = span()
			compareReads(t, m, md, first, end)
			compareDelta(t, active, md, first, end)
			if step%20 == 0 {
				compareImages(t, m, md, active)
			}
		}
	}
}

func compareReads(t *testing.T, m *Map, md *model, first, end uint64) {
	t.Helper()
	if got, want := m.State(first), md.regions[first].state(); got != want {
		t.Fatalf("state of %d: %v, expected %v", first, got, want)
	}
	st, next := m.Run(first, end)
	if wantSt, want := md.run(first, end); st != wantSt || next != want {
		t.Fatalf("run [%d, %d): %v to %d, expected %v to %d", first, end, st, next, wantSt, want)
	}
	_, unhydrated := md.next(first, end, func(s State) bool { return s != Hydrated })
	if got := m.AllHydrated(first, end); got == unhydrated {
		t.Fatalf("all hydrated [%d, %d): %v", first, end, got)
	}
	for _, c := range []struct {
		name string
		next func(from, end uint64) (uint64, bool)
		want func(State) bool
	}{
		{"unhydrated", m.NextUnhydrated, func(s State) bool { return s != Hydrated }},
		{"source", m.NextSource, func(s State) bool { return s == Source }},
		{"zero", m.NextZero, func(s State) bool { return s == Zero }},
	} {
		got, ok := c.next(first, end)
		if want, wantOK := md.next(first, end, c.want); got != want || ok != wantOK {
			t.Fatalf("next %s [%d, %d): %d %v, expected %d %v", c.name, first, end, got, ok, want, wantOK)
		}
	}
	h, z := md.counts()
	if m.NrHydrated() != h || m.NrZero() != z {
		t.Fatalf("counts %d %d, expected %d %d", m.NrHydrated(), m.NrZero(), h, z)
	}
}

func compareDelta(t *testing.T, d *Delta, md *model, first, end uint64) {
	t.Helper()
	var want [nrPlanes]bool
	for _, r := range md.regions[first:end] {
		want[PlaneHydrated] = want[PlaneHydrated] || r.activeH
		want[PlaneZero] = want[PlaneZero] || r.activeZ
	}
	var count [nrPlanes]uint64
	for _, r := range md.regions {
		if r.activeH {
			count[PlaneHydrated]++
		}
		if r.activeZ {
			count[PlaneZero]++
		}
	}
	r := md.regions[first]
	if d.Has(PlaneHydrated, first) != r.activeH || d.Has(PlaneZero, first) != r.activeZ {
		t.Fatalf("delta has %d: %v %v, expected %v %v", first, d.Has(PlaneHydrated, first), d.Has(PlaneZero, first), r.activeH, r.activeZ)
	}
	for p := range want {
		if got := d.Any(Plane(p), first, end); got != want[p] {
			t.Fatalf("delta any plane %d [%d, %d): %v", p, first, end, got)
		}
		if got := d.Count(Plane(p)); got != count[p] {
			t.Fatalf("delta count plane %d: %d, expected %d", p, got, count[p])
		}
	}
}

// compareImages checks that the durable image is live minus active, region by region. Of a
// page that is durably hydrated throughout the Z plane is not compared.
func compareImages(t *testing.T, m *Map, md *model, active *Delta) {
	t.Helper()
	var img Page
	for page := range m.NrPages() {
		m.DurableImage(page, active, &img)
		if err := Valid(m.nr, page, &img); err != nil {
			t.Fatal(err)
		}
		noZ := m.Full(page) && active.Page(page) == nil
		for i := range regionsIn(m.nr, page) {
			r := md.regions[page*RegionsPerPage+i]
			h := img[i/64]>>(i%64)&1 != 0
			z := img[PlaneWords+i/64]>>(i%64)&1 != 0
			if h != (r.h && !r.activeH) || !noZ && z != (r.z && !r.activeZ) {
				t.Fatalf("durable image of page %d region %d: h %v z %v, model %+v", page, i, h, z, r)
			}
		}
	}
}

// TestReload loads durable images into a second map, in two parts, and expects the states.
func TestReload(t *testing.T) {
	const nr = 3*RegionsPerPage - 5
	m, again := newMap(nr), newMap(nr)
	d := NewDelta(m.NrPages(), 3)
	m.Mark(PlaneZero, 10, 500, d)
	m.Mark(PlaneZero, RegionsPerPage, RegionsPerPage+10, d) // all of page 1 becomes H below
	var img Page
	load := func() {
		for page := range m.NrPages() {
			m.DurableImage(page, NewDelta(m.NrPages(), 0), &img)
			if err := again.Load(page, &img); err != nil {
				t.Fatal(err)
			}
		}
	}
	load()
	m.Mark(PlaneHydrated, 100, 2*RegionsPerPage+77, d)
	load()
	for r := range uint64(nr) {
		if m.State(r) != again.State(r) {
			t.Fatalf("region %d: %v, loaded %v", r, m.State(r), again.State(r))
		}
	}
	if m.NrHydrated() != again.NrHydrated() || m.NrZero() != again.NrZero() || again.NrZero() != 90 {
		t.Errorf("counts %d %d, loaded %d %d", m.NrHydrated(), m.NrZero(), again.NrHydrated(), again.NrZero())
	}
}

func TestLoadRefusesWhatCannotBe(t *testing.T) {
	const nr = RegionsPerPage + 70
	for _, c := range []struct {
		name string
		page uint64
		word int
		bits uint64
		ok   bool
	}{
		{"last region", 1, 1, 1 << 5, true},
		{"H beyond the end", 1, 1, 1 << 6, false},
		{"Z beyond the end", 1, PlaneWords + 1, 1 << 6, false},
		{"word beyond the end", 1, 2, 1, false},
		{"unused word", 0, 2 * PlaneWords, 1, false},
		{"last unused word", 0, PageWords - 1, 1 << 63, false},
		{"page beyond the end", 2, 0, 0, false},
	} {
		m := newMap(nr)
		var img Page
		img[c.word] = c.bits
		if err := m.Load(c.page, &img); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if !c.ok && m.NrHydrated()+m.NrZero() != 0 {
			t.Errorf("%s: refused and loaded", c.name)
		}
	}
}

// TestUntouched checks that pages which are empty, or full when they are loaded, are not
// written, as their memory is to stay unbacked.
func TestUntouched(t *testing.T) {
	mem := make([]Page, 3)
	m := New(3*RegionsPerPage, mem)
	var full Page
	for w := range PlaneWords {
		full[w] = ^uint64(0)
	}
	full[PlaneWords] = 7 // Z under H
	if err := m.Load(1, &full); err != nil {
		t.Fatal(err)
	}
	d := NewDelta(3, 3)
	if n := m.Mark(PlaneHydrated, RegionsPerPage, 2*RegionsPerPage, d) + m.Mark(PlaneZero, RegionsPerPage, 2*RegionsPerPage, d); n != 0 {
		t.Errorf("marked %d in a full page", n)
	}
	m.Mark(PlaneHydrated, 2*RegionsPerPage, 2*RegionsPerPage+1, d)
	if mem[0] != (Page{}) || mem[1] != (Page{}) || mem[2] == (Page{}) {
		t.Error("wrong pages were touched")
	}
	if st, end := m.Run(RegionsPerPage, 3*RegionsPerPage); st != Hydrated || end != 2*RegionsPerPage+1 {
		t.Errorf("run: %v to %d", st, end)
	}
	if m.NrHydrated() != RegionsPerPage+1 || m.NrZero() != 0 {
		t.Errorf("counts %d %d", m.NrHydrated(), m.NrZero())
	}
}

// TestDurableImageKeepsZeroUnderUncommittedHydrated: a page that is full only by marks that
// are not committed. Without its Z plane in the durable image a crash would turn regions
// that are durably zero into Source.
func TestDurableImageKeepsZeroUnderUncommittedHydrated(t *testing.T) {
	m := newMap(RegionsPerPage)
	frozen, active := NewDelta(1, 1), NewDelta(1, 1)
	m.Mark(PlaneZero, 0, 100, frozen)
	m.Mark(PlaneHydrated, 0, RegionsPerPage, active)
	var img Page
	m.DurableImage(0, active, &img)
	if h, z := img.Counts(); h != 0 || z != 100 {
		t.Errorf("durable image has %d hydrated, %d zero, expected 0 and 100", h, z)
	}
}

// TestMarkIsRecordedBeforeItIsVisible: a Delta without a free slot panics, and by then
// nothing may be visible.
func TestMarkIsRecordedBeforeItIsVisible(t *testing.T) {
	m := newMap(2 * RegionsPerPage)
	d := NewDelta(2, 1)
	m.Mark(PlaneHydrated, 0, 1, d)
	if n := d.Missing(0, 2*RegionsPerPage); n != 1 {
		t.Fatalf("missing %d slots, expected 1", n)
	}
	mustPanic(t, func() { m.Mark(PlaneHydrated, RegionsPerPage, RegionsPerPage+1, d) })
	if m.State(RegionsPerPage) != Source || m.NrHydrated() != 1 {
		t.Error("a mark is visible that is in no Delta")
	}
}

func TestOutOfRangePanics(t *testing.T) {
	m := newMap(100)
	d := NewDelta(1, 1)
	mustPanic(t, func() { m.Mark(PlaneHydrated, 99, 101, d) })
	mustPanic(t, func() { m.State(100) })
	mustPanic(t, func() { m.AllHydrated(50, 49) })
	mustPanic(t, func() { m.NextSource(0, 101) })
	mustPanic(t, func() { New(100, nil) })
}

func mustPanic(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	f()
}

func TestDelta(t *testing.T) {
	d := NewDelta(10, 3)
	d.Add(PlaneZero, 7*RegionsPerPage+3)
	d.Add(PlaneHydrated, 2*RegionsPerPage)
	d.Add(PlaneHydrated, 2*RegionsPerPage)
	d.Add(PlaneHydrated, 7*RegionsPerPage-1)
	if p := d.Pages(); len(p) != 3 || p[0] != 7 || p[1] != 2 || p[2] != 6 {
		t.Errorf("pages %v", p)
	}
	if d.Used() != 3 || d.Cap() != 3 || d.Count(PlaneHydrated) != 2 || d.Count(PlaneZero) != 1 {
		t.Errorf("used %d of %d, counts %d %d", d.Used(), d.Cap(), d.Count(PlaneHydrated), d.Count(PlaneZero))
	}
	for _, c := range []struct {
		first, end uint64
		want       int
	}{{0, 0, 0}, {0, 1, 1}, {0, 10 * RegionsPerPage, 7}, {2 * RegionsPerPage, 3 * RegionsPerPage, 0},
		{2*RegionsPerPage - 1, 3*RegionsPerPage + 1, 2}} {
		if got := d.Missing(c.first, c.end); got != c.want {
			t.Errorf("missing [%d, %d): %d, expected %d", c.first, c.end, got, c.want)
		}
	}
	mustPanic(t, func() { d.Add(PlaneZero, 0) })
	d.Reset()
	if d.Used() != 0 || d.Count(PlaneHydrated) != 0 || d.Any(PlaneHydrated, 0, 10*RegionsPerPage) || d.Page(2) != nil {
		t.Error("not empty after reset")
	}
	d.Add(PlaneZero, 0)
	if pg := d.Page(0); pg == nil || *pg != (Page{PlaneWords: 1}) {
		t.Error("a slot was not clean after reset")
	}
}

func TestPagesFor(t *testing.T) {
	for nr, want := range map[uint64]uint64{0: 0, 1: 1, RegionsPerPage: 1, RegionsPerPage + 1: 2, 1 << 32: 266306,
		^uint64(0): ^uint64(0)/RegionsPerPage + 1} {
		if got := PagesFor(nr); got != want {
			t.Errorf("pages for %d regions: %d, expected %d", nr, got, want)
		}
	}
}

// TestReleaseUnderReaders has a writer that takes regions from Source to Zero and to
// Hydrated, page by page, and lets each full page's memory go to zeros, while readers look
// at every region over and over. No reader may see a region go back, and none may see one
// in a lower state than the writer had finished marking before it looked. Without the
// double look in piece or AllHydrated this fails.
func TestReleaseUnderReaders(t *testing.T) {
	const pages, readers = 12, 3
	const nr = pages * RegionsPerPage
	m := newMap(nr)
	d := NewDelta(pages, pages)
	var hydrated, zero atomic.Uint64 // regions below are marked
	var done atomic.Bool
	errs := make(chan string, readers)
	for seed := range uint64(readers) {
		go func() { errs <- readStates(m, rand.New(rand.NewPCG(seed, 2)), &hydrated, &zero, &done) }()
	}
	for page := range uint64(pages) {
		first, end := page*RegionsPerPage, (page+1)*RegionsPerPage
		m.Mark(PlaneZero, first, end, d)
		zero.Store(end)
		for r := first; r < end; r += 48 {
			m.Mark(PlaneHydrated, r, min(r+48, end), d)
			hydrated.Store(min(r+48, end))
		}
		d.Reset() // committed
		if !m.Release(page, zeroPage) {
			t.Errorf("page %d is not full", page)
		}
	}
	done.Store(true)
	for range readers {
		if e := <-errs; e != "" {
			t.Error(e)
		}
	}
	if m.Release(0, zeroPage); m.NrHydrated() != nr || m.NrZero() != 0 {
		t.Errorf("counts %d %d", m.NrHydrated(), m.NrZero())
	}
}

func zeroPage(mem *Page) {
	for w := range mem {
		atomic.StoreUint64(&mem[w], 0)
	}
}

// TestReleaseWhileLookedAt is the narrow case of the above, many times: all regions of a
// page but one are hydrated, and stay so for readers that ask again and again, while the
// last one is marked and the page released. A reader that loads the counter before and the
// word after that must not take the zeros for the map. (With either double look taken out
// this failed in each of 20 runs on two CPUs.)
func TestReleaseWhileLookedAt(t *testing.T) {
	releaseWhileLookedAt(t, PlaneHydrated, (*Map).Release, func(m *Map) string {
		if !m.AllHydrated(0, 63) {
			return "all hydrated: false for hydrated regions"
		}
		return ""
	}, inState(Hydrated))
}

// releaseWhileLookedAt marks all regions of a page but one, then the last one, has the page
// released, and begins anew, while each look is had by a thread of its own.
func releaseWhileLookedAt(t *testing.T, p Plane, release func(*Map, uint64, func(*Page)) bool, looks ...func(*Map) string) {
	t.Helper()
	const nr, rounds = 64, 20_000
	mem := [2][]Page{make([]Page, 1), make([]Page, 1)}
	d := NewDelta(1, 1)
	allButOne := func(i int) *Map {
		m := New(nr, mem[i%2])
		m.KeepZeros(make([]atomic.Uint64, 1))
		m.Mark(p, 0, nr-1, d)
		return m
	}
	var current atomic.Pointer[Map]
	current.Store(allButOne(0))
	var done atomic.Bool
	errs := make(chan string, len(looks))
	for _, look := range looks {
		go func() {
			said := ""
			for said == "" && !done.Load() {
				said = look(current.Load())
			}
			errs <- said
		}()
	}
	for i := range rounds {
		m := current.Load()
		m.Mark(p, nr-1, nr, d)
		release(m, 0, func(mem *Page) {
			atomic.StoreUint64(mem.word(p, 0), 0) // at once; the other plane comes first in a page
			zeroPage(mem)
		})
		current.Store(allButOne(i + 1))
	}
	done.Store(true)
	for range looks {
		if e := <-errs; e != "" {
			t.Error(e)
		}
	}
}

// inState looks at a region that is in that state in every map.
func inState(want State) func(*Map) string {
	return func(m *Map) string {
		if st := m.State(5); st != want {
			return "a region is " + st.String() + " and not " + want.String()
		}
		return ""
	}
}

// readStates looks around the writer's place until done and says what went wrong.
func readStates(m *Map, rng *rand.Rand, hydrated, zero *atomic.Uint64, done *atomic.Bool) string {
	seen := make([]State, m.NrRegions())
	for !done.Load() {
		h, z := hydrated.Load(), zero.Load()
		r := h - min(h, rng.Uint64N(2000)) // mostly just marked, where pages fill and go
		r = min(r, m.NrRegions()-1)
		least := Source
		switch {
		case r < h:
			least = Hydrated
		case r < z:
			least = Zero
		}
		if st := m.State(r); st < least || st < seen[r] {
			return "state " + st.String() + " after " + max(least, seen[r]).String()
		} else {
			seen[r] = st
		}
		if end := min(h, r+130); r < end && !m.AllHydrated(r, end) {
			return "hydrated regions are not all hydrated"
		}
		if st, end := m.Run(r, m.NrRegions()); r < h && (st != Hydrated || end < h) {
			return "run of " + st.String() + " ends early"
		}
		if n, ok := m.NextSource(0, z); ok {
			return "source below region " + m.State(n).String()
		}
	}
	return ""
}

func TestNoAllocation(t *testing.T) {
	const nr = 4 * RegionsPerPage
	m := newMap(nr)
	d := NewDelta(4, 4)
	var img Page
	r := uint64(0)
	n := testing.AllocsPerRun(1000, func() {
		m.Mark(PlaneZero, r, r+60, d)
		m.Mark(PlaneHydrated, r, r+50, d)
		m.State(r)
		m.AllHydrated(r, r+50)
		m.Run(0, nr)
		m.NextUnhydrated(0, nr)
		d.Any(PlaneHydrated, 0, nr)
		d.Missing(0, nr)
		m.DurableImage(0, d, &img)
		r += 61
		if r > nr/2 {
			d.Reset()
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAllHydrated(b *testing.B) {
	m := newMap(RegionsPerPage)
	m.Mark(PlaneHydrated, 0, RegionsPerPage-1, NewDelta(1, 1))
	for i := uint64(0); b.Loop(); i++ {
		if !m.AllHydrated(i%1000, i%1000+1) {
			b.Fatal("not hydrated")
		}
	}
}
