package clone

import (
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// TestReadAgain: a READ or a partial WRITE whose read of the source has failed reads it once more,
// alone, and fails with the error of the last try only.
func TestReadAgain(t *testing.T) {
	const R = testRegion
	for _, op := range []Op{OpRead, OpWrite} {
		for failures := 1; failures <= sourceTries+1; failures++ {
			r := newRig(t, 8, 2)
			a := r.submit(op, R+512, R-512)
			want := queued{what: "read source", off: R, length: 512}
			if op == OpRead {
				want.off, want.length = R+512, R-512
			}
			for range failures {
				r.wantQueued(want)
				r.wantWaiting(a)
				r.end(errInjected)
				want.alone = true
			}
			if failures > sourceTries {
				r.want(a, errInjected)
				r.wantStates(bitmap.Source, bitmap.Source)
			} else {
				r.wantQueued(want)
				r.endAll()
				r.want(a, nil)
			}
			r.wantNothingHeld()
		}
	}
}

// TestReadAgainLarge: so does each piece of a copy, which has its own tries.
func TestReadAgainLarge(t *testing.T) {
	r := newRigOf(t, 1<<20, 8*4*testRegion, 2) // two pieces of a buffer each, and the rest
	a := r.submit(OpWrite, r.core.geo.RegionSize()-512, 512)
	for len(r.ios) > 0 {
		if r.ios[0].what == "read source" {
			for range sourceTries {
				r.end(errInjected)
			}
		}
		r.end(nil)
	}
	r.want(a, nil)
	r.wantNothingHeld()
}

// TestReadAgainOneByOne: of many reads that have failed one is tried again at a time, in order.
func TestReadAgainOneByOne(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	var all []*answered
	for i := range int64(3) {
		all = append(all, r.submit(OpRead, i*R, R))
	}
	for range all {
		r.end(errInjected)
	}
	r.wantQueued(queued{what: "read source", off: 0, length: R, alone: true})
	r.end(errInjected) // goes to the end of the line
	r.wantQueued(queued{what: "read source", off: R, length: R, alone: true})
	r.end(nil)
	r.wantQueued(queued{what: "read source", off: 2 * R, length: R, alone: true})
	r.end(nil)
	r.wantQueued(queued{what: "read source", off: 0, length: R, alone: true})
	r.wantWaiting(all[0])
	r.end(errInjected)
	r.want(all[0], errInjected)
	r.want(all[1], nil)
	r.want(all[2], nil)
	r.wantNothingHeld()
}

// TestReadAgainByTheMap: what was hydrated while a read waited for its turn comes from the
// destination.
func TestReadAgainByTheMap(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	a, b := r.submit(OpRead, 0, R), r.submit(OpRead, R, R)
	r.end(errInjected)
	r.end(errInjected)
	alone := r.ios[0]
	r.ios = r.ios[:0]
	r.hydrate(1, 2)
	r.ios = append(r.ios, alone)
	r.end(nil)
	r.want(a, nil)
	r.wantQueued(queued{what: "read dest", off: R, length: R})
	r.end(nil)
	r.want(b, nil)
	r.wantNothingHeld()
}

// TestReadAgainAway: when the source as a whole is away, nothing is tried again, nor read in
// another way.
func TestReadAgainAway(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	r.classify = func(error) ErrorClass { return Away }
	a, b := r.submit(OpRead, 0, R), r.submit(OpWrite, R+512, R)
	r.end(errInjected)
	r.end(errInjected)
	r.wantQueued()
	r.want(a, errInjected)
	r.want(b, errInjected)
	r.wantNothingHeld()
}

// TestReadAgainLimit: what has waited for its turn for too long fails without another try.
func TestReadAgainLimit(t *testing.T) {
	const R = testRegion
	r := newRig(t, 8, 2)
	a, b := r.submit(OpRead, 0, R), r.submit(OpRead, R, R)
	r.end(errInjected)
	r.end(errInjected)
	r.now = r.now.Add(againLimit + time.Nanosecond)
	r.end(errInjected)
	r.wantQueued()
	r.want(a, errInjected)
	r.want(b, errInjected)
	r.wantNothingHeld()
}

// TestFailedDurableWrite: a durable write that fails is a flush that failed, unless there was no
// space for it.
func TestFailedDurableWrite(t *testing.T) {
	for _, class := range []ErrorClass{Local, Away, Full} {
		r := newRig(t, 8, 2)
		r.classify = func(error) ErrorClass { return class }
		r.hydrate(0, 2)
		a := r.send(OpWrite, 0, testRegion, true)
		r.wantQueued(queued{what: "write dest", length: testRegion, durable: true})
		r.end(errInjected)
		r.want(a, errInjected)
		lost := class != Full
		if r.core.FlushLost() != lost || (r.core.Mode() == ReadOnly) != lost {
			t.Errorf("class %d: flush lost %t, mode %v", class, r.core.FlushLost(), r.core.Mode())
		}
		f := r.submit(OpFlush, 0, 0)
		if lost {
			r.want(f, ErrFlushLost)
		} else {
			r.endAll()
			r.want(f, nil)
		}
		r.wantNothingHeld()
	}
}

// TestDurableWriteAndFlush: the two are never in flight together, and neither keeps the other
// waiting for ever.
func TestDurableWriteAndFlush(t *testing.T) {
	r := newRig(t, 8, 2)
	r.hydrate(0, 4)
	first := r.send(OpWrite, 0, testRegion, true)
	f := r.submit(OpFlush, 0, 0)
	if err := r.commit(); err != ErrCommitPutOff {
		t.Fatalf("commit beside a durable write: %v", err)
	}
	second := r.send(OpWrite, testRegion, testRegion, true)
	r.wantQueued(queued{what: "write dest", length: testRegion, durable: true}, queued{what: "write dest", off: testRegion, length: testRegion})
	kicks := r.kicks
	r.end(nil)
	r.want(first, nil)
	r.wantWaiting(f)
	if r.kicks == kicks {
		t.Fatal("the end of the durable write has not asked for the commit that it put off")
	}
	r.end(nil)
	r.onFlush = func() { // a FUA meanwhile is a plain write that waits for the next commit
		r.send(OpWrite, 2*testRegion, testRegion, true)
		r.wantQueued(queued{what: "write dest", off: 2 * testRegion, length: testRegion})
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	r.lane.Drain()
	r.want(f, nil)
	r.want(second, nil)
}
