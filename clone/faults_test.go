package clone

import (
	"errors"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// TestFrontendErrors: bytes that cannot be copied from or to a request fail it, and what could not
// be written is not marked.
func TestFrontendErrors(t *testing.T) {
	for _, c := range []struct {
		name        string
		op          Op
		off, length int64
		prepare     func(r *rig)
	}{
		{"READ of zeros", OpRead, 0, testRegion, func(r *rig) { r.submit(OpDiscard, 0, testRegion) }},
		{"READ of zeros and more", OpRead, 0, 3 * testRegion, func(r *rig) { r.submit(OpDiscard, testRegion, testRegion) }},
		{"READ that is kept", OpRead, 0, 2 * testRegion, func(r *rig) { r.core.SetReadThrough(true) }},
		{"WRITE that is merged", OpWrite, 512, 512, nil},
		{"WRITE that is merged at both ends", OpWrite, 512, testRegion, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 8, 4)
			if c.prepare != nil {
				c.prepare(r)
				r.endAll()
			}
			r.frontendErr = errInjected
			a := r.submit(c.op, c.off, c.length)
			r.endAll()
			r.want(a, errInjected)
			if n := r.core.Regions().NrHydrated(); n != 0 {
				t.Errorf("%d regions are hydrated with what could not be copied", n)
			}
			r.frontendErr = nil
			r.lane.Drain()
			again := r.submit(c.op, c.off, c.length)
			r.endAll()
			r.want(again, nil)
			r.wantNothingHeld()
		})
	}
}

// TestReadFindsZeros: a part that was cut as the source's, and is in state Zero when its read is
// tried again, is zeros; and when they cannot be brought to the READ it fails.
func TestReadFindsZeros(t *testing.T) {
	for _, want := range []error{nil, errInjected} {
		r := newRig(t, 4, 2)
		read := r.submit(OpRead, 0, 2*testRegion)
		r.want(r.submit(OpDiscard, 0, 2*testRegion), nil)
		r.frontendErr = want
		r.end(errors.New("of the source"))
		r.want(read, want)
		r.wantNothingHeld()
	}
}

// TestMayUnmap: space is given up where somebody has allowed it: by WRITE_ZEROES without NOUNMAP,
// by a DISCARD or in the background with passdown.
func TestMayUnmap(t *testing.T) {
	for _, c := range []struct {
		op                Op
		noUnmap, passdown bool
		want              bool
	}{
		{OpWriteZeroes, false, false, true}, {OpWriteZeroes, true, false, false},
		{OpWriteZeroes, false, true, true}, {OpWriteZeroes, true, true, false},
		{OpDiscard, false, false, false}, {OpDiscard, false, true, true},
	} {
		r := newRig(t, 8, 2)
		r.hydrate(0, 4)
		r.core.SetDiscardPassdown(c.passdown)
		a := &Request{Op: c.op, NoUnmap: c.noUnmap, Off: testRegion, Len: testRegion, End: func(*Request, error) {}}
		r.lane.Submit(a)
		r.wantQueued(queued{what: "zero dest", off: testRegion, length: testRegion, unmap: c.want})
		r.endAll()
	}
	for _, passdown := range []bool{false, true} {
		r := newRig(t, 8, 2)
		r.core.SetDiscardPassdown(passdown)
		r.lane.Hydrate(&Hydration{First: 2, End: 4, Kind: ZeroHole, Done: func(*Hydration, error) {}})
		r.wantQueued(queued{what: "zero dest", off: 2 * testRegion, length: 2 * testRegion, unmap: passdown})
		r.endAll()
	}
	r := newRigOf(t, 64*testRegion, 16*testRegion, 2) // a region larger than the buffer, zeroed in part
	r.core.SetDiscardPassdown(true)
	r.submit(OpWriteZeroes, testRegion, testRegion)
	for len(r.ios) > 0 {
		if q := r.ios[0]; q.unmap {
			t.Errorf("%v with unmap: the region is the source's yet", q)
		}
		r.end(nil)
	}
}

