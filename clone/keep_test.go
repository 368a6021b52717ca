package clone

import (
	"bytes"
	"errors"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

const region = int64(testRegion)

// TestReadThrough: what a READ gets from the source is written to the destination after the READ
// was answered; the next READ comes from there.
func TestReadThrough(t *testing.T) {
	r := newRig(t, 8, 4)
	r.core.SetReadThrough(true)
	a := r.submit(OpRead, region, 2*region)
	r.wantQueued(queued{what: "read source", off: region, length: 2 * region})
	r.end(nil)
	r.want(a, nil)
	r.wantQueued(queued{what: "write dest", off: region, length: 2 * region})
	b := r.submit(OpRead, region, region)
	r.wantQueued(r.ios[0], queued{what: "read source", off: region, length: region}) // no mark before the write has ended (I3)
	r.end(nil)
	if n := r.core.Regions().NrHydrated(); n != 2 {
		t.Fatalf("%d regions hydrated, want 2", n)
	}
	if !bytes.Equal(r.dest[region:3*region], bytes.Repeat([]byte{'s'}, int(2*region))) || r.stored != 2*region {
		t.Error("other bytes in the destination than the READ got")
	}
	r.end(nil)
	r.want(b, nil)
	r.wantQueued()
	r.submit(OpRead, region, 2*region)
	r.wantQueued(queued{what: "read dest", off: region, length: 2 * region})
	if s := r.core.Stats(); s.Copied != 2*region || s.SourceRead != 3*region {
		t.Errorf("copied %d and read %d bytes", s.Copied, s.SourceRead)
	}
}

// TestReadThroughKeepsWholeRegions: what is covered in part is left, and so is all of it while the
// switch is off, in mode ro, when the READ fails.
func TestReadThroughKeepsWholeRegions(t *testing.T) {
	for _, c := range []struct {
		name        string
		off, length int64
		set         func(*Core)
		err         error
		want        []queued
	}{
		{"ragged", 512, 3 * region, nil, nil, []queued{{what: "write dest", off: region, length: 2 * region}}},
		{"inside a region", 512, 512, nil, nil, nil},
		{"more than a buffer", 0, 6 * region, nil, nil, nil},
		{"off", 0, region, func(c *Core) { c.SetReadThrough(false) }, nil, nil},
		{"ro", 0, region, func(c *Core) { c.SetMode(ReadOnly) }, nil, nil},
		{"failed", 0, region, nil, errBackend, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 8, 4)
			r.core.SetReadThrough(true)
			if c.set != nil {
				c.set(r.core)
			}
			a := r.submit(OpRead, c.off, c.length)
			if c.err != nil {
				r.failSource(c.err)
			} else {
				r.end(nil)
			}
			r.want(a, c.err)
			r.wantQueued(c.want...)
		})
	}
}

// TestReadThroughOfFailedRead: a READ of which one part has failed stays failed when another one
// ends well and is kept.
func TestReadThroughOfFailedRead(t *testing.T) {
	r := newRig(t, 8, 4)
	r.hydrate(2, 3)
	r.core.SetReadThrough(true)
	a := r.submit(OpRead, region, 2*region)
	source, dest := queued{what: "read source", off: region, length: region}, queued{what: "read dest", off: 2 * region, length: region}
	r.wantQueued(source, dest)
	r.ios[0], r.ios[1] = r.ios[1], r.ios[0]
	r.end(errBackend)
	r.end(nil)
	r.want(a, errBackend)
}

// TestReadThroughLeavesRoom: half of operations and buffers stay with users, and a failed write of
// what is kept fails nothing and marks nothing.
func TestReadThroughLeavesRoom(t *testing.T) {
	r := newRig(t, 8, 4)
	r.core.SetReadThrough(true)
	for i := range int64(4) {
		a := r.submit(OpRead, i*region, region)
		last := len(r.ios) - 1
		r.ios[0], r.ios[last] = r.ios[last], r.ios[0]
		r.end(nil)
		r.want(a, nil)
	}
	if len(r.ios) != 2 || r.lane.pool.buffers.Whole() != 2 {
		t.Fatalf("%v queued, %d buffers left of 4", r.ios, r.lane.pool.buffers.Whole())
	}
	r.end(errBackend)
	r.end(errBackend)
	if n := r.core.Regions().NrHydrated(); n != 0 || r.lane.pool.buffers.Whole() != 4 || len(r.lane.pool.freeOps) != len(r.lane.pool.ops) {
		t.Errorf("%d regions hydrated, %d buffers and %d operations free", n, r.lane.pool.buffers.Whole(), len(r.lane.pool.freeOps))
	}
}

// TestReadThroughMeetsWrite: a WRITE that claimed meanwhile is left alone, one that comes later
// waits for the write of what is kept (I3).
func TestReadThroughMeetsWrite(t *testing.T) {
	r := newRig(t, 8, 4)
	r.core.SetReadThrough(true)
	r.submit(OpRead, 0, 2*region)
	early := r.submit(OpWrite, 0, region)
	r.end(nil) // the READ
	r.wantQueued(queued{what: "write dest", off: 0, length: region}, queued{what: "write dest", off: region, length: region})
	late := r.submit(OpWrite, region, region)
	r.end(nil)
	r.want(early, nil)
	r.wantWaiting(late)
	r.end(nil)
	r.wantQueued(queued{what: "write dest", off: region, length: region})
	r.end(nil)
	r.want(late, nil)
}

// TestPassdown: a DISCARD goes down where nothing of the region is in the destination yet, before
// the mark; where the region is hydrated the zeroing may give up the space. An error of what goes
// down is no matter (H14).
func TestPassdown(t *testing.T) {
	r := newRig(t, 8, 4)
	r.hydrate(2, 3)
	r.core.SetDiscardPassdown(true)
	a := r.submit(OpDiscard, 512, 5*region)
	r.wantQueued(queued{what: "discard dest", off: region, length: region})
	r.end(errBackend)
	r.wantWaiting(a)
	r.wantQueued(queued{what: "zero dest", off: 2 * region, length: region, unmap: true})
	r.end(nil)
	r.wantQueued(queued{what: "discard dest", off: 3 * region, length: 2 * region})
	if st := r.core.Regions().State(1); st != bitmap.Source {
		t.Errorf("region 1 is in state %v before the discard has ended", st)
	}
	r.end(nil)
	r.want(a, nil)
	for n := uint64(1); n < 5; n++ {
		want := bitmap.Zero
		if n == 2 {
			want = bitmap.Hydrated
		}
		if st := r.core.Regions().State(n); st != want {
			t.Errorf("region %d is in state %v, want %v", n, st, want)
		}
	}
}

// TestNoPassdown: then nothing is given up.
func TestNoPassdown(t *testing.T) {
	r := newRig(t, 8, 4)
	r.hydrate(2, 3)
	a := r.submit(OpDiscard, region, 2*region)
	r.wantQueued(queued{what: "zero dest", off: 2 * region, length: region})
	r.end(nil)
	r.want(a, nil)
}

var errBackend = errors.New("I/O error")
