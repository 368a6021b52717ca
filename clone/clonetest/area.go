package clonetest

// area is the stretches of the device that requests go to and the oracle watches: all of a small
// device, some windows of a large one.
type area []window

// window is the sectors [first, end); base is its first place in the oracle.
type window struct {
	first, end int64
	base       int
}

func newArea(stretches ...[2]int64) (a area) {
	base := 0
	for _, s := range stretches {
		a = append(a, window{first: s[0], end: s[1], base: base})
		base += int(s[1] - s[0])
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

func (a area) each(f func(sector int64, i int)) {
	for _, w := range a {
		for s := w.first; s < w.end; s++ {
			f(s, w.base+int(s-w.first))
		}
	}
}