// TestRepairBesideFlush: a repair's flush of the destination waits for a durable write or a flush
// in flight, whose end tells the committer, and no durable write begins while a repair waits (H24).
func TestRepairBesideFlush(t *testing.T) {
	record := func() error { return nil }
	for _, what := range []string{"durable write", "flush"} {
		r := newRig(t, 8, 2)
		r.hydrate(0, 2)
		r.core.SetMode(ReadOnly)
		r.write(0)
		a := r.submit(OpFlush, 0, 0)
		if what == "durable write" {
			r.end(nil)
			a = r.send(OpWrite, 512, 512, true)
			r.wantQueued(queued{what: "write dest", off: 512, length: 512, durable: true})
		}
		flushed := false
		r.onFlush = func() { flushed = true }
		if err := r.core.Repair(r, r, record); !errors.Is(err, ErrCommitPutOff) || flushed {
			t.Fatalf("repair beside a %s: %v, flushed: %t", what, err, flushed)
		}
		if what == "durable write" {
			next := r.send(OpWrite, testRegion, 512, true)
			if r.ios[1].durable {
				t.Error("a durable write begins while a repair waits for the end of another")
			}
			r.ios = r.ios[:1] // it is of no further use
			_ = next
		}
		kicks := r.kicks
		r.end(nil)
		r.want(a, nil)
		if what == "durable write" && r.kicks == kicks {
			t.Error("the end of the durable write has not kicked the committer")
		}
		if err := r.core.Repair(r, r, record); err != nil || !flushed || r.core.Mode() != ReadWrite {
			t.Errorf("repair after the %s: %v, flushed: %t, mode %v", what, err, flushed, r.core.Mode())
		}
		if r.send(OpWrite, testRegion+512, 512, true); !r.ios[len(r.ios)-1].durable {
			t.Error("after the repair FUA is no durable write")
		}
	}
}

// pagesRig is a rig of so many pages of the map, with a pool of four, taken over from a process
// that died with marks in the first dead pages.
func pagesRig(t *testing.T, pages, dead uint64) *rig {
	r := newRig(t, max(2, pages)*bitmap.RegionsPerPage, 8)
	cfg := Config{Geometry: r.core.Geometry(), Map: r.core.Regions(), Kick: func() { r.kicks++ }, Delta: DeltaConfig{Pages: 4}}
	if dead > 0 {
		cfg.Uncommitted = bitmap.NewDelta(pages, int(2*dead))
		for page := range dead {
			cfg.Map.Mark(bitmap.PlaneHydrated, page*bitmap.RegionsPerPage, page*bitmap.RegionsPerPage+1, cfg.Uncommitted)
		}
	}
	r.core = New(cfg)
	r.lane = r.core.NewLane(LaneConfig{Backend: r, Wake: func() {}, Ops: 64, Buffers: copybuffers.Config{Own: [][]byte{make([]byte, testRegion)}}})
	return r
}

const pageBytes = bitmap.RegionsPerPage * int64(testRegion)

