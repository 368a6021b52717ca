package clonetest

// Window is the sectors [First, End): a stretch of the device that requests go to and the oracle
// watches.
type Window struct{ First, End int64 }

// area is all of a small device, some windows of a large one.
type area []window

// window has its first place in the oracle.
type window struct {
	first, end int64
	base       int
}

func newArea(windows []Window) (a area) {
	base := 0
	for _, w := range windows {
		a = append(a, window{first: w.First, end: w.End, base: base})
		base += int(w.End - w.First)
	}
	return a
}

func (a area) sectors() int {
	last := a[len(a)-1]
	return last.base + int(last.end-last.first)
}

func (a area) index(sector int64) int {
	for _, w := range a {
		if w.first <= sector && sector < w.end {
			return w.base + int(sector-w.first)
		}
	}
	return -1
}

// within calls f for each sector of the area in [first, end).
func (a area) within(first, end int64, f func(sector int64, i int)) {
	for _, w := range a {
		for s := max(first, w.first); s < min(end, w.end); s++ {
			f(s, w.base+int(s-w.first))
		}
	}
}

func (a area) each(f func(sector int64, i int)) { a.within(0, 1<<62, f) }
