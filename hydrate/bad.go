package hydrate

import (
	"slices"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

const (
	// firstBackoff and lastBackoff bound the time until a failed region is tried again.
	firstBackoff = 250 * time.Millisecond
	lastBackoff  = 30 * time.Second
	// defaultRetries is how often a region is tried before it waits for a Resume: for 8 s.
	defaultRetries = 6
	// awayAfter failures in a row, of batches and single regions, mean that the source as a whole
	// is away.
	awayAfter = 64
)

// BadRange is regions that could not be copied.
type BadRange struct {
	First, End uint64
	Attempts   int
}

// badRegion is one region that failed alone.
type badRegion struct {
	region   uint64
	attempts int
	again    time.Time
}

// badRanges are the regions that failed, in order of region. There are at most awayAfter more of
// them than successes have been in between, so the list stays short when a whole source is away.
type badRanges struct {
	now     func() time.Time
	limit   int // attempts for each region
	regions []badRegion
	row     int  // failures in a row
	changed bool // since the last publish
}

func (b *badRanges) empty() bool { return len(b.regions) == 0 }

func (b *badRanges) away() bool { return b.row >= awayAfter }

// find gives the place of region, or where it would be.
func (b *badRanges) find(region uint64) (int, bool) {
	return slices.BinarySearchFunc(b.regions, region, func(x badRegion, r uint64) int {
		switch {
		case x.region < r:
			return -1
		case x.region > r:
			return 1
		}
		return 0
	})
}

func (b *badRanges) failed(region uint64) {
	b.row++
	b.changed = true
	i, found := b.find(region)
	if !found {
		b.regions = slices.Insert(b.regions, i, badRegion{region: region})
	}
	x := &b.regions[i]
	x.again = b.now().Add(min(lastBackoff, firstBackoff<<min(x.attempts, 16)))
	x.attempts++
}

// succeeded: regions in [first, end) are bad no longer.
func (b *badRanges) succeeded(first, end uint64) {
	b.row = 0
	i, _ := b.find(first)
	j, _ := b.find(end)
	if i < j {
		b.regions = slices.Delete(b.regions, i, j)
		b.changed = true
	}
}

// forget is Resume.
func (b *badRanges) forget() {
	b.regions, b.row, b.changed = nil, 0, true
}

// due takes a region whose time has come; its end is one of failed and succeeded.
func (b *badRanges) due() (uint64, bool) {
	now := b.now()
	for i := range b.regions {
		if x := &b.regions[i]; x.attempts < b.limit && !now.Before(x.again) {
			x.again = now.Add(lastBackoff)
			return x.region, true
		}
	}
	return 0, false
}

// prune takes out what users have hydrated meanwhile.
func (b *badRanges) prune(regions *bitmap.Map) {
	n := len(b.regions)
	b.regions = slices.DeleteFunc(b.regions, func(x badRegion) bool {
		return regions.State(x.region) == bitmap.Hydrated
	})
	b.changed = b.changed || len(b.regions) < n
}

// nextTry says how long until a region is due; false when none will be.
func (b *badRanges) nextTry() (wait time.Duration, ok bool) {
	now := b.now()
	for _, x := range b.regions {
		if x.attempts >= b.limit {
			continue
		}
		if d := max(0, x.again.Sub(now)); !ok || d < wait {
			wait, ok = d, true
		}
	}
	return wait, ok
}

// behind gives the first region from r on that is not bad.
func (b *badRanges) behind(r uint64) uint64 {
	for i, _ := b.find(r); i < len(b.regions) && b.regions[i].region == r; i++ {
		r++
	}
	return r
}

// before gives the first bad region in (r, stop], or stop.
func (b *badRanges) before(r, stop uint64) uint64 {
	if i, _ := b.find(r + 1); i < len(b.regions) {
		return min(stop, b.regions[i].region)
	}
	return stop
}

// list gives the ranges for the status.
func (b *badRanges) list() (out []BadRange) {
	for _, x := range b.regions {
		if n := len(out); n > 0 && out[n-1].End == x.region {
			out[n-1].End++
			out[n-1].Attempts = max(out[n-1].Attempts, x.attempts)
			continue
		}
		out = append(out, BadRange{x.region, x.region + 1, x.attempts})
	}
	return out
}
