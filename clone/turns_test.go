package clone

import (
	"sync/atomic"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// clearing is a backend that does no I/O but to clear.
type clearing struct{ Backend }

func (clearing) Clear(*Request, int64, int64) error { return nil }

// TestTurns: a discard of a whole device comes as many requests. In a round those of a few pages of
// the map are served, in order, and none is forgotten; it takes no memory of the map, and none of
// the pool.
func TestTurns(t *testing.T) {
	const nr = 64
	geo, err := NewGeometry(nr*MaxSpan, MinRegionSize)
	if err != nil {
		t.Fatal(err)
	}
	pages := bitmap.PagesFor(geo.Regions())
	regions := bitmap.New(geo.Regions(), make([]bitmap.Page, pages))
	regions.KeepZeros(make([]atomic.Uint64, (pages+63)/64))
	var taken []uint64
	wakes := 0
	c := New(Config{Geometry: geo, Map: regions, Delta: DeltaConfig{Pages: 64}, Kick: func() { t.Error("somebody waits for a commit") },
		Touch: func(page uint64) error { taken = append(taken, page); return nil }})
	l := c.NewLane(LaneConfig{Backend: clearing{}, Wake: func() { wakes++ }, Ops: 2 * nr, Buffers: copybuffers.Config{Own: [][]byte{make([]byte, 4096)}}})
	var ended []int
	requests := make([]Request, nr)
	for i := range requests {
		r := &requests[i]
		r.Op, r.Off, r.Len, r.Tag = OpDiscard, int64(i)*MaxSpan, MaxSpan, i
		r.End = func(r *Request, err error) {
			if err != nil {
				t.Error(err)
			}
			ended = append(ended, r.Tag)
		}
		l.Submit(r)
	}
	for rounds := 0; len(ended) < nr; rounds++ {
		before, woken := len(ended), wakes
		read := Request{Op: OpRead, Off: int64(before-1) * MaxSpan, Len: 4096}
		answered := false
		read.End = func(_ *Request, err error) { answered = err == nil }
		l.Submit(&read)
		if !answered {
			t.Fatalf("round %d: a READ of what is zero is not answered", rounds)
		}
		l.Drain()
		if n := len(ended) - before; n < 1 || n > 2 {
			t.Fatalf("round %d: %d requests of 17 pages were served", rounds, n)
		}
		if len(ended) < nr && wakes == woken {
			t.Fatalf("round %d: requests wait and nobody wakes the loop", rounds)
		}
	}
	for i, tag := range ended {
		if i != tag {
			t.Fatalf("request %d has ended as number %d", tag, i)
		}
	}
	if c.Regions().NrZero() != geo.Regions() || c.mu.active.Count(bitmap.PlaneZero) != geo.Regions() {
		t.Errorf("%d of %d regions are zero", c.Regions().NrZero(), geo.Regions())
	}
	// A page that two requests share is marked in two parts.
	if shared := nr; len(taken) > shared || c.mu.active.Used() > shared {
		t.Errorf("memory of %d pages and %d slots of the pool were taken, for %d requests", len(taken), c.mu.active.Used(), nr)
	}
	if held := c.Held(); held != "" {
		t.Error(held)
	}
}
