package dataplane

import (
	"testing"
)

// TestWork: what a lane tells of its requests, by their tags.
func TestWork(t *testing.T) {
	g := gate{numbers: make([]uint64, 4)}
	for _, tag := range []int{2, 0, 3} {
		g.begin(tag)
	}
	if w := g.look(); w != (Work{Oldest: 1, Requests: 3}) {
		t.Errorf("of three: %+v", w)
	}
	g.end(2)
	g.begin(2)
	if w := g.look(); w != (Work{Oldest: 2, Requests: 3}) {
		t.Errorf("when the first was answered and its tag used again: %+v", w)
	}
	for tag := range 4 {
		if g.numbers[tag] != 0 {
			g.end(tag)
		}
	}
	if w := g.look(); w != (Work{}) {
		t.Errorf("of none: %+v", w)
	}
}
