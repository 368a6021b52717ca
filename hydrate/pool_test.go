package hydrate

import (
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// TestFullPoolDoesNotSpin: when the background's share of the pool of uncommitted marks is used up,
// Pump gives up until a commit had time, and goes on after it (I12).
func TestFullPoolDoesNotSpin(t *testing.T) {
	const pages = 6
	r := newRig(t, pages*bitmap.RegionsPerPage, on, holes{})
	r.core = clone.New(clone.Config{
		Geometry: r.core.Geometry(),
		Map:      r.core.Regions(),
		Kick:     func() {},
		Delta:    clone.DeltaConfig{Pages: 4},
	})
	r.lane = r.core.NewLane(clone.LaneConfig{Backend: r, Wake: func() {}, Ops: 8, Buffers: copybuffers.Config{Own: [][]byte{make([]byte, regionSize)}}})
	r.h.cfg.Core, r.h.cfg.Lane = r.core, r.lane
	for page := range uint64(pages) {
		first := page * bitmap.RegionsPerPage
		var ended error
		r.lane.Hydrate(&clone.Hydration{First: first, End: first + 8, Kind: clone.ZeroHole, Done: func(_ *clone.Hydration, err error) { ended = err }})
		for _, a := range r.asked {
			r.lane.EndIO(a.token, nil)
		}
		r.asked = nil
		if ended != nil {
			if ended != clone.ErrCommitFirst || page != 2 {
				t.Fatalf("holes of page %d: %v", page, ended)
			}
			break
		}
	}
	r.h.Pump()
	if len(r.asked) != 0 || r.wait <= 0 || r.wait > commitPause {
		t.Fatalf("asked %v with the pool full, Pump again in %v", r.asked, r.wait)
	}
	if err := r.core.Commit(nowhere{}, nowhere{}); err != nil {
		t.Fatal(err)
	}
	r.now = r.now.Add(commitPause)
	r.h.Pump()
	if len(r.asked) == 0 {
		t.Fatal("nothing asked after the commit")
	}
}

// nowhere is a destination and metadata that need not be kept.
type nowhere struct{}

func (nowhere) Flush() error                         { return nil }
func (nowhere) WritePage(uint64, *bitmap.Page) error { return nil }

// TestNoRoomKeepsTheOrder: a batch for which the lane has no buffer is the next again, so hydration
// goes from the beginning to the end.
func TestNoRoomKeepsTheOrder(t *testing.T) {
	r := newRigOf(t, 32, on, nil, 8, 1, 2)
	cfg := r.h.cfg
	cfg.Batches, cfg.Settings = 4, on
	r.h = New(cfg)
	next := uint64(0)
	r.finish(func(a asked) error {
		if a.read {
			if a.first != next {
				t.Errorf("a copy from region %d, expected one from %d", a.first, next)
			}
			next = a.next
		}
		return nil
	})
	if next != 32 {
		t.Errorf("copies up to region %d", next)
	}
}
