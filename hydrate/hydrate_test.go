package hydrate

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// The tests run a real core and a hydrator over a backend that only notes what is asked of it; the
// test ends the I/O. The clock stands still unless the test moves it.

const regionSize = 4096

var errBad = errors.New("bad sector")

// errAway is of a source that does not answer at all.
var errAway = errors.New("no such device")

type asked struct {
	token       uint32
	read, zero  bool
	first, next uint64 // regions
}

type rig struct {
	t      *testing.T
	core   *clone.Core
	lane   *clone.Lane
	h      *Hydrator
	now    time.Time
	wait   time.Duration // asked of After since the last advance
	asked  []asked
	events int
}

func (r *rig) note(token uint32, off, length int64, read, zero bool) {
	r.asked = append(r.asked, asked{token, read, zero, uint64(off / regionSize), uint64((off + length) / regionSize)})
}

func (r *rig) ReadSource(token uint32, off int64, d clone.Data, _ bool) {
	r.note(token, off, d.Size(), true, false)
}
func (r *rig) ReadDest(token uint32, off int64, d clone.Data) {
	r.note(token, off, d.Size(), true, false)
}
func (r *rig) WriteDest(token uint32, off int64, d clone.Data, _ bool) {
	r.note(token, off, d.Size(), false, false)
}
func (r *rig) ZeroDest(token uint32, off, length int64, _ bool) {
	r.note(token, off, length, false, true)
}
func (r *rig) DiscardDest(token uint32, off, length int64) {
	r.note(token, off, length, false, false)
}
func (r *rig) FlushDest(token uint32)                    { r.note(token, 0, 0, false, false) }
func (r *rig) Fetch(*clone.Request, int64, []byte) error { return nil }
func (r *rig) Store(*clone.Request, int64, []byte) error { return nil }
func (r *rig) Clear(*clone.Request, int64, int64) error  { return nil }

type holes struct{ data []span } // regions that are data; all else is hole

func (h holes) NextData(off int64) (int64, error) {
	for _, d := range h.data {
		if off < int64(d.end)*regionSize {
			return max(off, int64(d.first)*regionSize), nil
		}
	}
	return 1 << 50, nil
}

func (h holes) NextHole(off int64) (int64, error) {
	for _, d := range h.data {
		if off >= int64(d.first)*regionSize && off < int64(d.end)*regionSize {
			return int64(d.end) * regionSize, nil
		}
	}
	return off, nil
}

func newRig(t *testing.T, regions uint64, s Settings, source Holes) *rig {
	return newRigOf(t, regions, s, source, 8, 4, 8)
}

// newRigOf has so many operations, and buffers of so many regions.
func newRigOf(t *testing.T, regions uint64, s Settings, source Holes, ops, nrBuffers, bufRegions int) *rig {
	geo, err := clone.NewGeometry(int64(regions)*regionSize, regionSize)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, now: time.Unix(0, 0)}
	r.core = clone.New(clone.Config{
		Geometry: geo,
		Map:      bitmap.New(regions, make([]bitmap.Page, bitmap.PagesFor(regions))),
		Kick:     func() {},
		Now:      func() time.Time { return r.now },
		Classify: func(err error) clone.ErrorClass {
			if err == errAway {
				return clone.Away
			}
			return clone.Local
		},
	})
	buffers := make([][]byte, nrBuffers)
	for i := range buffers {
		buffers[i] = make([]byte, bufRegions*regionSize)
	}
	r.lane = r.core.NewLane(clone.LaneConfig{Backend: r, Wake: func() {}, Ops: ops, Buffers: copybuffers.Config{Own: buffers}})
	r.h = New(Config{
		Core: r.core, Lane: r.lane, Holes: source, Batches: nrBuffers, Settings: s,
		Now: func() time.Time { return r.now }, After: func(d time.Duration) { r.wait = d },
		Wake: func() {}, Event: func() { r.events++ },
	})
	return r
}

// finish ends everything asked, as answer says, until nothing is asked any more.
func (r *rig) finish(answer func(asked) error) {
	r.h.Pump()
	for len(r.asked) > 0 {
		a := r.asked[0]
		r.asked = r.asked[1:]
		r.lane.EndIO(a.token, answer(a))
		r.h.Pump()
	}
}

func good(asked) error { return nil }

var on = Settings{Enabled: true, Threshold: 32, Batch: 8}

func TestCopiesEverythingInBatches(t *testing.T) {
	r := newRig(t, 100, on, nil)
	r.h.Pump()
	if len(r.asked) != 4 || r.h.Status().InFlight != 32 {
		t.Fatalf("threshold 32 and batch 8 asked %v", r.asked)
	}
	for i, a := range r.asked {
		if !a.read || a.first != uint64(i)*8 || a.next != uint64(i+1)*8 {
			t.Errorf("copy %d is %+v", i, a)
		}
	}
	r.finish(good)
	if st := r.h.Status(); st.State != Done || r.core.Regions().NrHydrated() != 100 {
		t.Errorf("ended %v with %d regions", st.State, r.core.Regions().NrHydrated())
	}
}

