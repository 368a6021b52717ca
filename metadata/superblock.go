package metadata

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
)

// UUID is a 128-bit identity: of the metadata, of a machine, of a boot.
type UUID [16]byte

// Cookie is the beginning of the UUID as a number, by which the driver's device is known as the
// clone's.
func (u UUID) Cookie() uint64 { return binary.LittleEndian.Uint64(u[:]) }

// String returns the identity in the usual form, 8-4-4-4-12 hexadecimal digits.
func (u UUID) String() string {
	s := hex.EncodeToString(u[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// Mode says what may be done with the metadata; it only gets worse (I10).
type Mode uint32

// The modes, from good to bad.
const (
	ModeReadWrite Mode = iota
	ModeReadOnly       // no new marks
	ModeFail           // nothing
)

// String returns the mode's name as dm-clone's status has it.
func (m Mode) String() string {
	switch m {
	case ModeReadWrite:
		return "rw"
	case ModeReadOnly:
		return "ro"
	case ModeFail:
		return "Fail"
	}
	return fmt.Sprintf("mode(%d)", uint32(m))
}

// MarshalText implements encoding.TextMarshaler.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Kind is the kind of a source or destination.
type Kind uint32

// The kinds.
const (
	KindNone Kind = iota // not recorded
	KindFile
	KindBlock
)

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case KindNone:
		return "none"
	case KindFile:
		return "file"
	case KindBlock:
		return "block"
	}
	return fmt.Sprintf("kind(%d)", uint32(k))
}

// MarshalText implements encoding.TextMarshaler.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Hash is a checksum over samples of a source, made and compared by whoever opens it.
type Hash [32]byte

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// NrPieces is the number of Pieces, part of the format.
const NrPieces = 80

// Pieces are checksums of pieces of the source, which whoever opens the source makes and compares.
// 0 stands for a piece that could not be read.
type Pieces [NrPieces]uint32

// Known is how many pieces could be read.
func (p *Pieces) Known() (n int) {
	for _, piece := range p {
		if piece != 0 {
			n++
		}
	}
	return n
}

// match compares the pieces that could be read both times. There must be at least half of those
// that are known.
func (p *Pieces) match(now *Pieces) error {
	both := 0
	for i, piece := range p {
		switch {
		case piece == 0 || now[i] == 0:
		case piece != now[i]:
			return fmt.Errorf("%w: source sample, piece %d: found %08x, expected %08x", ErrMismatch, i, piece, now[i])
		default:
			both++
		}
	}
	if known := p.Known(); 2*both < known {
		return fmt.Errorf("%w: %d of %d pieces", ErrUnverified, both, known)
	}
	return nil
}

// Identity says which device or file the source or the destination is.
type Identity struct {
	Kind      Kind   `json:"kind"`
	Size      int64  `json:"size"`        // bytes
	ID        string `json:"id"`          // WWID or serial, or file system id and inode; at most MaxIDBytes
	ModTimeNs int64  `json:"mod_time_ns"` // of a source file, nanoseconds since 1970; 0 for others
	Sample    Hash   `json:"sample"`      // of a source; zero for a destination
	Path      string `json:"path"`        // where it was last seen, for display only; at most MaxPathBytes
}

// Limits of an Identity, part of the format.
const (
	MaxIDBytes   = 255
	MaxPathBytes = 511
)

// Settings are what can be changed while a clone runs and is kept over a restart.
type Settings struct {
	Paused          bool   `json:"paused"`
	ReadThrough     bool   `json:"read_through"`
	DiscardPassdown bool   `json:"discard_passdown"`
	Indirect        bool   `json:"indirect"`    // nothing is led straight to the destination
	FinishAuto      bool   `json:"finish_auto"` // the clone finishes by itself when it is complete
	Rate            int64  `json:"rate"`        // bytes a second, 0 = no cap
	MinRate         int64  `json:"min_rate"`    // bytes a second
	Threshold       uint64 `json:"threshold"`   // regions
	Batch           uint64 `json:"batch"`       // regions
	Retries         uint32 `json:"retries"`
	SourceTimeout   uint32 `json:"source_timeout"` // seconds; 0 = the default, NoTimeout = none
}

// NoTimeout is a SourceTimeout that never ends.
const NoTimeout = 1<<32 - 1

// Counters are totals over the life of the clone.
type Counters struct {
	BytesCopied    uint64 `json:"bytes_copied"`    // hydrated by copying
	BytesWritten   uint64 `json:"bytes_written"`   // hydrated by whole-region writes
	BytesDiscarded uint64 `json:"bytes_discarded"` // zero by discards, zeroing and holes
	Starts         uint64 `json:"starts"`
	Recoveries     uint64 `json:"recoveries"`
	ActiveSeconds  uint64 `json:"active_seconds"` // of background hydration
}

// Superblock is what the metadata holds beside the region map. Fields marked "store" are
// set by the Store and what a caller puts there is overwritten; "fixed" ones are set at
// Create and do not change.
type Superblock struct {
	Format
	Sequence  uint64 `json:"sequence"`   // store: of the superblock; the higher valid copy wins
	UUID      UUID   `json:"uuid"`       // fixed; not zero
	CreatedNs int64  `json:"created_ns"` // fixed; nanoseconds since 1970

	State
	Host
	Geometry

	Source   Identity `json:"source"`
	Dest     Identity `json:"dest"`
	Settings Settings `json:"settings"`
	Counters Counters `json:"counters"`

	DestInstance DestInstance `json:"dest_mark"` // its name of old: other programs read it
	DestSample   DestSample   `json:"dest_sample"`

	// SourceChangeNs is when the inode of a source file changed last, which tells of a change also
	// where the modification time was put back; nanoseconds since 1970; 0 where it was not
	// recorded.
	SourceChangeNs int64  `json:"source_change_ns"`
	SourcePieces   Pieces `json:"source_pieces"`
}

// Format says who can read the metadata.
type Format struct {
	Version         uint32 `json:"version"`          // store
	FeatureCompat   uint64 `json:"feature_compat"`   // store: unknown bits do no harm
	FeatureROCompat uint64 `json:"feature_rocompat"` // store: with unknown bits, read only
	FeatureIncompat uint64 `json:"feature_incompat"` // store: with unknown bits, not opened
}

// State is how the clone was when this was written.
type State struct {
	Clean           bool   `json:"clean"`             // stopped in order; slots match MapSum
	Complete        bool   `json:"complete"`          // the durable H plane is full
	DestFlushFailed bool   `json:"dest_flush_failed"` // I10
	Mode            Mode   `json:"mode"`
	Session         uint64 `json:"session"`         // one period from clean to clean
	CommitSequence  uint64 `json:"commit_sequence"` // store: of the last commit when this was written
	MapSum          uint64 `json:"map_sum"`         // store: with the clean flag, over the current slots
}

// Host says where the clone was served.
type Host struct {
	MachineID UUID `json:"machine_id"`
	BootID    UUID `json:"boot_id"`
}

// Geometry is fixed: sizes and places in bytes.
type Geometry struct {
	RegionSize       int64  `json:"region_size"` // a power of two
	DeviceSize       int64  `json:"device_size"`
	LogicalBlockSize uint32 `json:"logical_block_size"`
	NrRegions        uint64 `json:"nr_regions"` // store: from the sizes
	MapOffset        int64  `json:"map_offset"` // store
}

// Bounds of the geometry, in bytes.
const (
	MinRegionSize = 4 << 10
	MaxRegionSize = 1 << 30
)

// NrRegions returns the number of regions of a device; the last may be shorter.
func NrRegions(deviceSize, regionSize int64) uint64 {
	n := uint64(deviceSize) / uint64(regionSize)
	if uint64(deviceSize)%uint64(regionSize) != 0 {
		n++
	}
	return n
}

// Match reports as ErrMismatch in which way the metadata is not that of want: region and device
// size and the identities of source and destination count, paths do not. A destination that has
// another size by now, and room for the clone, is the same if it is known by an identity of its
// own, or in the boot in which it was used last.
func (sb *Superblock) Match(want *Superblock) error {
	destSize := want.Dest.Size
	if destSize >= sb.DeviceSize && (sb.Dest.ID != "" || sb.BootID == want.BootID) {
		destSize = sb.Dest.Size
	}
	err := mismatch([]field{
		{"region size", sb.RegionSize, want.RegionSize},
		{"device size", sb.DeviceSize, want.DeviceSize},
		{"logical block size", sb.LogicalBlockSize, want.LogicalBlockSize},
	})
	if err == nil {
		err = sb.MatchSource(want)
	}
	if err != nil {
		return err
	}
	return mismatch([]field{
		{"destination kind", sb.Dest.Kind, want.Dest.Kind},
		{"destination size", sb.Dest.Size, destSize},
		{"destination id", sb.Dest.ID, want.Dest.ID},
	})
}

// MatchSource is Match for the source alone.
func (sb *Superblock) MatchSource(want *Superblock) error {
	if err := sb.MatchSourceContent(want); err != nil {
		return err
	}
	return mismatch([]field{{"source modification time", sb.Source.ModTimeNs, want.Source.ModTimeNs}})
}

// MatchUsedSource is MatchSource for a source that was in use until now. Its inode has not changed
// either, by a name that it was given or by a modification time that was put back.
func (sb *Superblock) MatchUsedSource(want *Superblock) error {
	if err := sb.MatchSource(want); err != nil || sb.SourceChangeNs == 0 {
		return err
	}
	return mismatch([]field{{"source change time", sb.SourceChangeNs, want.SourceChangeNs}})
}

// MatchSourceContent is MatchSource for somebody who has said that the source may have been
// touched: only what it is and the samples of its content count.
func (sb *Superblock) MatchSourceContent(want *Superblock) error {
	err := mismatch([]field{
		{"source kind", sb.Source.Kind, want.Source.Kind},
		{"source size", sb.Source.Size, want.Source.Size},
		{"source id", sb.Source.ID, want.Source.ID},
	})
	if err != nil {
		return err
	}
	if sb.SourcePieces.Known() == 0 {
		return mismatch([]field{{"source sample", hex.EncodeToString(sb.Source.Sample[:]), hex.EncodeToString(want.Source.Sample[:])}})
	}
	return sb.SourcePieces.match(&want.SourcePieces)
}

// field is one that two superblocks are to have in common.
type field struct {
	name        string
	found, want any
}

// mismatch reports the first field that differs.
func mismatch(fields []field) error {
	for _, f := range fields {
		if f.found != f.want {
			return fmt.Errorf("%w: %s: found %v, expected %v", ErrMismatch, f.name, f.found, f.want)
		}
	}
	return nil
}

// validate reports what is impossible in a superblock. It is asked before every write and
// after every read.
func (sb *Superblock) validate() error {
	switch {
	case sb.UUID == UUID{}:
		return fmt.Errorf("no UUID")
	case sb.Sequence == 0:
		return fmt.Errorf("sequence is 0")
	case sb.Mode > ModeFail:
		return fmt.Errorf("mode %d", uint32(sb.Mode))
	}
	if err := sb.validateGeometry(); err != nil {
		return err
	}
	if err := sb.Source.validate(); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if err := sb.Dest.validate(); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	if sb.Settings.Rate < 0 || sb.Settings.MinRate < 0 {
		return fmt.Errorf("rate %d or minimum rate %d", sb.Settings.Rate, sb.Settings.MinRate)
	}
	return nil
}

func (sb *Superblock) validateGeometry() error {
	region, block := sb.RegionSize, int64(sb.LogicalBlockSize)
	switch {
	case region < MinRegionSize || region > MaxRegionSize || bits.OnesCount64(uint64(region)) != 1:
		return fmt.Errorf("region size %d", region)
	case block < 512 || block > BlockSize || bits.OnesCount64(uint64(block)) != 1:
		return fmt.Errorf("logical block size %d", block)
	case sb.DeviceSize <= 0 || sb.DeviceSize%block != 0:
		return fmt.Errorf("device size %d", sb.DeviceSize)
	case sb.NrRegions != NrRegions(sb.DeviceSize, region):
		return fmt.Errorf("%d regions of %d bytes in %d bytes", sb.NrRegions, region, sb.DeviceSize)
	case sb.MapOffset != mapOffset:
		return fmt.Errorf("map offset %d", sb.MapOffset)
	}
	return nil
}

func (id *Identity) validate() error {
	switch {
	case id.Kind > KindBlock:
		return fmt.Errorf("kind %d", uint32(id.Kind))
	case id.Size < 0:
		return fmt.Errorf("size %d", id.Size)
	case len(id.ID) > MaxIDBytes:
		return fmt.Errorf("id of %d bytes, at most %d", len(id.ID), MaxIDBytes)
	case len(id.Path) > MaxPathBytes:
		return fmt.Errorf("path of %d bytes, at most %d", len(id.Path), MaxPathBytes)
	}
	return nil
}
