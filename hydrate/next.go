package hydrate

import (
	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
)

// work is the regions [first, end) and what is to be done with them.
type work struct {
	span
	kind clone.HydrationKind
	// retry: it has failed before, alone or in a batch.
	retry bool
}

// next chooses the regions of the next batch: what was split off first, then from the cursor on, then
// once more from the start. At most copyMax regions to copy, or zeroMax to zero.
func (h *Hydrator) next(copyMax, zeroMax uint64) (w work, ok bool) {
	if h.bad.away() {
		return h.probe()
	}
	if w, ok = h.nextRetry(); ok {
		return w, true
	}
	if w, ok = h.scan(h.cursor, h.geo.Regions(), copyMax, zeroMax); !ok && h.cursor > 0 {
		h.cursor = 0
		w, ok = h.scan(0, h.geo.Regions(), copyMax, zeroMax)
	}
	if ok {
		h.cursor = w.end
	}
	return w, ok
}

// single is a region that has failed, alone; one in a hole is read all the same.
func (h *Hydrator) single(region uint64) work {
	w := work{span: span{region, region + 1}, retry: true}
	if h.regions.State(region) == bitmap.Zero {
		w.kind = clone.ZeroZero
	}
	return w
}

// probe tries one region when the source seems to be away.
func (h *Hydrator) probe() (w work, ok bool) {
	if len(h.flying) > 0 {
		return w, false
	}
	if h.bad.empty() {
		return h.nextSplit()
	}
	due, found := h.bad.due()
	if !found {
		return w, false
	}
	return h.single(due), true
}

// nextRetry takes a region that has failed. One at a time: the kernel merges reads of neighbours that are
// issued together, and a bad region would take the good ones beside it along, again and again.
func (h *Hydrator) nextRetry() (w work, ok bool) {
	if h.retrying {
		return w, false
	}
	if w, ok = h.nextSplit(); ok {
		return w, true
	}
	if due, found := h.bad.due(); found {
		return h.single(due), true
	}
	return w, false
}

// nextSplit takes the next single region of a batch that failed.
func (h *Hydrator) nextSplit() (w work, ok bool) {
	for n := len(h.split); n > 0; n = len(h.split) {
		last := &h.split[n-1]
		r, found := h.regions.NextUnhydrated(last.first, last.end)
		if !found {
			h.split = h.split[:n-1]
			continue
		}
		if last.first = r + 1; last.first >= last.end {
			h.split = h.split[:n-1]
		}
		if h.inFlight(r, r+1) == nil {
			return h.single(r), true
		}
	}
	return w, false
}

// scan looks in [from, end) for a run that nobody works on and that has not failed.
func (h *Hydrator) scan(from, end, copyMax, zeroMax uint64) (w work, ok bool) {
	zeroMax = min(zeroMax, h.nrIn(zeroSpan))
	for from < end {
		r, found := h.regions.NextUnhydrated(from, end)
		if !found {
			return w, false
		}
		if skip := h.taken(r); skip > r {
			from = skip
			continue
		}
		st, stop := h.regions.Run(r, min(end, r+max(copyMax, zeroMax)))
		stop = h.untaken(r, stop)
		if st == bitmap.Zero {
			return work{span: span{r, h.aligned(r, min(stop, r+zeroMax))}, kind: clone.ZeroZero}, true
		}
		hole, stop := h.extent(r, stop)
		if hole {
			return work{span: span{r, h.aligned(r, min(stop, r+zeroMax))}, kind: clone.ZeroHole}, true
		}
		return work{span: span{r, h.aligned(r, min(stop, r+copyMax))}, kind: clone.CopySource}, true
	}
	return w, false
}

// aligned cuts a batch from region r to end so that it ends as Config.Align says, if anything is left then.
func (h *Hydrator) aligned(r, end uint64) uint64 {
	unit := uint64(h.cfg.Align / h.geo.RegionSize())
	if unit > 1 && end/unit*unit > r {
		return end / unit * unit
	}
	return end
}

func (h *Hydrator) extent(r, stop uint64) (hole bool, end uint64) {
	return Extent(h.geo, h.cfg.Holes, r, stop)
}

// Extent says whether the regions from r on lie whole in a hole of the source, or hold data, and where that
// ends, at most at stop. A failed look at the source is no hole.
func Extent(geo clone.Geometry, holes Holes, r, stop uint64) (hole bool, end uint64) {
	if holes == nil {
		return false, stop
	}
	off := geo.Start(r)
	data, err := holes.NextData(off)
	if err != nil {
		return false, stop
	}
	data = min(data, geo.Size())
	if first, end := geo.Covered(off, data-off); first < end {
		return true, min(stop, end)
	}
	next, err := holes.NextHole(data)
	if err != nil || next <= data {
		return false, stop
	}
	_, end = geo.Touched(data, min(next, geo.Size())-data)
	return false, min(stop, end)
}

// taken gives the region behind what is being worked on or has failed at region r, r if it is free.
func (h *Hydrator) taken(r uint64) uint64 {
	if b := h.inFlight(r, r+1); b != nil {
		return b.End
	}
	for _, s := range h.split {
		if s.first <= r && r < s.end {
			return s.end
		}
	}
	return h.bad.behind(r)
}

// untaken gives the first region in (r, stop] that is being worked on or has failed.
func (h *Hydrator) untaken(r, stop uint64) uint64 {
	for _, s := range h.split {
		if s.first > r {
			stop = min(stop, s.first)
		}
	}
	for _, b := range h.flying {
		if b.First > r {
			stop = min(stop, b.First)
		}
	}
	return h.bad.before(r, stop)
}

func (h *Hydrator) inFlight(first, end uint64) *batch {
	for _, b := range h.flying {
		if b.First < end && first < b.End {
			return b
		}
	}
	return nil
}