func TestThresholdZeroAndSwitchStop(t *testing.T) {
	for _, s := range []Settings{{Enabled: true, Batch: 1}, {Threshold: 8, Batch: 1}} {
		r := newRig(t, 10, s, nil)
		r.h.Pump()
		if st := r.h.Status(); st.State != Paused || len(r.asked) != 0 {
			t.Errorf("%+v: %v, asked %v", s, st.State, r.asked)
		}
		r.h.Configure(on)
		r.finish(good)
		if r.h.Status().State != Done {
			t.Errorf("%+v: not done after it was switched on", s)
		}
	}
}

func TestBatchIsCutToThreshold(t *testing.T) {
	r := newRig(t, 10, Settings{Enabled: true, Threshold: 3, Batch: 100}, nil)
	r.h.Pump()
	if len(r.asked) != 1 || r.asked[0].next-r.asked[0].first != 3 {
		t.Errorf("asked %v", r.asked)
	}
}

// TestBatchIsWholeRequests of the source: the last one is not smaller than the others, there are no
// more than the source takes, and a small rest of the threshold is no batch.
func TestBatchIsWholeRequests(t *testing.T) {
	for _, c := range []struct {
		request int64
		depth   int
		want    uint64 // regions
	}{
		{0, 0, 8}, {1 << 20, 0, 8}, {8 * regionSize, 1, 8}, {7 * regionSize, 0, 7}, {3 * regionSize, 0, 6}, {3 * regionSize, 32, 6},
		{3 * regionSize, 1, 3}, {3*regionSize - 512, 0, 5}, {3*regionSize - 512, 1, 2}, {512, 0, 8}, {512, 1, 1},
	} {
		r := newRig(t, 100, on, nil)
		r.h.quota.request, r.h.quota.depth = c.request, c.depth
		r.h.Pump()
		if len(r.asked) != 4 {
			t.Errorf("%d requests of %d: asked %v", c.depth, c.request, r.asked)
		}
		for _, a := range r.asked {
			if a.next-a.first != c.want {
				t.Errorf("%d requests of %d: %d regions, want %d", c.depth, c.request, a.next-a.first, c.want)
			}
		}
	}
	r := newRig(t, 100, Settings{Enabled: true, Threshold: 11, Batch: 8}, nil)
	r.h.Pump()
	if len(r.asked) != 1 {
		t.Errorf("asked %v for a rest of 3", r.asked)
	}
	r.finish(good)
	if st := r.h.Status(); st.State != Done {
		t.Errorf("ended %v", st.State)
	}
}

func TestHolesAreMarkedAndNotRead(t *testing.T) {
	r := newRig(t, 100, on, holes{data: []span{{10, 13}, {90, 91}}})
	read := uint64(0)
	r.finish(func(a asked) error {
		if a.read {
			read += a.next - a.first
		}
		return nil
	})
	if read != 4 || r.h.Status().State != Done {
		t.Errorf("%d regions read, state %v", read, r.h.Status().State)
	}
}

// TestBadRegionHurtsOnlyItself: I11, and I12 for the back-off and its limit.
func TestBadRegionHurtsOnlyItself(t *testing.T) {
	r := newRig(t, 100, on, nil)
	reads := 0
	answer := func(a asked) error {
		if a.read && a.first <= 42 && 42 < a.next {
			reads++
			return errBad
		}
		return nil
	}
	r.finish(answer)
	st := r.h.Status()
	if st.State != Hydrating || r.core.Regions().NrHydrated() != 99 || !errors.Is(st.LastError, errBad) {
		t.Fatalf("status %+v, %d hydrated", st, r.core.Regions().NrHydrated())
	}
	if want := []BadRange{{42, 43, 1}}; !slices.Equal(st.Bad, want) {
		t.Errorf("bad ranges %v, want %v", st.Bad, want)
	}
	if r.wait <= 0 {
		t.Error("no next try")
	}
	for range 100 { // far more time than all back-offs together
		r.now = r.now.Add(time.Minute)
		r.finish(answer)
	}
	if reads != 1+defaultRetries { // the batch, then the region alone
		t.Errorf("%d reads of the bad region, want %d", reads, 1+defaultRetries)
	}
	if st := r.h.Status(); st.State != Stalled {
		t.Errorf("after the last try: %+v", st)
	}
	r.h.Resume()
	r.finish(good)
	if st := r.h.Status(); st.State != Done || len(st.Bad) != 0 || st.LastError != nil {
		t.Errorf("after repair and resume: %+v", st)
	}
}

// TestSourceSaysAway: an error that says that the whole source is away stalls at once; one region
// is tried at a time, and with its success all goes on.
func TestSourceSaysAway(t *testing.T) {
	r := newRig(t, 1000, on, nil)
	reads := 0
	r.finish(func(a asked) error {
		if a.read {
			reads++
			return errAway
		}
		return nil
	})
	if st := r.h.Status(); st.State != Stalled || st.LastError != errAway {
		t.Fatalf("status %+v", st)
	}
	if reads > 5 { // the batches in flight, and the first region alone
		t.Errorf("%d reads of a source that is away", reads)
	}
	r.now = r.now.Add(time.Minute)
	r.finish(good)
	if st := r.h.Status(); st.State != Done || len(st.Bad) != 0 {
		t.Errorf("after the source has come back: %+v", st)
	}
}

