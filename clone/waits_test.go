package clone

import (
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// TestWaits: users' reads of the source are counted and timed, each in the period that saw all of
// it; nothing else is.
func TestWaits(t *testing.T) {
	const regions = 64
	geo, err := NewGeometry(regions*testRegion, testRegion)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	core := New(Config{
		Geometry: geo,
		Map:      bitmap.New(regions, make([]bitmap.Page, bitmap.PagesFor(regions))),
		Kick:     func() {},
		Now:      func() time.Time { now = now.Add(time.Nanosecond); return now }, // each look is seen
	})
	q := &quiet{}
	q.lane = core.NewLane(LaneConfig{Backend: q, Wake: func() {}, Ops: 4, Buffers: copybuffers.Config{Own: [][]byte{make([]byte, 4*testRegion)}}})
	r := &Request{End: func(*Request, error) {}}
	begin := func(op Op, region, length int64) {
		*r = Request{Op: op, Off: region * testRegion, Len: length, End: r.End}
		q.lane.Submit(r)
	}
	end := func(after time.Duration, err error) {
		now = now.Add(after)
		q.lane.EndIO(q.token, err)
	}
	want := func(what string, reads, timed int64, took time.Duration) {
		t.Helper()
		if w := core.Waits(); w.Reads != reads || w.Timed != timed || w.Time.Truncate(time.Millisecond) != took {
			t.Errorf("%s: %+v", what, w)
		}
	}
	begin(OpRead, 0, testRegion)
	end(5*time.Millisecond, nil)
	want("a read", 1, 1, 5*time.Millisecond)
	begin(OpRead, 0, testRegion)
	core.NewPeriod()
	end(time.Second, nil)
	want("a read over the end of a period", 2, 1, 5*time.Millisecond)
	begin(OpWrite, 1, 512)
	end(3*time.Millisecond, nil) // the rest of the region is read
	end(time.Second, nil)
	want("a write that waits for a read", 3, 2, 8*time.Millisecond)
	looks := now
	begin(OpRead, 1, 512)
	end(0, nil)
	begin(OpWrite, 1, 512)
	end(0, nil)
	begin(OpWrite, 2, testRegion)
	end(0, nil)
	if q.lane.Hydrate(&Hydration{First: 3, End: 4, Done: func(*Hydration, error) {}}) {
		end(0, nil)
		end(0, nil)
	}
	want("hydrated, whole and background", 3, 2, 8*time.Millisecond)
	if now != looks {
		t.Errorf("%d looks at the clock for what is not counted", now.Sub(looks))
	}
	if w := core.Waits(); w.Requests != 6 {
		t.Errorf("%d requests", w.Requests)
	}
}
