package hydrate

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
)

// sectors is a source of which each sector of 512 bytes is data or in a hole; fails fails the n-th
// question, from 1.
type sectors struct {
	data  []bool
	asked int
	fails int
}

func (s *sectors) next(off int64, data bool) (int64, error) {
	if s.asked++; s.asked == s.fails {
		return 0, errBad
	}
	for ; off < int64(len(s.data))*512; off++ {
		if s.data[off/512] == data {
			return off, nil
		}
	}
	return int64(len(s.data)) * 512, nil
}

func (s *sectors) NextData(off int64) (int64, error) { return s.next(off, true) }
func (s *sectors) NextHole(off int64) (int64, error) { return s.next(off, false) }

// TestExtent: what is called a hole has no data in it, in the region's first sector or its last;
// what is called data is no hole as a whole; and when the source cannot tell it is data.
func TestExtent(t *testing.T) {
	const perRegion = regionSize / 512
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 4))
		s := &sectors{data: make([]bool, 5*perRegion+1+rng.IntN(perRegion))}
		for at := 0; at < len(s.data); { // runs that end anywhere, or at a region's end
			end, data := at+1+rng.IntN(2*perRegion), rng.IntN(2) == 0
			if rng.IntN(3) == 0 {
				end = (end + perRegion - 1) / perRegion * perRegion
			}
			for ; at < min(end, len(s.data)); at++ {
				s.data[at] = data
			}
		}
		geo, err := clone.NewGeometry(int64(len(s.data))*512, regionSize)
		if err != nil {
			t.Fatal(err)
		}
		inHole := func(region uint64) bool {
			for at := geo.Start(region); at < geo.End(region); at += 512 {
				if s.data[at/512] {
					return false
				}
			}
			return true
		}
		for r := range geo.Regions() {
			stop := r + 1 + rng.Uint64N(geo.Regions()-r)
			hole, end := Extent(geo, s, r, stop)
			if end <= r || end > stop || hole != inHole(r) {
				t.Fatalf("seed %d: regions [%d, %d) of %d, hole %t", seed, r, end, stop, hole)
			}
			for x := r; x < end; x++ {
				if inHole(x) != hole {
					t.Fatalf("seed %d: region %d of [%d, %d) is in a hole: %t", seed, x, r, end, !hole)
				}
			}
			if end < stop && inHole(end) == hole && hole {
				t.Fatalf("seed %d: the hole from %d on goes beyond %d", seed, r, end)
			}
			for fails := 1; fails <= 2; fails++ {
				s.asked, s.fails = 0, fails
				failed, end := Extent(geo, s, r, stop)
				asked := s.asked
				s.fails = 0
				if asked >= fails && (failed || end != stop) {
					t.Fatalf("seed %d: question %d fails, and [%d, %d) of %d is a hole: %t", seed, fails, r, end, stop, failed)
				}
			}
		}
	}
}

