package identity

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// block reads one, if it is whole within the clone and hydrated.
func (s *DestSample) block(off int64, written bool) (b sampled, ok bool) {
	geo := s.core.Geometry()
	if s.ended() || off+metadata.BlockSize > s.size || s.core.Regions().State(geo.Region(off)) != bitmap.Hydrated {
		return b, false
	}
	p := s.buf.Bytes()
	if s.dest.ReadAt(p, off) != nil {
		return b, false
	}
	b = sampled{SampleBlock: sampleOf(p, off), since: s.taken}
	if written {
		b.Place |= metadata.SampleWritten
	}
	return b, true
}

// sampleOf is the entry for a block of this content.
func sampleOf(p []byte, off int64) metadata.SampleBlock {
	sum := sha256.Sum256(p)
	b := metadata.SampleBlock{Place: uint64(off) | metadata.SampleUsed, Sum: binary.LittleEndian.Uint64(sum[:])}
	if uniform(p) {
		b.Place |= metadata.SampleUniform
	}
	return b
}

func uniform(p []byte) bool {
	for _, c := range p {
		if c != p[0] {
			return false
		}
	}
	return true
}

// anywhere is a block of a hydrated region, if one is found quickly.
func (s *DestSample) anywhere() (off int64, ok bool) {
	regions, geo := s.core.Regions(), s.core.Geometry()
	nr := regions.NrRegions()
	const looks = 256
	for r, n := s.rng.Uint64N(nr), 0; n < looks; n++ {
		st, end := regions.Run(r, nr)
		if st == bitmap.Hydrated {
			r += s.rng.Uint64N(end - r)
			blocks := (geo.End(r) - geo.Start(r)) / metadata.BlockSize
			return geo.Start(r) + s.rng.Int64N(max(blocks, 1))*metadata.BlockSize, true
		}
		if r = end; r == nr {
			r = 0
		}
	}
	return 0, false
}

// add puts a block into the sample if it tells more than what is there.
func (s *DestSample) add(off int64, written bool) bool {
	if s.room(written) < 0 || s.has(off) {
		return false
	}
	b, ok := s.block(off, written)
	if !ok {
		return false
	}
	isUniform := b.Is(metadata.SampleUniform)
	switch i := s.room(written); {
	case isUniform && (len(s.blocks) == metadata.SampleBlocks || s.count(metadata.SampleUniform) == mostUniform):
		return false
	case len(s.blocks) < metadata.SampleBlocks:
		s.blocks = append(s.blocks, b)
	default:
		s.blocks[i] = b
	}
	return true
}

// room is where a block may go: len(s.blocks) for behind the others, or in place of one that tells
// less; -1: nowhere.
func (s *DestSample) room(written bool) int {
	if written && s.count(metadata.SampleWritten) >= mostWritten {
		return -1
	}
	if len(s.blocks) < metadata.SampleBlocks {
		return len(s.blocks)
	}
	for i, b := range s.blocks {
		if b.Is(metadata.SampleUniform) {
			return i
		}
	}
	for i, b := range s.blocks {
		if written && !b.Is(metadata.SampleWritten) {
			return i
		}
	}
	return -1
}

func (s *DestSample) count(flag uint64) (n int) {
	for _, b := range s.blocks {
		if b.Is(flag) {
			n++
		}
	}
	return n
}

func (s *DestSample) has(off int64) bool {
	for _, b := range s.blocks {
		if b.Offset() == off {
			return true
		}
	}
	return false
}
