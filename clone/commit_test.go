package clone

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// TestFlushWaitsForCommit: with marks a FLUSH is a commit's, and one that comes after the freeze
// waits for the next (I5, H6).
func TestFlushWaitsForCommit(t *testing.T) {
	r := newRig(t, 8, 2)
	w := r.submit(OpWrite, 0, testRegion)
	r.endAll()
	r.want(w, nil)
	f := r.submit(OpFlush, 0, 0)
	r.wantQueued()
	r.wantWaiting(f)
	if r.kicks == 0 {
		t.Fatal("the committer was not kicked")
	}
	var late *answered
	r.onFlush = func() {
		if late == nil {
			late = r.submit(OpFlush, 0, 0)
		}
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	r.lane.Drain()
	r.want(f, nil)
	r.wantWaiting(late)
	if r.pages != 1 {
		t.Fatalf("%d pages written", r.pages)
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	r.lane.Drain()
	r.want(late, nil)
}

// TestCommitWritesNothingTwice: with nothing marked a commit for a waiter is a flush only.
func TestCommitWritesNothingTwice(t *testing.T) {
	r := newRig(t, 8, 2)
	r.hydrate(0, 2)
	if r.core.Dirty() {
		t.Fatal("dirty after a commit")
	}
	if err := r.commit(); err != nil || r.pages != 0 {
		t.Fatalf("an idle commit wrote %d pages: %v", r.pages, err)
	}
}

// TestOneFlushAtATime: while one is in flight, further FLUSHes share a commit after it, and a
// commit is put off; of two in flight the kernel would report lost bytes to one (H24).
func TestOneFlushAtATime(t *testing.T) {
	r := newRig(t, 8, 2)
	first := r.submit(OpFlush, 0, 0)
	second, third := r.submit(OpFlush, 0, 0), r.submit(OpFlush, 0, 0)
	r.wantQueued(queued{what: "flush dest"})
	if err := r.commit(); !errors.Is(err, ErrCommitPutOff) {
		t.Fatalf("commit while a flush is in flight: %v", err)
	}
	r.lane.Drain()
	r.wantWaiting(second)
	kicks := r.kicks
	r.end(nil)
	r.want(first, nil)
	if r.kicks == kicks {
		t.Fatal("the end of the flush did not kick the committer")
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	r.lane.Drain()
	r.want(second, nil)
	r.want(third, nil)
}

// TestNeedlessFlush: a FLUSH reaches the destination if that may have got something that no flush
// has made durable, and else it does not (I5).
func TestNeedlessFlush(t *testing.T) {
	r := newRig(t, 8, 2)
	r.hydrate(0, 4) // which commits
	flush := func(needed bool) *answered {
		t.Helper()
		f := r.submit(OpFlush, 0, 0)
		if needed {
			r.wantQueued(queued{what: "flush dest"})
			return f
		}
		r.wantQueued()
		r.want(f, nil)
		return f
	}
	flush(false)
	for op, length := range map[Op]int64{OpWrite: testRegion, OpDiscard: testRegion, OpWriteZeroes: testRegion} {
		a := r.submit(op, 0, length)
		r.endAll()
		r.want(a, nil)
		f := flush(true)
		r.end(nil)
		r.want(f, nil)
		flush(false)
	}

	r.write(0)
	late := r.submit(OpWrite, testRegion, testRegion) // in flight while the flush begins
	f := r.submit(OpFlush, 0, 0)
	r.wantQueued(queued{what: "write dest", off: testRegion, length: testRegion}, queued{what: "flush dest"})
	r.endAll()
	r.want(late, nil)
	r.want(f, nil)
	f = flush(true)

	second := r.submit(OpFlush, 0, 0) // nothing has come since the first began, but that may fail
	r.wantWaiting(second)
	r.end(nil)
	r.want(f, nil)
	flushes := r.flushes
	commit := func(want int) {
		t.Helper()
		if err := r.commit(); err != nil || r.flushes != want {
			t.Fatalf("commit: %v, %d flushes, want %d", err, r.flushes-flushes, want-flushes)
		}
		r.lane.Drain()
	}
	commit(flushes)
	r.want(second, nil)

	r.write(0)
	f = flush(true)
	r.write(0)
	second = r.submit(OpFlush, 0, 0)
	r.end(nil)
	r.want(f, nil)
	commit(flushes + 1)
	r.want(second, nil)
	r.core.WantFlush()
	commit(flushes + 2)

	flush(false)
	r.core.SetSpareZeros(SpareAll)
	a := r.submit(OpWriteZeroes, 0, testRegion)
	r.wantQueued(queued{what: "read dest", length: testRegion})
	clear(r.ios[0].data.Buf) // zeros are found, perhaps those of a write in flight
	r.end(nil)
	r.want(a, nil)
	flush(true)
}

// TestFlushLost: after a failed flush of the destination, a lane's or a commit's, with or without
// marks, no FLUSH succeeds and no mark is committed (I10, H24).
func TestFlushLost(t *testing.T) {
	for _, c := range []struct {
		name         string
		marks, lanes bool
	}{
		{"lane's", false, true}, {"commit's, nothing marked", false, false}, {"commit's, with marks", true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 8, 2)
			r.hydrate(7, 8)
			if c.marks {
				r.submit(OpWrite, 0, testRegion)
				r.endAll()
			}
			r.write(7)
			f := r.submit(OpFlush, 0, 0)
			if c.lanes {
				r.end(errInjected)
			} else if !c.marks {
				r.write(7)
				g := r.submit(OpFlush, 0, 0) // waits for a commit
				r.end(nil)
				r.want(f, nil)
				f = g
			}
			r.flushErr = errInjected
			err := r.commit()
			r.lane.Drain()
			if !c.lanes && !errors.Is(err, errInjected) {
				t.Fatalf("commit: %v", err)
			}
			r.want(f, errInjected)
			r.flushErr = nil
			if !r.core.FlushLost() || r.core.Mode() != ReadOnly {
				t.Fatalf("lost %v, mode %v", r.core.FlushLost(), r.core.Mode())
			}
			_ = r.commit()
			r.want(r.submit(OpFlush, 0, 0), ErrFlushLost)
			if r.pages != 0 {
				t.Fatalf("%d pages written after a lost flush", r.pages)
			}
			r.want(r.submit(OpWrite, testRegion, testRegion), ErrReadOnly)
			w := r.submit(OpWrite, 7*testRegion, testRegion)
			r.endAll()
			r.want(w, nil)
		})
	}
}

// TestFlushLostIsTold: also in mode ro, where the mode does not change: whoever records it for the
// next start hears of it (I10).
func TestFlushLostIsTold(t *testing.T) {
	r := newRig(t, 8, 2)
	told := 0
	r.core.event = func() { told++ }
	r.core.SetMode(ReadOnly)
	flush := r.submit(OpFlush, 0, 0)
	r.end(errInjected)
	r.want(flush, errInjected)
	if told != 2 || !r.core.FlushLost() {
		t.Errorf("told %d times, want 2; flush lost %t", told, r.core.FlushLost())
	}
}

// TestRestartNoBetter: a lost flush and a mode outlive a restart.
func TestRestartNoBetter(t *testing.T) {
	r := newRig(t, 8, 2)
	c := New(Config{Geometry: r.core.Geometry(), Map: r.core.Regions(), FlushLost: true, Kick: func() {}})
	if c.Mode() != ReadOnly || !c.FlushLost() {
		t.Fatalf("mode %v, lost %v", c.Mode(), c.FlushLost())
	}
	c.SetMode(ReadWrite)
	if c.Mode() != ReadOnly {
		t.Fatal("the mode got better")
	}
}

// takeOver replaces the rig's core by one that takes its map over from a process that died.
func (r *rig) takeOver(cfg Config) {
	cfg.Geometry, cfg.Map, cfg.Kick = r.core.Geometry(), r.core.Regions(), func() {}
	r.core = New(cfg)
	r.lane = r.core.NewLane(LaneConfig{Backend: r, Wake: func() {}, Ops: 4, Buffers: copybuffers.Config{Own: [][]byte{make([]byte, testRegion)}}})
}

// TestTakenOverReadOnly: a process that died in mode ro costs the next one nothing that it knows to
// be durable. With no mark uncommitted FLUSH and FUA succeed, and a complete clone stays complete
// (I12). With one, FLUSH needs a commit and fails, and so does FUA where that mark is.
func TestTakenOverReadOnly(t *testing.T) {
	r := newRig(t, 8, 2)
	r.hydrate(0, 8)
	r.takeOver(Config{Mode: ReadOnly, Uncommitted: bitmap.NewDelta(1, 1)})
	if !r.core.Complete() || r.core.DurableHydrated() != 8 {
		t.Errorf("complete %t, %d regions durable", r.core.Complete(), r.core.DurableHydrated())
	}
	flush := r.submit(OpFlush, 0, 0)
	r.endAll()
	r.want(flush, nil)
	fua := r.send(OpWrite, 0, testRegion, true)
	r.endAll()
	r.want(fua, nil)

	r = newRig(t, 8, 2)
	r.hydrate(0, 7)
	uncommitted := bitmap.NewDelta(1, 1)
	r.core.Regions().Mark(bitmap.PlaneHydrated, 7, 8, uncommitted)
	r.takeOver(Config{Mode: ReadOnly, Uncommitted: uncommitted})
	flush, fua = r.submit(OpFlush, 0, 0), r.send(OpWrite, 7*testRegion, testRegion, true)
	elsewhere := r.send(OpWrite, 0, testRegion, true)
	r.endAll()
	r.want(flush, ErrReadOnly)
	r.want(fua, ErrReadOnly)
	r.want(elsewhere, nil)
	if r.core.Complete() || r.core.DurableHydrated() != 7 {
		t.Errorf("one mark is not durable: complete %t, %d regions durable", r.core.Complete(), r.core.DurableHydrated())
	}
}

// TestTakenOverInDoubt: when nobody knows which marks are durable none is. FLUSH and FUA fail,
// everything stays visible, and a Repair ends it.
func TestTakenOverInDoubt(t *testing.T) {
	r := newRig(t, 8, 2)
	r.hydrate(0, 8)
	r.takeOver(Config{Uncommitted: bitmap.NewDelta(1, 1), Doubt: true})
	flush, fua, plain := r.submit(OpFlush, 0, 0), r.send(OpWrite, 0, testRegion, true), r.submit(OpWrite, 0, testRegion)
	r.endAll()
	r.want(flush, ErrReadOnly)
	r.want(fua, ErrReadOnly)
	r.want(plain, nil)
	if r.core.Complete() || r.core.DurableHydrated() != 0 {
		t.Errorf("complete %t, %d regions durable", r.core.Complete(), r.core.DurableHydrated())
	}
	if err := r.core.Repair(r, r, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if !r.core.Complete() || r.core.DurableHydrated() != 8 {
		t.Errorf("after a repair: complete %t, %d regions durable", r.core.Complete(), r.core.DurableHydrated())
	}
}

// TestMetadataError: mode ro; acknowledged data stay visible, hydrated regions writable; FLUSH
// fails as marks cannot be committed (I10, H23).
func TestMetadataError(t *testing.T) {
	r := newRig(t, 8, 2)
	r.hydrate(0, 1)
	w := r.submit(OpWrite, testRegion, testRegion)
	r.endAll()
	r.want(w, nil)
	r.storeErr = errInjected
	if err := r.commit(); !errors.Is(err, errInjected) {
		t.Fatalf("commit: %v", err)
	}
	r.storeErr = nil
	read := r.submit(OpRead, 0, 3*testRegion)
	r.wantQueued(queued{what: "read dest", off: 0, length: 2 * testRegion}, queued{what: "read source", off: 2 * testRegion, length: testRegion})
	r.endAll()
	r.want(read, nil)
	through := r.submit(OpWrite, testRegion+512, 512)
	durable := r.send(OpWrite, 512, 512, true)
	r.wantQueued(queued{what: "write dest", off: testRegion + 512, length: 512},
		queued{what: "write dest", off: 512, length: 512, durable: true})
	r.endAll()
	r.want(through, nil)
	r.want(durable, nil)
	r.want(r.submit(OpFlush, 0, 0), ErrReadOnly)
	fua := r.send(OpWrite, testRegion, 512, true)
	r.endAll()
	r.want(fua, ErrReadOnly)
	r.want(r.submit(OpDiscard, 4*testRegion, testRegion), ErrReadOnly)
}

// TestReadOnlyFlush: in mode ro with nothing to commit a FLUSH still works, also two at once.
func TestReadOnlyFlush(t *testing.T) {
	r := newRig(t, 8, 2)
	r.hydrate(0, 1)
	r.core.SetMode(ReadOnly)
	r.write(0)
	first, second := r.submit(OpFlush, 0, 0), r.submit(OpFlush, 0, 0)
	r.end(nil)
	r.want(first, nil)
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	r.lane.Drain()
	r.want(second, nil)
}

// TestComplete is told from the durable map (H7).
func TestComplete(t *testing.T) {
	r := newRig(t, 4, 2)
	w := r.submit(OpWrite, 0, 4*testRegion)
	r.endAll()
	r.want(w, nil)
	if r.core.Complete() || r.core.DurableHydrated() != 0 {
		t.Fatal("complete before a commit")
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	if !r.core.Complete() || r.core.DurableHydrated() != 4 {
		t.Fatalf("not complete after the commit, %d regions durable", r.core.DurableHydrated())
	}
}

// TestPoolLeavesRoomForUsers: the background takes at most half of the pool of uncommitted marks; a
// request that finds it full waits for a commit, and for nothing else (I8, I9).
func TestPoolLeavesRoomForUsers(t *testing.T) {
	const pages, page = 8, bitmap.RegionsPerPage * testRegion
	geo, err := NewGeometry(pages*page, testRegion)
	if err != nil {
		t.Fatal(err)
	}
	regions := bitmap.New(geo.Regions(), make([]bitmap.Page, pages))
	q := &quiet{}
	core := New(Config{Geometry: geo, Map: regions, Kick: func() {}, Delta: DeltaConfig{Pages: 4}})
	lane := core.NewLane(LaneConfig{Backend: q, Wake: func() {}, Ops: 4, Buffers: copybuffers.Config{Own: [][]byte{make([]byte, testRegion)}}})
	for n, want := range []error{nil, nil, ErrCommitFirst} {
		first := uint64(n) * bitmap.RegionsPerPage
		h := &Hydration{First: first, End: first + 1, Kind: ZeroHole, Done: func(_ *Hydration, err error) {
			if !errors.Is(err, want) {
				t.Fatalf("hydration in page %d: %v, expected %v", n, err, want)
			}
		}}
		lane.Hydrate(h)
		if q.busy {
			q.busy = false
			lane.EndIO(q.token, nil)
		}
	}
	answers := 0
	discard := func(n int64) {
		lane.Submit(&Request{Op: OpDiscard, Off: n * page, Len: testRegion, End: func(_ *Request, err error) {
			if answers++; err != nil {
				t.Errorf("discard in page %d: %v", n, err)
			}
		}})
	}
	for n := range int64(3) {
		discard(3 + n)
	}
	if answers != 2 {
		t.Fatalf("%d discards answered with room for two pages", answers)
	}
	if err := core.Commit(q, q); err != nil {
		t.Fatal(err)
	}
	lane.Drain()
	if answers != 3 {
		t.Fatalf("%d discards answered after a commit", answers)
	}
}

// TestReleasePages: the memory of a page is given back by the commit that makes it durably hydrated
// throughout, once, and not while a mark in it waits for a commit or any region is missing (I9).
func TestReleasePages(t *testing.T) {
	const nr = bitmap.RegionsPerPage + 8
	r := newRig(t, nr, 2)
	mem := map[*bitmap.Page]int{}
	r.core.memory.release = func(_ uint64, p *bitmap.Page) { mem[p]++; *p = bitmap.Page{} }
	want := func(when string, pages, times int) {
		t.Helper()
		n := 0
		for _, k := range mem {
			n += k
		}
		if len(mem) != pages || n != times {
			t.Fatalf("%s: %d pages released %d times, want %d and %d", when, len(mem), n, pages, times)
		}
	}
	hydrate := func(first, end uint64) {
		r.submit(OpWrite, int64(first)*testRegion, int64(end-first)*testRegion)
		r.endAll()
	}
	commit := func() {
		t.Helper()
		if err := r.commit(); err != nil {
			t.Fatal(err)
		}
	}
	hydrate(0, bitmap.RegionsPerPage-2)
	commit()
	want("two regions short", 0, 0)
	hydrate(bitmap.RegionsPerPage-2, bitmap.RegionsPerPage-1)
	r.onFlush = func() { // while a commit of another page's marks is under way
		r.onFlush = nil
		hydrate(bitmap.RegionsPerPage-1, bitmap.RegionsPerPage)
	}
	hydrate(bitmap.RegionsPerPage, nr-1)
	commit()
	want("marked during the commit", 0, 0)
	commit()
	want("committed", 1, 1)
	hydrate(0, 8)
	hydrate(nr-1, nr)
	commit()
	want("all", 2, 2)
	if !r.core.Complete() || !r.core.Regions().AllHydrated(0, nr) || r.core.mu.active.Cap() != 0 {
		t.Errorf("complete %v, pool of %d", r.core.Complete(), r.core.mu.active.Cap())
	}
	a := r.send(OpWrite, 0, testRegion, true)
	r.endAll()
	r.want(a, nil)
}

// TestTouch: memory of the map is taken before the first claim in a page, once, and a request that
// cannot have it fails and holds nothing; hydrated regions need none.
func TestTouch(t *testing.T) {
	const page = bitmap.RegionsPerPage * int64(testRegion)
	r := newRig(t, 3*bitmap.RegionsPerPage, 2)
	r.core.memory.touched = make([]atomic.Bool, 3)
	var touched []uint64
	var fails error
	r.core.memory.touch = func(page uint64) error { touched = append(touched, page); return fails }
	write := func(off, length int64, want error) {
		t.Helper()
		a := r.submit(OpWrite, off, length)
		r.endAll()
		r.want(a, want)
	}
	write(page-testRegion, 2*testRegion, nil)
	if want := []uint64{0, 1}; !slices.Equal(touched, want) {
		t.Fatalf("touched %v by a write over two pages, want %v", touched, want)
	}
	write(testRegion, testRegion, nil)
	r.submit(OpDiscard, page, 4*testRegion)
	r.endAll()
	if want := []uint64{0, 1}; !slices.Equal(touched, want) {
		t.Fatalf("touched %v, want %v", touched, want)
	}
	fails = errBackend
	write(2*page, testRegion, errBackend)
	write(page, testRegion, nil)
	var ended error
	h := &Hydration{First: 2 * bitmap.RegionsPerPage, End: 2*bitmap.RegionsPerPage + 1, Done: func(_ *Hydration, err error) { ended = err }}
	r.lane.Hydrate(h)
	r.endAll()
	if !errors.Is(ended, errBackend) || len(r.core.mu.claims.open) != 0 || len(r.lane.pool.freeOps) != len(r.lane.pool.ops) {
		t.Errorf("hydration ended with %v; %d claims, %d of %d operations free", ended, len(r.core.mu.claims.open), len(r.lane.pool.freeOps), len(r.lane.pool.ops))
	}
	fails = nil
	write(2*page, testRegion, nil)
}