// TestPoolAfterManyMarks: a daemon that died may have left more marks than the pool takes
// otherwise. The pools are then both that large: whatever was let in before a commit began finds
// its place after it (I9).
func TestPoolAfterManyMarks(t *testing.T) {
	const pages, dead = 24, 6
	r := pagesRig(t, pages, dead)
	for round := range 3 { // active and frozen change places with each commit
		r.want(r.submit(OpDiscard, int64(10+round)*testRegion, testRegion), nil) // something to commit
		var all []*answered
		for page := int64(dead); page < pages && len(all) < dead; page++ {
			all = append(all, r.submit(OpWrite, page*pageBytes+int64(round)*testRegion, testRegion))
		}
		inFlight := r.ios
		r.ios = nil
		r.onFlush = func() {
			r.onFlush = nil
			for _, q := range inFlight { // they end after the freeze
				r.lane.EndIO(q.token, nil)
			}
		}
		for range 2 {
			if err := r.commit(); err != nil {
				t.Fatal(err)
			}
			r.lane.Drain()
			r.endAll()
		}
		for _, a := range all {
			r.want(a, nil)
		}
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	if n := r.core.DurableHydrated(); n != dead+3*dead {
		t.Errorf("%d regions are durably hydrated, expected %d", n, dead+3*dead)
	}
	r.wantNothingHeld()
}

// TestPoolOverPages: a claim takes as much of the pool as it has pages; a request, or a hydration,
// that finds it full asks for a commit, and goes on after it (I9).
func TestPoolOverPages(t *testing.T) {
	r := pagesRig(t, 12, 0)
	over := func(page int64) *answered { return r.submit(OpDiscard, page*pageBytes-testRegion, 2*testRegion) }
	first, second := r.submit(OpWrite, pageBytes-testRegion, 2*testRegion), over(4)
	r.want(second, nil)
	third := over(7)
	r.wantWaiting(third)
	if r.kicks != 1 {
		t.Fatalf("%d kicks, with four pages in use", r.kicks)
	}
	var ended error
	r.lane.Hydrate(&Hydration{First: 9 * bitmap.RegionsPerPage, End: 9*bitmap.RegionsPerPage + 1, Kind: ZeroHole,
		Done: func(_ *Hydration, err error) { ended = err }})
	if !errors.Is(ended, ErrCommitFirst) || r.kicks != 2 {
		t.Errorf("hydration with a full pool: %v, %d kicks", ended, r.kicks)
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	r.lane.Drain()
	r.want(third, nil)
	r.endAll()
	r.want(first, nil)
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	for page, want := range map[int64]bitmap.State{1: bitmap.Hydrated, 4: bitmap.Zero, 7: bitmap.Zero} {
		for _, region := range []uint64{uint64(page)*bitmap.RegionsPerPage - 1, uint64(page) * bitmap.RegionsPerPage} {
			if st := r.core.Regions().State(region); st != want {
				t.Errorf("region %d is %v, expected %v", region, st, want)
			}
		}
	}
	r.wantNothingHeld()
}

// TestFUAOverPages: FUA of regions in several pages asks for the marks in each of them: one that is
// not committed makes a commit of it, wherever it is (I5).
func TestFUAOverPages(t *testing.T) {
	for _, marked := range []int64{-1, 0, 1, 2, 3} {
		r := newRig(t, 4*bitmap.RegionsPerPage, 2)
		end := r.core.Geometry().Regions()
		for first := uint64(0); first < end; first += bitmap.RegionsPerPage {
			r.hydrate(first+1, first+bitmap.RegionsPerPage)
		}
		for page := range int64(4) { // of each page the first region comes last
			if page != marked {
				r.hydrate(uint64(page)*bitmap.RegionsPerPage, uint64(page)*bitmap.RegionsPerPage+1)
			}
		}
		if marked >= 0 {
			a := r.submit(OpWrite, marked*pageBytes, testRegion)
			r.endAll()
			r.want(a, nil)
		}
		r.send(OpWrite, 0, 3*pageBytes+2*testRegion, true)
		r.wantQueued(queued{what: "write dest", length: 3*pageBytes + 2*testRegion, durable: marked < 0})
	}
}

// TestFUAWaits: whatever changes the destination with FUA is answered by a commit, whichever way it
// goes, unless one durable write is enough (I5).
func TestFUAWaits(t *testing.T) {
	const hydrated, zero = 4 * testRegion, 6 * testRegion
	for _, c := range []struct {
		name        string
		op          Op
		off, length int64
	}{
		{"whole regions", OpWrite, 0, 2 * testRegion}, {"a part", OpWrite, 512, 512}, {"a part of zeros", OpWrite, zero + 512, 512},
		{"whole regions", OpWriteZeroes, 0, 2 * testRegion}, {"a part", OpWriteZeroes, 512, 512},
		{"hydrated ones, in place", OpWriteZeroes, hydrated, testRegion}, {"zeros", OpWriteZeroes, zero, testRegion},
		{"both", OpWriteZeroes, hydrated, 3 * testRegion}, {"both", OpWrite, hydrated, 3 * testRegion},
	} {
		r := newRig(t, 8, 2)
		r.hydrate(4, 6)
		r.want(r.submit(OpDiscard, zero, 2*testRegion), nil)
		if err := r.commit(); err != nil {
			t.Fatal(err)
		}
		a := r.send(c.op, c.off, c.length, true)
		for len(r.ios) > 0 {
			if r.ios[0].durable {
				t.Errorf("%v of %s: %v", c.op, c.name, r.ios[0])
			}
			r.end(nil)
		}
		if a.times != 0 {
			t.Errorf("%v of %s is answered before a commit", c.op, c.name)
			continue
		}
		flushed := false
		r.onFlush = func() { flushed = true }
		needless := c.name == "zeros" // they are durable already
		if err := r.commit(); err != nil || flushed == needless {
			t.Fatalf("commit of %v of %s: %v, flushed %t", c.op, c.name, err, flushed)
		}
		r.lane.Drain()
		r.want(a, nil)
		r.wantNothingHeld()
	}
}