// TestRetriesAreAlone: a device that fails a request whole fails all reads that the kernel has
// merged into it, which are those of neighbours in flight together. Only the bad region stays bad
// all the same (I11).
func TestRetriesAreAlone(t *testing.T) {
	r := newRig(t, 100, on, nil)
	merged := func(a asked) bool { // into the one that touches region 42
		first, next := a.first, a.next
		for range r.asked {
			for _, b := range r.asked {
				if b.read && b.first <= next && first <= b.next {
					first, next = min(first, b.first), max(next, b.next)
				}
			}
		}
		return first <= 42 && 42 < next
	}
	for range 100 {
		r.h.Pump()
		fail := map[uint32]bool{}
		for _, a := range r.asked {
			fail[a.token] = a.read && merged(a)
		}
		r.finish(func(a asked) error {
			if fail[a.token] || a.read && merged(a) {
				return errBad
			}
			return nil
		})
		r.now = r.now.Add(time.Minute)
	}
	if st := r.h.Status(); len(st.Bad) != 1 || st.Bad[0] != (BadRange{42, 43, defaultRetries}) {
		t.Errorf("bad ranges %v, want region 42 alone", st.Bad)
	}
}

// TestSourceAway: a source of which nothing can be read costs a bounded number of tries.
func TestSourceAway(t *testing.T) {
	r := newRig(t, 100000, on, nil)
	reads := 0
	fail := func(asked) error { reads++; return errBad }
	r.finish(fail)
	if reads > 2*awayAfter || r.h.Status().State != Stalled {
		t.Fatalf("%d reads at once, %v", reads, r.h.Status().State)
	}
	before := reads
	r.now = r.now.Add(firstBackoff)
	r.finish(fail)
	if n := reads - before; n == 0 || n > 2*awayAfter {
		t.Errorf("%d reads after the first back-off", n)
	}
	r.now = r.now.Add(lastBackoff)
	r.finish(good)
	if r.h.Status().State != Done {
		t.Errorf("the source is back: %+v", r.h.Status())
	}
}

// TestHealedByUser: a bad region that a user writes whole is bad no longer.
func TestHealedByUser(t *testing.T) {
	r := newRig(t, 10, on, nil)
	r.finish(func(a asked) error {
		if a.read && a.first <= 4 && 4 < a.next {
			return errBad
		}
		return nil
	})
	req := clone.Request{Op: clone.OpWrite, Off: 4 * regionSize, Len: regionSize, End: func(_ *clone.Request, err error) {
		if err != nil {
			t.Error(err)
		}
	}}
	r.lane.Submit(&req)
	r.finish(good)
	if st := r.h.Status(); st.State != Done {
		t.Errorf("%+v", st)
	}
}

// TestYield: among users' requests there is one small batch at a time, but there is one (I12).
func TestYield(t *testing.T) {
	r := newRig(t, 1000, on, nil)
	req := clone.Request{Op: clone.OpRead, Off: 999 * regionSize, Len: regionSize, End: func(*clone.Request, error) {}}
	r.lane.Submit(&req)
	user := r.asked[0]
	r.asked = nil
	r.h.Pump()
	r.h.Pump()
	if len(r.asked) != 1 || r.h.Status().State != Yielding || r.wait == 0 {
		t.Fatalf("asked %v in state %v", r.asked, r.h.Status().State)
	}
	r.lane.EndIO(user.token, nil)
	r.h.Pump()
	if len(r.asked) != 1 || r.h.Status().State != Yielding {
		t.Errorf("the user may read on, asked %v", r.asked)
	}
	r.now = r.now.Add(lingering)
	r.h.Pump()
	if len(r.asked) != 4 {
		t.Errorf("the user is gone, asked %v", r.asked)
	}
}

// TestYieldBegins with a small batch, also when the first look at users comes after reads of
// theirs.
func TestYieldBegins(t *testing.T) {
	r := newRig(t, 1000, on, nil)
	req := clone.Request{Op: clone.OpRead, Off: 999 * regionSize, Len: regionSize, End: func(*clone.Request, error) {}}
	r.lane.Submit(&req)
	r.lane.EndIO(r.asked[0].token, nil)
	r.asked = nil
	r.h.Pump()
	if len(r.asked) != 1 || r.asked[0].next-r.asked[0].first != on.Batch {
		t.Errorf("asked %v", r.asked)
	}
}

func TestReadOnlyStops(t *testing.T) {
	r := newRig(t, 10, on, nil)
	r.core.SetMode(clone.ReadOnly)
	r.h.Pump()
	if len(r.asked) != 0 || r.h.Status().State != Paused {
		t.Errorf("asked %v, %v", r.asked, r.h.Status().State)
	}
}
