package hydrate

import "github.com/ublk-clone/ublk-clone/clone"

// flight is the batches: those in flight and those that are free. All of it belongs to the lane's
// thread.
type flight struct {
	free   []*batch
	flying []*batch
	inWork uint64 // regions in flight
	// retrying: a region that has failed before is in flight.
	retrying bool
}

// batch is one Hydration in flight.
type batch struct {
	clone.Hydration
	at    int // place in flying
	retry bool
}

// start puts a free batch, of which there is one, into flight.
func (f *flight) start(w work) *batch {
	b := f.free[len(f.free)-1]
	b.First, b.End, b.Kind = w.first, w.end, w.kind
	f.free = f.free[:len(f.free)-1]
	b.retry, b.Alone = w.retry, w.retry
	f.retrying = f.retrying || w.retry
	b.at = len(f.flying)
	f.flying = append(f.flying, b)
	f.inWork += w.end - w.first
	return b
}

// land takes a batch out of flight.
func (f *flight) land(b *batch) {
	last := f.flying[len(f.flying)-1]
	f.flying[b.at] = last
	last.at = b.at
	f.flying = f.flying[:len(f.flying)-1]
	f.inWork -= b.End - b.First
	f.retrying = f.retrying && !b.retry
	f.free = append(f.free, b)
}

// find gives a batch in flight that has some of the regions [first, end), or nil.
func (f *flight) find(first, end uint64) *batch {
	for _, b := range f.flying {
		if b.First < end && first < b.End {
			return b
		}
	}
	return nil
}

// before gives the first region in (r, stop] that is in flight, or stop.
func (f *flight) before(r, stop uint64) uint64 {
	for _, b := range f.flying {
		if b.First > r {
			stop = min(stop, b.First)
		}
	}
	return stop
}
