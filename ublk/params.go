package ublk

import (
	"fmt"
	"math/bits"
	"os"
)

// Params describe a device to the block layer. All sizes are in bytes.
type Params struct {
	Size              int64 // a multiple of LogicalBlockSize
	LogicalBlockSize  int   // 512 to the page size, a power of two; 0 = 512
	PhysicalBlockSize int   // at least LogicalBlockSize, a power of two; 0 = LogicalBlockSize
	IOMin             int   // preferred smallest I/O, a power of two; 0 = PhysicalBlockSize
	IOOpt             int   // preferred I/O, a power of two; 0 = none stated
	MaxIO             int   // largest READ or WRITE, and the size of a tag's buffer: a multiple of the page size, at most 32 MiB; 0 = 512 KiB

	// Discard and write-zeroes carry no data and are not bounded by MaxIO. Limits are rounded down
	// to multiples of DiscardGranularity, so that the kernel cuts there; 0 = the operation is not
	// offered. A granularity of 0 is that of the physical block.
	DiscardGranularity int64 // a power of two
	MaxDiscard         int64
	MaxWriteZeroes     int64

	VolatileCache bool // a WRITE is durable after a FLUSH only; without it FLUSH and FUA are never sent
	FUA           bool // with VolatileCache: FUA is passed down instead of WRITE and FLUSH
	DMAAlignment  int  // of client memory in O_DIRECT, a power of two below the page size; 0 = the kernel's default (4), which 6.12 takes in any case
}

const (
	defaultMaxIO   = 512 << 10
	defaultLogical = 512
	// maxLimit is the largest discard or write-zeroes: the kernel's 32-bit count of sectors.
	maxLimit = (1<<32 - 1) << sectorShift
)

// withDefaults replaces zeros by what they stand for.
func (p Params) withDefaults() Params {
	set := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	set(&p.LogicalBlockSize, defaultLogical)
	set(&p.PhysicalBlockSize, p.LogicalBlockSize)
	set(&p.IOMin, p.PhysicalBlockSize)
	set(&p.MaxIO, defaultMaxIO)
	if p.DiscardGranularity == 0 {
		p.DiscardGranularity = int64(p.PhysicalBlockSize)
	}
	return p
}

// Validate says what the driver would refuse with a bare EINVAL (ublk_validate_params, ublk_drv.c,
// 6.12), and what it would take and get wrong. Its error wraps ErrParams.
func (p Params) Validate() error {
	p = p.withDefaults()
	page := os.Getpagesize()
	for _, check := range []struct {
		bad  bool
		what string
	}{
		{!powerOfTwo(int64(p.LogicalBlockSize)) || p.LogicalBlockSize < 512 || p.LogicalBlockSize > page,
			fmt.Sprintf("logical block size %d is no power of two from 512 to %d", p.LogicalBlockSize, page)},
		{!powerOfTwo(int64(p.PhysicalBlockSize)) || p.PhysicalBlockSize < p.LogicalBlockSize,
			fmt.Sprintf("physical block size %d is no power of two from the logical block size %d", p.PhysicalBlockSize, p.LogicalBlockSize)},
		{!powerOfTwo(int64(p.IOMin)), fmt.Sprintf("smallest I/O %d is no power of two", p.IOMin)},
		{p.IOOpt != 0 && !powerOfTwo(int64(p.IOOpt)), fmt.Sprintf("optimal I/O %d is no power of two", p.IOOpt)},
		{p.MaxIO < page || p.MaxIO%page != 0 || p.MaxIO > maxIOSize,
			fmt.Sprintf("largest I/O %d is no multiple of %d up to %d", p.MaxIO, page, maxIOSize)},
		{p.Size <= 0 || p.Size%int64(max(p.LogicalBlockSize, 1)) != 0,
			fmt.Sprintf("size %d is no positive multiple of the logical block size %d", p.Size, p.LogicalBlockSize)},
		{!powerOfTwo(p.DiscardGranularity) || p.DiscardGranularity < int64(p.LogicalBlockSize) || p.DiscardGranularity > 1<<31,
			fmt.Sprintf("discard granularity %d is no power of two from the logical block size %d to 2 GiB", p.DiscardGranularity, p.LogicalBlockSize)},
		{badLimit(p.MaxDiscard, p.DiscardGranularity),
			fmt.Sprintf("largest discard %d is less than the granularity %d", p.MaxDiscard, p.DiscardGranularity)},
		{badLimit(p.MaxWriteZeroes, p.DiscardGranularity),
			fmt.Sprintf("largest write-zeroes %d is less than the granularity %d", p.MaxWriteZeroes, p.DiscardGranularity)},
		{p.FUA && !p.VolatileCache, "FUA without a volatile cache has no effect"},
		{p.DMAAlignment != 0 && (!powerOfTwo(int64(p.DMAAlignment)) || p.DMAAlignment >= page),
			fmt.Sprintf("DMA alignment %d is no power of two below %d", p.DMAAlignment, page)},
	} {
		if check.bad {
			return fmt.Errorf("%w: %s", ErrParams, check.what)
		}
	}
	return nil
}