// TestNextIsNobodys: whatever is in flight, has been split off or is bad, the next batch lies in
// regions that nobody works on, all in one state, and has no more of them than it may; what has
// failed is tried one at a time.
func TestNextIsNobodys(t *testing.T) {
	const regions = 60
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 5))
		r := newRig(t, regions, on, nil)
		for range rng.IntN(12) {
			first, delta := rng.Uint64N(regions), bitmap.NewDelta(1, 1)
			r.core.Regions().Mark(bitmap.Plane(rng.IntN(2)), first, min(regions, first+1+rng.Uint64N(6)), delta)
		}
		h := r.h
		h.take()
		taken := map[uint64]string{}
		claim := func(first, end uint64, what string) bool {
			for x := first; x < end; x++ {
				if taken[x] != "" || h.search.regions.State(x) == bitmap.Hydrated {
					return false
				}
			}
			for x := first; x < end; x++ {
				taken[x] = what
			}
			return true
		}
		for range rng.IntN(5) {
			first := rng.Uint64N(regions - 6)
			end := first + 1 + rng.Uint64N(6)
			switch rng.IntN(3) {
			case 0:
				if claim(first, end, "in flight") {
					b := &batch{}
					b.First, b.End = first, end
					h.flight.flying = append(h.flight.flying, b)
				}
			case 1:
				if claim(first, end, "split") {
					h.search.split = append(h.search.split, span{first, end})
				}
			default:
				if claim(first, first+1, "bad") {
					h.search.bad.failed(first)
				}
			}
		}
		h.flight.retrying = len(h.search.split) > 0 || rng.IntN(2) == 0
		h.search.cursor = rng.Uint64N(regions)
		copyMax, zeroMax := 1+rng.Uint64N(8), 1+rng.Uint64N(16)
		w, ok := h.search.next(copyMax, zeroMax)
		if !ok {
			for x := range uint64(regions) {
				if h.search.regions.State(x) != bitmap.Hydrated && taken[x] == "" {
					t.Fatalf("seed %d: nothing to do, and region %d is %v and nobody's", seed, x, h.search.regions.State(x))
				}
			}
			continue
		}
		most, st := copyMax, bitmap.Source
		if w.kind == clone.ZeroZero {
			most, st = zeroMax, bitmap.Zero
		}
		if w.first >= w.end || w.end-w.first > most || w.kind == clone.ZeroHole {
			t.Fatalf("seed %d: %+v, with at most %d", seed, w, most)
		}
		for x := w.first; x < w.end; x++ {
			if taken[x] != "" || h.search.regions.State(x) != st {
				t.Fatalf("seed %d: %+v has region %d, which is %v %s", seed, w, x, h.search.regions.State(x), taken[x])
			}
		}
	}
}

// TestSplitOffOneByOne: of a batch that failed each region comes once more, alone, as what it is by
// then; not what a user has hydrated meanwhile, nor what is in flight.
func TestSplitOffOneByOne(t *testing.T) {
	r := newRig(t, 12, on, nil)
	h := r.h
	h.take()
	h.search.split = []span{{2, 10}}
	r.core.Regions().Mark(bitmap.PlaneZero, 3, 4, bitmap.NewDelta(1, 1))
	r.core.Regions().Mark(bitmap.PlaneHydrated, 5, 6, bitmap.NewDelta(1, 1))
	flying := &batch{}
	flying.First, flying.End = 7, 8
	h.flight.flying = append(h.flight.flying, flying)
	for _, want := range []struct {
		region uint64
		kind   clone.HydrationKind
	}{{2, clone.CopySource}, {3, clone.ZeroZero}, {4, clone.CopySource}, {6, clone.CopySource}, {8, clone.CopySource}, {9, clone.CopySource}} {
		w, ok := h.search.nextRetry()
		if !ok || w.first != want.region || w.end != want.region+1 || w.kind != want.kind || !w.retry {
			t.Fatalf("%+v %t, expected region %d, kind %d", w, ok, want.region, want.kind)
		}
		h.flight.retrying = true
		if w, ok := h.search.nextRetry(); ok {
			t.Fatalf("%+v while another is tried", w)
		}
		h.flight.retrying = false
	}
	if w, ok := h.search.nextRetry(); ok || len(h.search.split) != 0 {
		t.Errorf("%+v, %v left", w, h.search.split)
	}
}

// TestHoleThatCannotBeLookedAt is read as data, and what cannot be read then is bad.
func TestHoleThatCannotBeLookedAt(t *testing.T) {
	r := newRig(t, 8, on, failingHoles{})
	reads := 0
	r.finish(func(a asked) error {
		if a.zero {
			t.Errorf("%+v", a)
		}
		if a.read {
			reads++
		}
		return nil
	})
	if reads == 0 || r.core.Regions().NrHydrated() != 8 {
		t.Errorf("%d reads, %d regions hydrated", reads, r.core.Regions().NrHydrated())
	}
}

type failingHoles struct{}

func (failingHoles) NextData(int64) (int64, error) { return 1 << 40, errors.New("no holes") }
func (failingHoles) NextHole(int64) (int64, error) { return 0, errors.New("no holes") }
