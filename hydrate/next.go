package hydrate

import "github.com/ublk-clone/ublk-clone/bitmap"

// next chooses the regions of the next batch: what was split off first, then from the cursor on, then
// once more from the start. At most copyMax regions to copy, or zeroMax to zero.
func (h *Hydrator) next(copyMax, zeroMax uint64) (s span, zero, ok bool) {
	if h.bad.away() {
		return h.probe()
	}
	if s, zero, ok = h.nextSplit(); ok {
		return s, zero, ok
	}
	if due, found := h.bad.due(); found {
		return span{due, due + 1}, h.regions.State(due) == bitmap.Zero, true
	}
	if s, zero, ok = h.scan(h.cursor, h.geo.Regions(), copyMax, zeroMax); !ok && h.cursor > 0 {
		h.cursor = 0
		s, zero, ok = h.scan(0, h.geo.Regions(), copyMax, zeroMax)
	}
	if ok {
		h.cursor = s.end
	}
	return s, zero, ok
}

// probe tries one region when the source seems to be away.
func (h *Hydrator) probe() (s span, zero, ok bool) {
	if len(h.flying) > 0 {
		return s, false, false
	}
	due, found := h.bad.due()
	return span{due, due + 1}, false, found
}

// nextSplit takes the next single region of a batch that failed.
func (h *Hydrator) nextSplit() (s span, zero, ok bool) {
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
			return span{r, r + 1}, h.regions.State(r) == bitmap.Zero, true
		}
	}
	return s, false, false
}

// scan looks in [from, end) for a run that nobody works on and that has not failed.
func (h *Hydrator) scan(from, end, copyMax, zeroMax uint64) (s span, zero, ok bool) {
	for from < end {
		r, found := h.regions.NextUnhydrated(from, end)
		if !found {
			return s, false, false
		}
		if skip := h.taken(r); skip > r {
			from = skip
			continue
		}
		st, stop := h.regions.Run(r, end)
		stop = h.untaken(r, stop)
		if st == bitmap.Zero {
			n := max(1, min(zeroMax, zeroSpan/uint64(h.geo.RegionSize())))
			return span{r, min(stop, r+n)}, true, true
		}
		stop = h.dataRun(r, min(stop, r+copyMax))
		if stop > r {
			return span{r, stop}, false, true
		}
		from = r // a hole, and now in state Zero: look again
	}
	return s, false, false
}

// dataRun gives the end of the regions from r on, at most stop, that are to be copied. Where the source
// has a hole at r the regions that lie in it whole are marked, and the answer is r. A failed look at the
// source is no hole.
func (h *Hydrator) dataRun(r, stop uint64) uint64 {
	if h.cfg.Holes == nil {
		return stop
	}
	off := h.geo.Start(r)
	data, err := h.cfg.Holes.NextData(off)
	if err != nil {
		return stop
	}
	data = min(data, h.geo.Size())
	if first, end := h.geo.Covered(off, data-off); first < end {
		if h.cfg.Lane.MarkHoles(first, end) == nil && h.regions.State(r) != bitmap.Source {
			return r
		}
		return stop
	}
	hole, err := h.cfg.Holes.NextHole(data)
	if err != nil || hole <= data {
		return stop
	}
	_, end := h.geo.Touched(data, min(hole, h.geo.Size())-data)
	return min(stop, end)
}

// taken gives the region behind what is being worked on or has failed at region r, r if it is free.
func (h *Hydrator) taken(r uint64) uint64 {
	if b := h.inFlight(r, r+1); b != nil {
		return b.End
	}
	return h.bad.behind(r)
}

// untaken gives the first region in (r, stop] that is being worked on or has failed.
func (h *Hydrator) untaken(r, stop uint64) uint64 {
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
