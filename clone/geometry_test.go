package clone

import (
	"errors"
	"testing"
)

// TestGeometryEveryRange compares every range of three regions, in steps of 512 bytes, with a model
// that looks at each sector (H9, H12): with a full tail, shorter ones, and a device of less than a
// region.
func TestGeometryEveryRange(t *testing.T) {
	const region, step = MinRegionSize, 512
	for _, size := range []int64{3 * region, 3*region - step, 2*region + step, region, 2 * step} {
		geo, err := NewGeometry(size, region)
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < size; off += step {
			for length := int64(step); off+length <= size; length += step {
				checkRange(t, geo, off, length, step)
			}
		}
	}
}

// checkRange asks the model: a region is touched if one of its sectors is in the range, covered if
// all.
func checkRange(t *testing.T, geo Geometry, off, length, step int64) {
	t.Helper()
	in := make(map[uint64]int64)
	for at := off; at < off+length; at += step {
		in[uint64(at/geo.RegionSize())] += step
	}
	first, end := geo.Touched(off, length)
	coveredFirst, coveredEnd := geo.Covered(off, length)
	for r := range geo.Regions() {
		size := min(geo.RegionSize(), geo.Size()-int64(r)*geo.RegionSize())
		if got, want := first <= r && r < end, in[r] > 0; got != want {
			t.Fatalf("size %d: Touched(%d, %d) = [%d, %d), region %d: %v", geo.Size(), off, length, first, end, r, got)
		}
		if got, want := coveredFirst <= r && r < coveredEnd, in[r] == size; got != want {
			t.Fatalf("size %d: Covered(%d, %d) = [%d, %d), region %d: %v", geo.Size(), off, length, coveredFirst, coveredEnd, r, got)
		}
	}
	if coveredFirst > coveredEnd {
		t.Fatalf("size %d: Covered(%d, %d) = [%d, %d) is backwards", geo.Size(), off, length, coveredFirst, coveredEnd)
	}
	if !geo.Valid(off, length) || geo.Valid(off, geo.Size()-off+step) {
		t.Fatalf("size %d: Valid(%d, ...)", geo.Size(), off)
	}
}

// TestGeometryBeyond32Bits: offsets beyond 4 GiB and 2 TiB, more than 2^32 regions (H20).
func TestGeometryBeyond32Bits(t *testing.T) {
	for _, c := range []struct {
		size, region int64
		nr           uint64
	}{
		{4<<30 + 512, 4 << 10, 1<<20 + 1},
		{2<<40 + 1<<20, 64 << 10, 1<<25 + 16},
		{16<<40 + 8<<10, 4 << 10, 1<<32 + 2},
		{64<<40 - 512, 4 << 10, 1 << 34},
		{64 << 40, MaxRegionSize, 1 << 16},
	} {
		geo, err := NewGeometry(c.size, c.region)
		if err != nil {
			t.Fatal(err)
		}
		if geo.Regions() != c.nr {
			t.Errorf("%d bytes in regions of %d: %d regions, expected %d", c.size, c.region, geo.Regions(), c.nr)
		}
		for _, r := range []uint64{0, 1, c.nr / 2, c.nr - 2, c.nr - 1} {
			lo := int64(r) * c.region
			hi := min(lo+c.region, c.size)
			if geo.Start(r) != lo || geo.End(r) != hi || geo.Region(lo) != r || geo.Region(hi-1) != r {
				t.Errorf("%d bytes in regions of %d: region %d is [%d, %d), first byte in %d, last in %d; expected [%d, %d)",
					c.size, c.region, r, geo.Start(r), geo.End(r), geo.Region(lo), geo.Region(hi-1), lo, hi)
			}
			if first, end := geo.Covered(lo, hi-lo); first != r || end != r+1 {
				t.Errorf("%d bytes in regions of %d: region %d covers [%d, %d)", c.size, c.region, r, first, end)
			}
		}
	}
}

func TestGeometryRefuses(t *testing.T) {
	for _, c := range [][2]int64{
		{0, 4096}, {-512, 4096}, {1 << 20, 0}, {1 << 20, 2048}, {1 << 20, 4096 * 3}, {1 << 20, 2 << 30}, {1 << 20, -4096},
	} {
		if _, err := NewGeometry(c[0], c[1]); !errors.Is(err, ErrGeometry) {
			t.Errorf("NewGeometry(%d, %d): %v, expected ErrGeometry", c[0], c[1], err)
		}
	}
}

func TestGeometryValid(t *testing.T) {
	const size = 1 << 20
	geo, err := NewGeometry(size, 4096)
	if err != nil {
		t.Fatal(err)
	}
	const far = 1<<63 - 1
	for _, c := range []struct {
		off, length int64
		want        bool
	}{
		{0, size, true}, {size - 512, 512, true},
		{0, 0, false}, {size, 512, false}, {-512, 1024, false}, {0, -512, false},
		{512, far, false}, {far, 512, false}, {far, far, false},
	} {
		if got := geo.Valid(c.off, c.length); got != c.want {
			t.Errorf("Valid(%d, %d) = %v", c.off, c.length, got)
		}
	}
}
