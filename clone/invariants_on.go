//go:build invariants

package clone

import "fmt"

// This file and invariants_off.go are assertions for tests; the build tag invariants turns them on.

// listMark says whether a request is in a list, of which there may be one.
type listMark struct{ in bool }

func (m *listMark) enter() {
	if m.in {
		panic("clone: a request is put into a second list")
	}
	m.in = true
}

func (m *listMark) leave() { m.in = false }

// check: no two claims overlap (I3), and a settle finds room for its marks (I9). Core.mu must be
// held.
func (t *claimTable) check(m *marks) {
	pages := 0
	for i, k := range t.open {
		pages += k.pages
		for _, o := range t.open[:i] {
			if o.first < k.end && k.first < o.end {
				panic(fmt.Sprintf("clone: claims [%d, %d) and [%d, %d) overlap", o.first, o.end, k.first, k.end))
			}
		}
	}
	if pages != t.reserved {
		panic(fmt.Sprintf("clone: %d pages reserved, the open claims have %d", t.reserved, pages))
	}
	if used := m.active.Used(); m.bounded && used+pages > m.active.Cap() {
		panic(fmt.Sprintf("clone: %d pages used and %d reserved of a pool of %d", used, pages, m.active.Cap()))
	}
}

// check: what a caller of Hydrate must keep.
func (h *Hydration) check(b *background) {
	nr := h.End - h.First
	if h.First >= h.End || h.End > b.core.geo.Regions() || h.Kind == CopySource && nr > b.copyRegions() {
		panic(fmt.Sprintf("clone: hydration of [%d, %d), kind %d, of %d regions, at most %d in a copy",
			h.First, h.End, h.Kind, b.core.geo.Regions(), b.copyRegions()))
	}
}

// checkFree: an operation that is freed holds no claim.
func (o *op) checkFree() {
	if o.holds {
		panic(fmt.Sprintf("clone: operation %d is freed and holds the claim [%d, %d)", o.token, o.claim.first, o.claim.end))
	}
}

// checkBusy: an I/O ends that belongs to somebody.
func (o *op) checkBusy() {
	if o.req == nil && o.bg == nil {
		panic(fmt.Sprintf("clone: completion of operation %d, which is free", o.token))
	}
}
