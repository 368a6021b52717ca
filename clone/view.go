package clone

import "github.com/ublk-clone/ublk-clone/bitmap"

// view is the region map as the rest of the core looks at it: by bytes of the device. Any thread
// may look, without a lock.
type view struct {
	geo     Geometry
	regions *bitmap.Map
}

// Geometry gives the sizes.
func (v *view) Geometry() Geometry { return v.geo }

// Regions is the live region map, for lock-free looks from any thread.
func (v *view) Regions() *bitmap.Map { return v.regions }

func (v *view) state(region uint64) bitmap.State { return v.regions.State(region) }

// run gives the state at off and where its run ends, in bytes and no further than end.
func (v *view) run(off, end int64) (bitmap.State, int64) {
	first, last := v.geo.Touched(off, end-off)
	st, stop := v.regions.Run(first, last)
	return st, min(end, v.geo.Start(stop))
}

// left says that not all of [off, end) is in state Source any more. It is asked of a run that was,
// so each yes is a region that changed and the tries are bounded.
func (v *view) left(off, end int64) bool {
	st, stop := v.run(off, end)
	return st != bitmap.Source || stop < end
}

// tailShort is how many bytes the tail lacks to a full region, if it is in [first, end) and about
// to leave state Source.
func (v *view) tailShort(first, end uint64) int64 {
	last := v.geo.nr - 1
	if end != v.geo.nr || first > last || v.regions.State(last) != bitmap.Source {
		return 0
	}
	return int64(v.geo.nr)<<v.geo.shift - v.geo.size
}
