package clone

import (
	"sync"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// guarded is what the core's lock guards, which is held for a few map operations, never across an
// I/O or a callback into a frontend or backend. A lane's inbox lock may be taken under it (a leaf).
// It must be held for all methods, those of the parts too, but for freeze and freezeAll, which take
// it.
type guarded struct {
	sync.Mutex
	health
	marks
	flushes
	claims claimTable
	// waiters wait for a commit that freezes after they came (H6).
	waiters requestList
}

// health is the mode, and why it is not better.
type health struct {
	mode  Mode
	shown atomic.Uint32 // a copy of mode, to be read without the lock
	// flushLost: a flush of the destination has failed. It never becomes false again.
	flushLost bool
	keep      func(Mode, bool) // Config.State, or nil
}

// setMode makes the mode m, unless it is that or worse, and says whether it did (I10).
func (h *health) setMode(m Mode) bool {
	if m <= h.mode {
		return false
	}
	h.mode = m
	h.shown.Store(uint32(m))
	h.keepState()
	return true
}

// loseFlush: a failed flush of the destination is a metadata failure. It says whether that is new.
func (h *health) loseFlush() bool {
	was := h.flushLost
	h.flushLost = true
	h.keepState()
	return h.setMode(ReadOnly) || !was
}

// heal ends mode ro. This is the only place where the mode gets better.
func (h *health) heal() bool {
	if h.mode != ReadOnly {
		return false
	}
	h.mode = ReadWrite
	h.shown.Store(uint32(ReadWrite))
	h.keepState()
	return true
}

// keepState hands the state to whoever keeps it.
func (h *health) keepState() {
	if h.keep != nil {
		h.keep(h.mode, h.flushLost)
	}
}

// marks are those since the last commit: active collects them, frozen is being committed (I4). A
// mark is recorded here before it shows in the map.
type marks struct {
	active, frozen *bitmap.Delta
	// bounded: the map has more pages than the pool, which can therefore be full.
	bounded bool
	// start is how many slots each of them had at first, and most how many it may have; want is
	// told that they run low (DeltaConfig), or nil.
	start, most int
	want        func()
	// doubt: nobody knows which marks are durable, so none counts: the metadata cannot be read
	// (Config.Doubt), or a Repair has given up the set of the commit that failed.
	doubt bool
}

// runLow has slots added before they are needed. used is how many will be.
func (m *marks) runLow(used int) {
	if m.want != nil && used > m.active.Cap()/2 && m.active.Cap() < m.most {
		m.want()
	}
}

// uncommitted says whether a mark of H in [first, end) is not durable yet.
func (m *marks) uncommitted(first, end uint64) bool {
	return m.doubt || m.active.Any(bitmap.PlaneHydrated, first, end) || m.frozen.Any(bitmap.PlaneHydrated, first, end)
}

// clean says that no mark waits for a commit.
func (m *marks) clean() bool {
	return !m.doubt && m.active.Empty() && m.frozen.Empty()
}

// nrDurable counts the regions whose mark of H is durable.
func (m *marks) nrDurable(regions *bitmap.Map) uint64 {
	if m.doubt {
		return 0
	}
	return regions.NrHydrated() - m.active.Count(bitmap.PlaneHydrated) - m.frozen.Count(bitmap.PlaneHydrated)
}

// markHydrated gives the bytes that were in state Source.
func (m *marks) markHydrated(v *view, first, end uint64) int64 {
	short := v.tailShort(first, end)
	zero := v.regions.NrZero()
	nr := v.regions.Mark(bitmap.PlaneHydrated, first, end, m.active)
	nr -= zero - v.regions.NrZero()
	return int64(nr)<<v.geo.shift - short
}

// markZero marks what is in state Source and gives its bytes; a Z under an H would only be one more
// page to commit.
func (m *marks) markZero(v *view, first, end uint64) (n int64) {
	for first < end {
		st, stop := v.regions.Run(first, end)
		if st == bitmap.Source {
			short := v.tailShort(first, stop)
			n += int64(v.regions.Mark(bitmap.PlaneZero, first, stop, m.active))<<v.geo.shift - short
		}
		first = stop
	}
	return n
}

// flushes are those of the destination: never are two in flight, nor a durable write beside one
// (Core.beginFlush).
type flushes struct {
	// flushing: a flush of the destination is in flight, a lane's or a commit's.
	flushing bool
	// flushWanted: the next commit is to flush the destination in any case.
	flushWanted bool
	// durable is how many durable writes of lanes are in flight; putOff: a commit waits for their
	// end.
	durable int
	putOff  bool
}

// committable says why a commit cannot succeed, if so. In mode ro there may still be nothing to
// commit, and then a flush is enough.
func (g *guarded) committable() error {
	switch {
	case g.flushLost:
		return ErrFlushLost
	case g.mode != ReadWrite && !g.clean():
		return ErrReadOnly
	}
	return nil
}