func powerOfTwo(v int64) bool { return v > 0 && v&(v-1) == 0 }

// badLimit: a limit that rounds down to nothing would switch the operation off silently.
func badLimit(limit, granularity int64) bool {
	return limit < 0 || limit > 0 && limit < granularity
}

// limitSectors is a limit as the kernel takes it: whole multiples of the granularity, in sectors.
func limitSectors(limit, granularity int64) uint32 {
	limit = min(limit, maxLimit)
	return uint32((limit - limit%granularity) >> sectorShift)
}

func shift(v int) uint8 {
	if v == 0 {
		return 0
	}
	return uint8(bits.TrailingZeros(uint(v)))
}

// encode is p, which is valid, as SET_PARAMS takes it.
func (p Params) encode() kernelParams {
	p = p.withDefaults()
	k := kernelParams{len: kernelParamsSize, types: paramBasic}
	k.basic = paramsBasic{
		attrs:           attributes(p),
		logicalBSShift:  shift(p.LogicalBlockSize),
		physicalBSShift: shift(p.PhysicalBlockSize),
		ioOptShift:      shift(p.IOOpt),
		ioMinShift:      shift(p.IOMin),
		maxSectors:      uint32(p.MaxIO >> sectorShift),
		devSectors:      uint64(p.Size >> sectorShift),
	}
	if p.MaxDiscard > 0 || p.MaxWriteZeroes > 0 {
		k.types |= paramDiscard
		k.discard = paramsDiscard{
			discardGranularity:    uint32(p.DiscardGranularity),
			maxDiscardSectors:     limitSectors(p.MaxDiscard, p.DiscardGranularity),
			maxWriteZeroesSectors: limitSectors(p.MaxWriteZeroes, p.DiscardGranularity),
			maxDiscardSegments:    1,
		}
	}
	if p.DMAAlignment != 0 {
		k.types |= paramDMAAlign
		k.dmaMask = uint32(p.DMAAlignment - 1)
	}
	return k
}

func attributes(p Params) uint32 {
	var attrs uint32
	if p.VolatileCache {
		attrs |= attrVolatileCache
	}
	if p.FUA {
		attrs |= attrFUA
	}
	return attrs
}

// decode is the inverse of encode.
func (k *kernelParams) decode() Params {
	p := Params{
		Size:              int64(k.basic.devSectors) << sectorShift,
		LogicalBlockSize:  1 << k.basic.logicalBSShift,
		PhysicalBlockSize: 1 << k.basic.physicalBSShift,
		IOMin:             1 << k.basic.ioMinShift,
		MaxIO:             int(k.basic.maxSectors) << sectorShift,
		VolatileCache:     k.basic.attrs&attrVolatileCache != 0,
		FUA:               k.basic.attrs&attrFUA != 0,
	}
	if k.basic.ioOptShift != 0 {
		p.IOOpt = 1 << k.basic.ioOptShift
	}
	p.DiscardGranularity = int64(p.PhysicalBlockSize)
	if k.types&paramDiscard != 0 {
		p.DiscardGranularity = int64(k.discard.discardGranularity)
		p.MaxDiscard = int64(k.discard.maxDiscardSectors) << sectorShift
		p.MaxWriteZeroes = int64(k.discard.maxWriteZeroesSectors) << sectorShift
	}
	if k.types&paramDMAAlign != 0 {
		p.DMAAlignment = int(k.dmaMask) + 1
	}
	return p
}
