package engine

import (
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
)

// TestLiveMapKeepsTheWorstMode: whatever several threads tell at a time, the live map has the mode
// that the core ended in. One that were better would have the next daemon begin as if nothing had
// failed (I10).
func TestLiveMapKeepsTheWorstMode(t *testing.T) {
	live, err := livemap.Create(t.TempDir(), livemap.Identity{Regions: 1}, livemap.State{})
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	geo, err := clone.NewGeometry(clone.MinRegionSize, clone.MinRegionSize)
	if err != nil {
		t.Fatal(err)
	}
	e := New(definition.Start{}, zerolog.Nop())
	e.live.Map = live
	core := func() *clone.Core {
		return clone.New(clone.Config{
			Geometry: geo, Map: bitmap.New(1, make([]bitmap.Page, 1)), Kick: func() {}, Event: e.changed, State: e.live.keepState,
		})
	}
	e.lanes.core = core()
	live.SetState(uint8(clone.ReadOnly), false) // another thread's, since this one has looked at the core
	e.changed()
	if m := clone.Mode(live.State().Mode); m != clone.ReadOnly {
		t.Errorf("a thread that is late has brought mode %v back", m)
	}
	for round := range 10_000 {
		live.SetState(uint8(clone.ReadWrite), false)
		e.lanes.core = core()
		var wg sync.WaitGroup
		wg.Go(e.changed) // a lane tells of something else, as hydration that is complete
		wg.Go(func() { e.lanes.core.SetMode(clone.ReadOnly) })
		wg.Wait()
		if m := clone.Mode(live.State().Mode); m != clone.ReadOnly {
			t.Fatalf("round %d: the live map has mode %v, the core %v", round, m, e.lanes.core.Mode())
		}
	}
}
