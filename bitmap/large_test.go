//go:build !race

// The race detector backs every byte of a mapping with its own, so the 1 GiB that these
// maps reserve and do not touch would be touched.

package bitmap

import "testing"

const large = 1<<32 + 100

// TestLarge marks around 2^32 and looks for it from far away.
func TestLarge(t *testing.T) {
	m := newMap(large)
	d := NewDelta(m.NrPages(), 2)
	const first, end = 1<<32 - 70, 1<<32 + 70
	if n := m.Mark(PlaneZero, first, end, d); n != 140 {
		t.Fatalf("marked %d", n)
	}
	m.Mark(PlaneHydrated, 1<<32, end, d)
	for _, c := range []struct {
		region uint64
		want   State
	}{{first - 1, Source}, {first, Zero}, {1<<32 - 1, Zero}, {1 << 32, Hydrated}, {end - 1, Hydrated}, {end, Source},
		{large - 1, Source}, {70, Source}} {
		if got := m.State(c.region); got != c.want {
			t.Errorf("region %d: %v, expected %v", c.region, got, c.want)
		}
	}
	if st, n := m.Run(0, large); st != Source || n != first {
		t.Errorf("run from 0: %v to %d", st, n)
	}
	if r, ok := m.NextZero(0, large); r != first || !ok {
		t.Errorf("next zero: %d %v", r, ok)
	}
	if r, ok := m.NextSource(first, large); r != end || !ok {
		t.Errorf("next source: %d %v", r, ok)
	}
	if m.AllHydrated(1<<32-1, 1<<32+1) || !m.AllHydrated(1<<32, end) || !d.Has(PlaneHydrated, 1<<32) || d.Has(PlaneHydrated, 0) {
		t.Error("marks above 2^32 are not where they belong")
	}
}

func BenchmarkScanSource(b *testing.B) {
	m := newMap(large)
	for b.Loop() {
		if _, end := m.Run(0, large); end != large {
			b.Fatal(end)
		}
	}
}

func BenchmarkScanHydrated(b *testing.B) {
	m := newMap(large)
	var img Page
	for page := range m.NrPages() {
		for w := range uint64(PlaneWords) {
			img[w] = maskBelow(regionsIn(large, page), w)
		}
		if err := m.Load(page, &img); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if r, ok := m.NextUnhydrated(0, large); ok {
			b.Fatal(r)
		}
	}
}
