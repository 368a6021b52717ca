package hydrate

import (
	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
)

// zeroSpan is the most bytes that one background zeroing covers. It needs no buffer, but its
// regions are claimed meanwhile.
const zeroSpan = 8 << 20

// search chooses which regions are next. It knows what is in flight and what has failed, and starts
// nothing itself. It belongs to the lane's thread.
type search struct {
	geo     clone.Geometry
	regions *bitmap.Map
	holes   Holes
	unit    uint64 // regions: Config.Align
	zeroMax uint64 // regions: zeroSpan
	flight  *flight

	cursor uint64
	split  []span // batches that have failed, of which the regions are tried one by one
	bad    badRanges
}

func newSearch(cfg *Config) search {
	geo := cfg.Core.Geometry()
	size := geo.RegionSize()
	return search{geo: geo, regions: cfg.Core.Regions(), holes: cfg.Holes, unit: uint64(cfg.Align / size),
		zeroMax: max(1, uint64(zeroSpan/size)), bad: badRanges{now: cfg.Now}}
}

// span is the regions [first, end).
type span struct{ first, end uint64 }

// New makes a hydrator; nothing happens before the first Pump.
func New(cfg Config) *Hydrator {
	h := &Hydrator{cfg: cfg, search: newSearch(&cfg), quota: newQuota(&cfg)}
	h.search.flight = &h.flight
	for range cfg.Batches {
		b := &batch{}
		b.Done = func(_ *clone.Hydration, err error) { h.done(b, err) }
		h.flight.free = append(h.flight.free, b)
	}
	h.shared.settings = cfg.Settings
	return h
}

// work is the regions [first, end) and what is to be done with them.
type work struct {
	span
	kind clone.HydrationKind
	// retry: it has failed before, alone or in a batch.
	retry bool
}

// next chooses the regions of the next batch: what was split off first, then from the cursor on,
// then once more from the start. At most copyMax regions to copy, or zeroMax to zero.
func (s *search) next(copyMax, zeroMax uint64) (w work, ok bool) {
	if s.bad.away() {
		return s.probe()
	}
	if w, ok = s.nextRetry(); ok {
		return w, true
	}
	if w, ok = s.scan(s.cursor, s.geo.Regions(), copyMax, zeroMax); !ok && s.cursor > 0 {
		s.cursor = 0
		w, ok = s.scan(0, s.geo.Regions(), copyMax, zeroMax)
	}
	if ok {
		s.cursor = w.end
	}
	return w, ok
}

// putBack has a batch for which there was no room be the next again, so that hydration goes from
// the beginning to the end.
func (s *search) putBack(w work) {
	if !w.retry {
		s.cursor = w.first
	}
}

// single is a region that has failed, alone; one in a hole is read all the same.
func (s *search) single(region uint64) work {
	w := work{span: span{region, region + 1}, retry: true}
	if s.regions.State(region) == bitmap.Zero {
		w.kind = clone.ZeroZero
	}
	return w
}

// probe tries one region when the source seems to be away.
func (s *search) probe() (w work, ok bool) {
	if len(s.flight.flying) > 0 {
		return w, false
	}
	if s.bad.empty() {
		return s.nextSplit()
	}
	due, found := s.bad.due()
	if !found {
		return w, false
	}
	return s.single(due), true
}

// nextRetry takes a region that has failed. One at a time: the kernel merges reads of neighbours
// that are issued together, and a bad region would take the good ones beside it along, again and
// again.
func (s *search) nextRetry() (w work, ok bool) {
	if s.flight.retrying {
		return w, false
	}
	if w, ok = s.nextSplit(); ok {
		return w, true
	}
	if due, found := s.bad.due(); found {
		return s.single(due), true
	}
	return w, false
}

// nextSplit takes the next single region of a batch that failed.
func (s *search) nextSplit() (w work, ok bool) {
	for n := len(s.split); n > 0; n = len(s.split) {
		last := &s.split[n-1]
		r, found := s.regions.NextUnhydrated(last.first, last.end)
		if !found {
			s.split = s.split[:n-1]
			continue
		}
		if last.first = r + 1; last.first >= last.end {
			s.split = s.split[:n-1]
		}
		if s.flight.find(r, r+1) == nil {
			return s.single(r), true
		}
	}
	return w, false
}

// scan looks in [from, end) for a run that nobody works on and that has not failed.
func (s *search) scan(from, end, copyMax, zeroMax uint64) (w work, ok bool) {
	zeroMax = min(zeroMax, s.zeroMax)
	for from < end {
		r, found := s.regions.NextUnhydrated(from, end)
		if !found {
			return w, false
		}
		if skip := s.taken(r); skip > r {
			from = skip
			continue
		}
		st, stop := s.regions.Run(r, min(end, r+max(copyMax, zeroMax)))
		stop = s.untaken(r, stop)
		if st == bitmap.Zero {
			return work{span: span{r, s.aligned(r, min(stop, r+zeroMax))}, kind: clone.ZeroZero}, true
		}
		hole, stop := Extent(s.geo, s.holes, r, stop)
		if hole {
			return work{span: span{r, s.aligned(r, min(stop, r+zeroMax))}, kind: clone.ZeroHole}, true
		}
		return work{span: span{r, s.aligned(r, min(stop, r+copyMax))}, kind: clone.CopySource}, true
	}
	return w, false
}

// aligned cuts a batch from region r to end so that it ends as Config.Align says, if anything is
// left then.
func (s *search) aligned(r, end uint64) uint64 {
	if s.unit > 1 && end/s.unit*s.unit > r {
		return end / s.unit * s.unit
	}
	return end
}

// Extent says whether the regions from r on lie whole in a hole of the source, or hold data, and
// where that ends, at most at stop. A failed look at the source is no hole.
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
func (s *search) taken(r uint64) uint64 {
	if b := s.flight.find(r, r+1); b != nil {
		return b.End
	}
	for _, t := range s.split {
		if t.first <= r && r < t.end {
			return t.end
		}
	}
	return s.bad.behind(r)
}

// untaken gives the first region in (r, stop] that is being worked on or has failed.
func (s *search) untaken(r, stop uint64) uint64 {
	for _, t := range s.split {
		if t.first > r {
			stop = min(stop, t.first)
		}
	}
	return s.bad.before(r, s.flight.before(r, stop))
}
