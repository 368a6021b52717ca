package clone

import (
	"bytes"
	"errors"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// TestIOCounts: what a request costs in backend I/O (requests are not split at regions; a partial
// write is one read and one write).
func TestIOCounts(t *testing.T) {
	const R = testRegion
	for _, c := range []struct {
		name        string
		op          Op
		off, length int64
		want        [][]queued // one round each
	}{
		{"READ of the source, several regions", OpRead, 512, 5 * R, [][]queued{{{what: "read source", off: 512, length: 5 * R}}}},
		{"WRITE of whole regions", OpWrite, R, 2 * R, [][]queued{{{what: "write dest", off: R, length: 2 * R}}}},
		{"WRITE of whole regions and the tail", OpWrite, 6 * R, 2 * R, [][]queued{{{what: "write dest", off: 6 * R, length: 2 * R}}}},
		{"WRITE inside a region", OpWrite, R + 512, 512, [][]queued{
			{{what: "read source", off: R, length: R}}, {{what: "write dest", off: R, length: R}}}},
		{"WRITE from a region's start", OpWrite, R, 512, [][]queued{
			{{what: "read source", off: R + 512, length: R - 512}}, {{what: "write dest", off: R, length: R}}}},
		{"WRITE to a region's end", OpWrite, 2*R - 512, 512, [][]queued{
			{{what: "read source", off: R, length: R - 512}}, {{what: "write dest", off: R, length: R}}}},
		{"WRITE across regions", OpWrite, R + 512, 2 * R, [][]queued{
			{{what: "read source", off: R, length: 3 * R}}, {{what: "write dest", off: R, length: 3 * R}}}},
		{"WRITE larger than a buffer", OpWrite, R + 512, 5 * R, [][]queued{
			{{what: "read source", off: R, length: 512}}, {{what: "write dest", off: R, length: 512}},
			{{what: "write dest", off: R + 512, length: 5 * R}},
			{{what: "read source", off: 6*R + 512, length: R - 512}}, {{what: "write dest", off: 6*R + 512, length: R - 512}}}},
		{"DISCARD of the source", OpDiscard, 512, 4 * R, nil},
		{"WRITE_ZEROES of the source", OpWriteZeroes, R, 4 * R, nil},
		{"WRITE_ZEROES inside a region", OpWriteZeroes, 512, 512, [][]queued{
			{{what: "read source", off: 0, length: R}}, {{what: "write dest", off: 0, length: R}}}},
		{"FLUSH of nothing", OpFlush, 0, 0, [][]queued{{{what: "flush dest"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 8, 2)
			a := r.submit(c.op, c.off, c.length)
			for _, round := range c.want {
				r.wantQueued(round...)
				r.end(nil)
			}
			r.wantQueued()
			r.want(a, nil)
		})
	}
}

// TestHydratedIO: hydrated regions need one I/O, however many they are, and a FUA whose marks are
// durable is one durable write.
func TestHydratedIO(t *testing.T) {
	const R = testRegion
	for _, c := range []struct {
		op   Op
		fua  bool
		want queued
	}{
		{OpRead, false, queued{what: "read dest", off: 512, length: 5 * R}},
		{OpWrite, false, queued{what: "write dest", off: 512, length: 5 * R}},
		{OpWrite, true, queued{what: "write dest", off: 512, length: 5 * R, durable: true}},
		{OpWriteZeroes, false, queued{what: "zero dest", off: 512, length: 5 * R, unmap: true}},
		{OpDiscard, false, queued{what: "zero dest", off: R, length: 4 * R}},
	} {
		r := newRig(t, 8, 2)
		r.hydrate(0, 8)
		a := r.send(c.op, 512, 5*R, c.fua)
		r.wantQueued(c.want)
		r.end(nil)
		r.wantQueued()
		r.want(a, nil)
	}
}

// TestReadCutByState: one part for each run of a state, none for zeros.
func TestReadCutByState(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	r.hydrate(2, 4)
	r.want(r.submit(OpDiscard, 4*R, R), nil)
	a := r.submit(OpRead, 0, 8*R)
	r.wantQueued(queued{what: "read source", off: 0, length: 2 * R}, queued{what: "read dest", off: 2 * R, length: 2 * R},
		queued{what: "read source", off: 5 * R, length: 3 * R})
	r.endAll()
	r.want(a, nil)
}

// TestNobodyWaitsForBackgroundRead: a WRITE to a region that is being read in the background does
// its own work at once, and the background leaves the region out (I8).
func TestNobodyWaitsForBackgroundRead(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	var ended []error
	h := &Hydration{First: 1, End: 4, Done: func(_ *Hydration, err error) { ended = append(ended, err) }}
	if !r.lane.Hydrate(h) {
		t.Fatal("no room for a hydration")
	}
	r.wantQueued(queued{what: "read source", off: R, length: 3 * R})
	early := r.ios[0]
	r.ios = r.ios[:0]
	w := r.submit(OpWrite, 2*R, R)
	z := r.submit(OpDiscard, 3*R, R)
	r.want(z, nil)
	r.endAll()
	r.want(w, nil)
	r.ios = append(r.ios, early)
	r.end(nil)
	r.wantQueued(queued{what: "write dest", off: R, length: R})
	r.end(nil)
	if len(ended) != 1 || ended[0] != nil {
		t.Fatalf("hydration ended with %v", ended)
	}
	r.wantStates(bitmap.Source, bitmap.Hydrated, bitmap.Hydrated, bitmap.Zero, bitmap.Source)
	if want := bytes.Repeat([]byte{'w'}, R); !bytes.Equal(r.dest[2*R:3*R], want) {
		t.Fatal("the background wrote over a WRITE")
	}
}

func (r *rig) wantStates(want ...bitmap.State) {
	r.t.Helper()
	for i, w := range want {
		if got := r.core.Regions().State(uint64(i)); got != w {
			r.t.Errorf("region %d is %v, expected %v", i, got, w)
		}
	}
}

// TestClaimWaits: who meets a claim waits for its end and looks again; when the work of the claim
// has failed, who waited does its own (H15, I11).
func TestClaimWaits(t *testing.T) {
	for _, fail := range []error{nil, errInjected} {
		const R = testRegion
		r := newRig(t, 8, 2)
		first := r.submit(OpWrite, R+512, 512)
		second := r.submit(OpWrite, R+1024, 512)
		r.wantQueued(queued{what: "read source", off: R, length: R})
		r.end(nil)
		r.wantQueued(queued{what: "write dest", off: R, length: R})
		r.wantWaiting(second)
		r.end(fail)
		r.want(first, fail)
		if fail == nil {
			r.wantQueued(queued{what: "write dest", off: R + 1024, length: 512})
		} else {
			r.wantQueued(queued{what: "read source", off: R, length: R})
		}
		r.endAll()
		r.want(second, nil)
	}
}

// TestMergeNarrows: when the wide read fails, the edges are read alone, and only a failure of bytes
// that are needed fails the WRITE (I11).
func TestMergeNarrows(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	a := r.submit(OpWrite, 512, 3*R)
	r.wantQueued(queued{what: "read source", off: 0, length: 4 * R})
	r.end(errInjected)
	r.wantQueued(queued{what: "read source", off: 0, length: 512})
	r.end(nil)
	r.wantQueued(queued{what: "read source", off: 3*R + 512, length: R - 512})
	r.end(nil)
	r.wantQueued(queued{what: "write dest", off: 0, length: 4 * R})
	r.end(nil)
	r.want(a, nil)
	want := bytes.Repeat([]byte{'s'}, 4*R)
	copy(want[512:], bytes.Repeat([]byte{'w'}, 3*R))
	if !bytes.Equal(r.dest[:4*R], want) {
		t.Fatal("merged wrongly")
	}

	r = newRig(t, 8, 2)
	a = r.submit(OpWrite, 512, 3*R)
	r.end(errInjected)
	r.failSource(errInjected)
	r.wantQueued()
	r.want(a, errInjected)
	r.wantStates(bitmap.Source, bitmap.Source, bitmap.Source, bitmap.Source)
}

// TestFailedReadLooksAgain: a failed read of the source is no failure once the region is hydrated
// (I11).
func TestFailedReadLooksAgain(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	a := r.submit(OpRead, 0, 2*R)
	read := r.ios[0]
	r.ios = r.ios[:0]
	w := r.submit(OpWrite, R, R)
	r.endAll()
	r.want(w, nil)
	r.ios = append(r.ios, read)
	r.end(errInjected)
	r.wantQueued(queued{what: "read source", off: 0, length: R})
	r.end(nil)
	r.wantQueued(queued{what: "read dest", off: R, length: R})
	r.end(nil)
	r.want(a, nil)

	b := r.submit(OpRead, 3*R, R)
	r.failSource(errInjected)
	r.wantQueued()
	r.want(b, errInjected)
}

// TestStarvation: who finds no buffer waits holding nothing, and is started by Drain when one is
// free.
func TestStarvation(t *testing.T) {
	r := newRig(t, 64, 1)
	var all []*answered
	for i := range int64(8) {
		all = append(all, r.submit(OpWrite, 4*i*testRegion+512, 512))
	}
	if len(r.ios) != 1 {
		t.Fatalf("%d I/Os queued with one buffer", len(r.ios))
	}
	r.endAll()
	for _, a := range all {
		r.want(a, nil)
	}
}

// TestStarvedOperations: 16 operations, 40 requests.
func TestStarvedOperations(t *testing.T) {
	r := newRig(t, 64, 1)
	r.hydrate(0, 64)
	var all []*answered
	for i := range int64(40) {
		all = append(all, r.submit(OpWrite, i*testRegion, 512))
	}
	if len(r.ios) != 16 {
		t.Fatalf("%d I/Os queued with 16 operations", len(r.ios))
	}
	r.endAll()
	for _, a := range all {
		r.want(a, nil)
	}
	if n := r.core.UserInFlight(); n != 0 {
		t.Fatalf("%d requests in flight at the end", n)
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t, 8, 1)
	r.want(r.submit(OpRead, 8*testRegion, 512), ErrRange)
	r.want(r.submit(OpWrite, 0, 0), ErrRange)
	r.want(r.submit(OpDiscard, -512, 1024), ErrRange)
	r.want(r.submit(Op(99), 0, 512), ErrOp)
	r.want(r.submit(OpDiscard, 512, testRegion), nil) // covers no region (H13)
	r.wantQueued()
}

// TestStats: what left state Source, by what made it leave.
func TestStats(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	for _, a := range []*answered{
		r.submit(OpWrite, 512, 2*R), // two edges, one region whole
		r.submit(OpDiscard, 3*R, 2*R),
		r.submit(OpRead, 5*R, R),
	} {
		r.endAll()
		r.want(a, nil)
	}
	h := &Hydration{First: 5, End: 7, Done: func(*Hydration, error) {}}
	r.lane.Hydrate(h)
	r.endAll()
	want := Stats{Copied: 2*R + 2*R, Written: R, Discarded: 2 * R, SourceRead: 3*R + R + 2*R, ReadBytes: R, WriteBytes: 2 * R}
	want.Ops[OpRead], want.Ops[OpWrite], want.Ops[OpDiscard] = 1, 1, 1
	if got := r.core.Stats(); got != want {
		t.Fatalf("got %+v\nwant %+v", got, want)
	}
}

// TestHole: zeros are written to regions in state Source that are nobody's, and counted as
// discarded.
func TestHole(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	r.hydrate(1, 2)
	w := r.submit(OpWrite, 3*R+512, 512)
	var ended error = errBackend
	h := &Hydration{First: 0, End: 5, Kind: ZeroHole, Done: func(_ *Hydration, err error) { ended = err }}
	r.lane.Hydrate(h)
	r.wantQueued(queued{what: "read source", off: 3 * R, length: R}, queued{what: "zero dest", off: 0, length: R})
	r.endAll()
	r.want(w, nil)
	r.wantStates(bitmap.Hydrated, bitmap.Hydrated, bitmap.Hydrated, bitmap.Hydrated, bitmap.Hydrated, bitmap.Source)
	if s := r.core.Stats(); ended != nil || s.Discarded != 3*R || s.SourceRead != R {
		t.Errorf("ended with %v, %+v", ended, s)
	}
	r.core.SetMode(ReadOnly)
	h.First, h.End = 5, 6
	if r.lane.Hydrate(h); !errors.Is(ended, ErrReadOnly) {
		t.Errorf("in mode ro it ended with %v", ended)
	}
}
