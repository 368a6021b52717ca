package clone

import (
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// TestDeltaGrows: memory for marks is asked for when half of it is in use, before a request has to
// wait for a commit; it is given back when all marks are committed, and not before, whichever set
// they are in.
func TestDeltaGrows(t *testing.T) {
	const start, most = 4, 16
	const pages, page = 20, bitmap.RegionsPerPage * testRegion
	geo, err := NewGeometry(pages*page, testRegion)
	if err != nil {
		t.Fatal(err)
	}
	wants := 0
	core := New(Config{Geometry: geo, Map: bitmap.New(geo.Regions(), make([]bitmap.Page, pages)), Kick: func() {},
		Delta: DeltaConfig{Pages: most, Start: start, Memory: make([]bitmap.Page, 2*start), Want: func() { wants++ }}})
	q := &quiet{}
	q.lane = core.NewLane(LaneConfig{Backend: q, Wake: func() {}, Ops: 64, Buffers: copybuffers.Config{Own: [][]byte{make([]byte, testRegion)}}})
	finish := func() {
		for q.busy {
			q.busy = false
			q.lane.EndIO(q.token, nil)
		}
	}
	write := func(n int64) (done bool) {
		q.lane.Submit(&Request{Op: OpWrite, Off: n * page, Len: testRegion, End: func(*Request, error) { done = true }})
		finish()
		return done
	}
	for n := range int64(start) {
		if !write(n) {
			t.Fatalf("page %d of %d waits", n, start)
		}
		if (wants > 0) != (n >= start/2) {
			t.Fatalf("asked for memory %d times after %d pages of %d", wants, n+1, start)
		}
	}
	if write(start) {
		t.Fatal("there was room for one mark too many")
	}
	if core.ShrinkDelta() {
		t.Fatal("memory in use was given up")
	}
	added := make([]bitmap.Page, 2*(most-start))
	if !core.GrowDelta(added[:most-start], added[most-start:]) {
		t.Fatal("no room for more memory")
	}
	if now, limit := core.DeltaSlots(); now != most || limit != most || core.GrowDelta(make([]bitmap.Page, 1), make([]bitmap.Page, 1)) {
		t.Fatalf("%d of %d slots", now, limit)
	}
	for n := int64(start + 1); n <= most; n++ { // page start waits for its commit
		if !write(n) {
			t.Fatalf("page %d waits", n)
		}
	}
	for range 2 { // a commit leaves the other set empty
		if err := core.Commit(q, q); err != nil {
			t.Fatal(err)
		}
		q.lane.Drain()
		finish()
	}
	core.mu.claims.reserved = start + 1
	if core.ShrinkDelta() {
		t.Fatal("memory was given up that claims have reserved")
	}
	core.mu.claims.reserved = 0
	if !core.ShrinkDelta() {
		t.Fatal("memory was not given up, with all marks committed")
	}
	if now, _ := core.DeltaSlots(); now != start {
		t.Fatalf("%d slots are left, expected %d", now, start)
	}
	for i := range added {
		added[i] = bitmap.Page{1} // nobody looks here any more
	}
	for n := int64(most + 1); n < pages; n++ {
		if !write(n) {
			t.Fatal("a write waits")
		}
	}
	if err := core.Commit(q, q); err != nil {
		t.Fatal(err)
	}
}
