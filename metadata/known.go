package metadata

import (
	"encoding/hex"
	"encoding/json"
)

// A destination without WWID, serial number or UUID is known by what the superblock says of it:
//
//   - DestInstance: which device it was in the session that is noted with it. It holds for one
//     boot.
//   - DestSample: checksums over blocks that are durable in it. They hold over boots. At a clean
//     stop the sample is exact; in a session it is from a while ago, and users may have written
//     some of its blocks since.
//
// Both are compatible additions (featureKnown): a program that does not know them keeps their bytes
// and does not bring them up to date. So each names its session, and an exact sample the sequence
// of the superblock that it was written with: one that is out of date does not count.

// DestInstance says which device or file a session has as its destination. Two instances of one
// boot that are equal are of the same one.
type DestInstance struct {
	Session uint64 `json:"session"`  // 0: no instance
	Number  uint64 `json:"number"`   // of a block device; of a file, that of its file system
	Disk    uint64 `json:"disk"`     // a disk's sequence number in this boot; a file's inode
	Birth   int64  `json:"birth_ns"` // when a file was made, nanoseconds since 1970; 0: not known
	Tree    Tree   `json:"tree"`     // of all that it lies on
}

// Same says that an instance of this boot is of the same device.
func (m DestInstance) Same(other DestInstance) bool {
	m.Session, other.Session = 0, 0
	return m == other
}

// Tree is a checksum over the devices that a device lies on, made by whoever opens it.
type Tree [16]byte

// MarshalText implements encoding.TextMarshaler.
func (t Tree) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(t[:])), nil }

// SampleBlocks is the most blocks in a sample, part of the format.
const SampleBlocks = 48

// ThisUpdate stands for the sequence of the superblock that an Update is about to write.
const ThisUpdate = ^uint64(0)

// DestSample is what is known of the destination's content.
type DestSample struct {
	Session uint64 `json:"session"` // 0: no sample
	// ExactAt is the sequence of the superblock that was written together with the sample when
	// nobody could write the destination any more; 0 or another one: it is from a while ago.
	ExactAt uint64      `json:"exact_at"`
	Blocks  SampleTable `json:"blocks"`
}

// SampleTable is the sample's blocks; those that are in no use are zero, behind all others.
type SampleTable [SampleBlocks]SampleBlock

// SampleBlock is a block of BlockSize bytes of the destination.
type SampleBlock struct {
	Place uint64 `json:"place"` // its offset in bytes, plus the flags
	Sum   uint64 `json:"sum"`   // of its content, made by whoever reads it
}

// Flags of a block in a sample. An offset is a multiple of BlockSize, so that there is room.
const (
	SampleUsed    = 1 << 0 // set in each
	SampleWritten = 1 << 1 // users wrote it: it tells two clones of one source apart
	SampleUniform = 1 << 2 // all its bytes are equal: it tells little
	SampleSteady  = 1 << 3 // it had not changed for some time: it has hardly changed since

	sampleFlags = BlockSize - 1
)

// Offset is where the block is in the destination, in bytes.
func (b SampleBlock) Offset() int64 { return int64(b.Place &^ sampleFlags) }

// Is says whether the block has a flag.
func (b SampleBlock) Is(flag uint64) bool { return b.Place&flag != 0 }

// Used are the blocks in use.
func (t *SampleTable) Used() []SampleBlock {
	for i := range t {
		if !t[i].Is(SampleUsed) {
			return t[:i]
		}
	}
	return t[:]
}

// MarshalJSON implements json.Marshaler.
func (t SampleTable) MarshalJSON() ([]byte, error) { return json.Marshal(t.Used()) }

// Known is whether sb has a sample of its own session, and whether that is exact.
func (sb *Superblock) Known() (sample *DestSample, exact bool) {
	s := &sb.DestSample
	if s.Session == 0 || s.Session != sb.Session {
		return nil, false
	}
	return s, sb.Clean && s.ExactAt == sb.Sequence
}

// Offsets in the superblock.
const (
	offDestInstance = 3184 // 64 bytes
	offDestSample   = 3248 // 784 bytes

	instanceSession = 0
	instanceNumber  = 8
	instanceDisk    = 16
	instanceBirth   = 24
	instanceTree    = 32

	sampleSession = 0
	sampleExactAt = 8
	sampleTable   = 16
	sampleEntry   = 16 // bytes each
)

func (m *DestInstance) encode(b []byte) {
	le.PutUint64(b[instanceSession:], m.Session)
	le.PutUint64(b[instanceNumber:], m.Number)
	le.PutUint64(b[instanceDisk:], m.Disk)
	le.PutUint64(b[instanceBirth:], uint64(m.Birth))
	copy(b[instanceTree:], m.Tree[:])
}

func decodeDestInstance(b []byte) DestInstance {
	return DestInstance{
		Session: le.Uint64(b[instanceSession:]), Number: le.Uint64(b[instanceNumber:]), Disk: le.Uint64(b[instanceDisk:]),
		Birth: int64(le.Uint64(b[instanceBirth:])), Tree: Tree(b[instanceTree:]),
	}
}

func (s *DestSample) encode(b []byte) {
	le.PutUint64(b[sampleSession:], s.Session)
	le.PutUint64(b[sampleExactAt:], s.ExactAt)
	for i, block := range s.Blocks {
		at := b[sampleTable+i*sampleEntry:]
		le.PutUint64(at, block.Place)
		le.PutUint64(at[8:], block.Sum)
	}
}

func decodeDestSample(b []byte) (s DestSample) {
	s.Session, s.ExactAt = le.Uint64(b[sampleSession:]), le.Uint64(b[sampleExactAt:])
	for i := range s.Blocks {
		at := b[sampleTable+i*sampleEntry:]
		s.Blocks[i] = SampleBlock{Place: le.Uint64(at), Sum: le.Uint64(at[8:])}
	}
	return s
}
