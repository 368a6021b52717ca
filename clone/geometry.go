package clone

import (
	"fmt"
	"math/bits"
)

// Limits of the region size, in bytes (dm-clone's own: 8 to 2097152 sectors).
const (
	MinRegionSize = 4 << 10
	MaxRegionSize = 1 << 30
)

// Geometry is all region arithmetic of the clone. Offsets and lengths are bytes, regions are
// numbers; everything is 64-bit (H20). The last region, the tail, may be shorter than the others
// and is a whole region all the same (H12): the device's end counts as a region boundary.
type Geometry struct {
	size  int64
	shift uint
	nr    uint64
}

// NewGeometry checks the sizes, both in bytes: size at least 1, regionSize a power of two between
// MinRegionSize and MaxRegionSize. It fails with ErrGeometry.
func NewGeometry(size, regionSize int64) (Geometry, error) {
	if size <= 0 {
		return Geometry{}, fmt.Errorf("%w: device size %d", ErrGeometry, size)
	}
	if regionSize < MinRegionSize || regionSize > MaxRegionSize || regionSize&(regionSize-1) != 0 {
		return Geometry{}, fmt.Errorf("%w: region size %d is no power of two from %d to %d",
			ErrGeometry, regionSize, MinRegionSize, MaxRegionSize)
	}
	shift := uint(bits.TrailingZeros64(uint64(regionSize)))
	return Geometry{size: size, shift: shift, nr: (uint64(size) + uint64(regionSize) - 1) >> shift}, nil
}

// Size is the device's size in bytes.
func (g Geometry) Size() int64 { return g.size }

// RegionSize is in bytes; the tail may be shorter.
func (g Geometry) RegionSize() int64 { return 1 << g.shift }

// Regions is the number of regions, the tail included.
func (g Geometry) Regions() uint64 { return g.nr }

// Region is the region that holds the byte at off.
func (g Geometry) Region(off int64) uint64 { return uint64(off) >> g.shift }

// Start is the offset of a region's first byte; of region Regions() it is the device's size.
func (g Geometry) Start(region uint64) int64 {
	if region >= g.nr {
		return g.size
	}
	return int64(region << g.shift)
}

// End is the offset behind a region's last byte.
func (g Geometry) End(region uint64) int64 { return g.Start(region + 1) }

// Touched rounds outward: the regions [first, end) that hold at least one byte of [off,
// off+length).
func (g Geometry) Touched(off, length int64) (first, end uint64) {
	if length <= 0 {
		first = g.Region(off)
		return first, first
	}
	return g.Region(off), g.Region(off+length-1) + 1
}

// Covered rounds inward: the regions [first, end) of which every byte lies in [off, off+length). It
// is empty (first == end) rather than backwards when there is none (H9).
func (g Geometry) Covered(off, length int64) (first, end uint64) {
	first = (uint64(off) + uint64(1)<<g.shift - 1) >> g.shift
	end = g.Region(off + length)
	if off+length == g.size {
		end = g.nr
	}
	return first, max(first, end)
}

// Valid says whether [off, off+length) lies inside the device and is not empty.
func (g Geometry) Valid(off, length int64) bool {
	return off >= 0 && length > 0 && length <= g.size && off <= g.size-length
}
