package metadata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Places on the device, in bytes. Everything in this file is part of the disk format and
// does not change; FORMAT.md has it as tables.
const (
	copyOffset1 = 64 << 10  // superblock copy 1; copy 0 is at 0
	mapOffset   = 128 << 10 // region map
)

// copyOffset returns where a superblock copy is.
func copyOffset(i int) int64 { return int64(i) * copyOffset1 }

// version is the format version that this program writes and the newest that it reads.
const version = 1

// featureKnown is the compatible feature of a superblock that has DestInstance or DestSample.
const featureKnown uint64 = 1 << 0

// compatSource says that the superblock holds more about the source than version 1 began with: when
// its file changed last, the pieces of its sample, and how long it may take to answer. A program
// that does not know the feature keeps these bytes and compares the older sample.
const compatSource uint64 = 1 << 1

// compatDirect says that one of the settings is that nothing is led straight to the destination. A
// program that does not know the feature leads nothing there, and keeps the bit.
const compatDirect uint64 = 1 << 2

// compatFinish says that one of the settings is that the clone finishes by itself. A program that
// does not know the feature waits for `finish`, and keeps the bit.
const compatFinish uint64 = 1 << 3

// Features that this program knows.
const (
	knownCompat          = featureKnown | compatSource | compatDirect | compatFinish
	knownROCompat uint64 = 0
	knownIncompat uint64 = 0
)

var superblockMagic = [8]byte{'U', 'B', 'L', 'K', 'C', 'L', 'S', 'B'}

// Offsets of the superblock's fields. Magic and checksum stand at the same place in a
// slot, and at the same place in every version.
const (
	offMagic        = 0
	offCRC          = 8
	offVersion      = 12
	offCompat       = 16
	offROCompat     = 24
	offIncompat     = 32
	offSequence     = 40
	offUUID         = 48
	offOwn          = 64 // this copy's own offset: catches misdirected writes
	offCreated      = 72
	offFlags        = 80
	offMode         = 88
	offSession      = 96
	offCommit       = 104
	offMapSum       = 112
	offMachine      = 128
	offBoot         = 144
	offRegionSize   = 160
	offDeviceSize   = 168
	offLogicalBlock = 176
	offNrRegions    = 184
	offMapOffset    = 192
	offSource       = 256
	offDest         = 1280
	offSettings     = 2304
	offCounters     = 2560
	offSourceChange = 2824 // with compatSource
	offPieces       = 2832 // with compatSource
)

// Offsets in an identity of 1024 bytes.
const (
	idKind    = 0
	idIDLen   = 4
	idPathLen = 6
	idSize    = 8
	idModTime = 16
	idSample  = 24
	idID      = 64  // 256 bytes
	idPath    = 320 // 512 bytes
	idBytes   = 1024
)

// Offsets in the settings and in the counters, 256 bytes each.
const (
	setFlags     = 0
	setRate      = 8
	setMinRate   = 16
	setThreshold = 24
	setBatch     = 32
	setRetries   = 40
	setTimeout   = 44 // with compatSource

	cntCopied     = 0
	cntWritten    = 8
	cntDiscarded  = 16
	cntStarts     = 24
	cntRecoveries = 32
	cntActive     = 40
)

// Bits of the superblock's and of the settings' flags.
const (
	flagClean           = 1 << 0
	flagComplete        = 1 << 1
	flagDestFlushFailed = 1 << 2

	flagPaused          = 1 << 0
	flagReadThrough     = 1 << 1
	flagDiscardPassdown = 1 << 2
	flagIndirect        = 1 << 3
	flagFinishAuto      = 1 << 4
)

var le = binary.LittleEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the CRC-32C of a block, its own field taken as zero.
func checksum(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:offCRC])
	c = crc32.Update(c, castagnoli, zeroBlock[:4])
	return crc32.Update(c, castagnoli, b[offCRC+4:])
}

// encode writes the superblock's fields over block b, for the copy at byte own. Bytes that
// are no field of this version stay as they are: a compatible newer version's survive.
func (sb *Superblock) encode(b []byte, own int64) {
	copy(b[offMagic:], superblockMagic[:])
	le.PutUint32(b[offVersion:], sb.Version)
	le.PutUint64(b[offCompat:], sb.FeatureCompat)
	le.PutUint64(b[offROCompat:], sb.FeatureROCompat)
	le.PutUint64(b[offIncompat:], sb.FeatureIncompat)
	le.PutUint64(b[offSequence:], sb.Sequence)
	copy(b[offUUID:], sb.UUID[:])
	le.PutUint64(b[offOwn:], uint64(own))
	le.PutUint64(b[offCreated:], uint64(sb.CreatedNs))
	putFlag(b[offFlags:], flagClean, sb.Clean)
	putFlag(b[offFlags:], flagComplete, sb.Complete)
	putFlag(b[offFlags:], flagDestFlushFailed, sb.DestFlushFailed)
	le.PutUint32(b[offMode:], uint32(sb.Mode))
	le.PutUint64(b[offSession:], sb.Session)
	le.PutUint64(b[offCommit:], sb.CommitSequence)
	le.PutUint64(b[offMapSum:], sb.MapSum)
	copy(b[offMachine:], sb.MachineID[:])
	copy(b[offBoot:], sb.BootID[:])
	le.PutUint64(b[offRegionSize:], uint64(sb.RegionSize))
	le.PutUint64(b[offDeviceSize:], uint64(sb.DeviceSize))
	le.PutUint32(b[offLogicalBlock:], sb.LogicalBlockSize)
	le.PutUint64(b[offNrRegions:], sb.NrRegions)
	le.PutUint64(b[offMapOffset:], uint64(sb.MapOffset))
	sb.Source.encode(b[offSource:])
	sb.Dest.encode(b[offDest:])
	sb.Settings.encode(b[offSettings:])
	sb.Counters.encode(b[offCounters:])
	sb.DestInstance.encode(b[offDestInstance:])
	sb.DestSample.encode(b[offDestSample:])
	if sb.FeatureCompat&compatSource != 0 {
		sb.encodeSource(b)
	}
	le.PutUint32(b[offCRC:], checksum(b))
}

// encodeSource writes what belongs to compatSource.
func (sb *Superblock) encodeSource(b []byte) {
	le.PutUint64(b[offSourceChange:], uint64(sb.SourceChangeNs))
	le.PutUint32(b[offSettings+setTimeout:], sb.Settings.SourceTimeout)
	for i, piece := range sb.SourcePieces {
		le.PutUint32(b[offPieces+4*i:], piece)
	}
}

func (sb *Superblock) decodeSource(b []byte) {
	sb.SourceChangeNs = int64(le.Uint64(b[offSourceChange:]))
	sb.Settings.SourceTimeout = le.Uint32(b[offSettings+setTimeout:])
	for i := range sb.SourcePieces {
		sb.SourcePieces[i] = le.Uint32(b[offPieces+4*i:])
	}
}

func (id *Identity) encode(b []byte) {
	le.PutUint32(b[idKind:], uint32(id.Kind))
	le.PutUint16(b[idIDLen:], uint16(len(id.ID)))
	le.PutUint16(b[idPathLen:], uint16(len(id.Path)))
	le.PutUint64(b[idSize:], uint64(id.Size))
	le.PutUint64(b[idModTime:], uint64(id.ModTimeNs))
	copy(b[idSample:], id.Sample[:])
	putString(b[idID:idID+MaxIDBytes+1], id.ID)
	putString(b[idPath:idPath+MaxPathBytes+1], id.Path)
}

func (s *Settings) encode(b []byte) {
	putFlag(b[setFlags:], flagPaused, s.Paused)
	putFlag(b[setFlags:], flagReadThrough, s.ReadThrough)
	putFlag(b[setFlags:], flagDiscardPassdown, s.DiscardPassdown)
	putFlag(b[setFlags:], flagIndirect, s.Indirect)
	putFlag(b[setFlags:], flagFinishAuto, s.FinishAuto)
	le.PutUint64(b[setRate:], uint64(s.Rate))
	le.PutUint64(b[setMinRate:], uint64(s.MinRate))
	le.PutUint64(b[setThreshold:], s.Threshold)
	le.PutUint64(b[setBatch:], s.Batch)
	le.PutUint32(b[setRetries:], s.Retries)
}

func (c *Counters) encode(b []byte) {
	le.PutUint64(b[cntCopied:], c.BytesCopied)
	le.PutUint64(b[cntWritten:], c.BytesWritten)
	le.PutUint64(b[cntDiscarded:], c.BytesDiscarded)
	le.PutUint64(b[cntStarts:], c.Starts)
	le.PutUint64(b[cntRecoveries:], c.Recoveries)
	le.PutUint64(b[cntActive:], c.ActiveSeconds)
}

// decode reads the superblock copy at byte own from block b. Its error says what was found
// and what was expected; it is ErrVersion where another program could read the block.
func (sb *Superblock) decode(b []byte, own int64) error {
	if !bytes.Equal(b[offMagic:offMagic+8], superblockMagic[:]) {
		return fmt.Errorf("magic: found %q, expected %q", b[offMagic:offMagic+8], superblockMagic[:])
	}
	if found, want := le.Uint32(b[offCRC:]), checksum(b); found != want {
		return fmt.Errorf("checksum: found %08x, expected %08x", found, want)
	}
	if v := le.Uint32(b[offVersion:]); v != version {
		return fmt.Errorf("%w: format version: found %d, expected %d", ErrVersion, v, version)
	}
	if f := le.Uint64(b[offIncompat:]) &^ knownIncompat; f != 0 {
		return fmt.Errorf("%w: incompatible features: found %#x, known %#x", ErrVersion, f, knownIncompat)
	}
	if at := le.Uint64(b[offOwn:]); at != uint64(own) {
		return fmt.Errorf("own offset: found %d, expected %d", at, own)
	}
	sb.decodeFields(b)
	if err := sb.validate(); err != nil {
		return err
	}
	return sb.checkReserved(b, own)
}

func (sb *Superblock) decodeFields(b []byte) {
	*sb = Superblock{
		Format: Format{
			Version:         le.Uint32(b[offVersion:]),
			FeatureCompat:   le.Uint64(b[offCompat:]),
			FeatureROCompat: le.Uint64(b[offROCompat:]),
			FeatureIncompat: le.Uint64(b[offIncompat:]),
		},
		Sequence:  le.Uint64(b[offSequence:]),
		UUID:      UUID(b[offUUID:]),
		CreatedNs: int64(le.Uint64(b[offCreated:])),
		State:     decodeState(b),
		Host:      Host{MachineID: UUID(b[offMachine:]), BootID: UUID(b[offBoot:])},
		Geometry: Geometry{
			RegionSize:       int64(le.Uint64(b[offRegionSize:])),
			DeviceSize:       int64(le.Uint64(b[offDeviceSize:])),
			LogicalBlockSize: le.Uint32(b[offLogicalBlock:]),
			NrRegions:        le.Uint64(b[offNrRegions:]),
			MapOffset:        int64(le.Uint64(b[offMapOffset:])),
		},
		Source:       decodeIdentity(b[offSource:]),
		Dest:         decodeIdentity(b[offDest:]),
		Settings:     decodeSettings(b[offSettings:]),
		Counters:     decodeCounters(b[offCounters:]),
		DestInstance: decodeDestInstance(b[offDestInstance:]),
		DestSample:   decodeDestSample(b[offDestSample:]),
	}
	if sb.FeatureCompat&compatSource != 0 {
		sb.decodeSource(b)
	}
}

func decodeState(b []byte) State {
	flags := le.Uint64(b[offFlags:])
	return State{
		Clean:           flags&flagClean != 0,
		Complete:        flags&flagComplete != 0,
		DestFlushFailed: flags&flagDestFlushFailed != 0,
		Mode:            Mode(le.Uint32(b[offMode:])),
		Session:         le.Uint64(b[offSession:]),
		CommitSequence:  le.Uint64(b[offCommit:]),
		MapSum:          le.Uint64(b[offMapSum:]),
	}
}

func decodeIdentity(b []byte) Identity {
	return Identity{
		Kind:      Kind(le.Uint32(b[idKind:])),
		Size:      int64(le.Uint64(b[idSize:])),
		ID:        getString(b[idID:idID+MaxIDBytes+1], le.Uint16(b[idIDLen:])),
		ModTimeNs: int64(le.Uint64(b[idModTime:])),
		Sample:    Hash(b[idSample:]),
		Path:      getString(b[idPath:idPath+MaxPathBytes+1], le.Uint16(b[idPathLen:])),
	}
}

func decodeSettings(b []byte) Settings {
	flags := le.Uint64(b[setFlags:])
	return Settings{
		Paused:          flags&flagPaused != 0,
		ReadThrough:     flags&flagReadThrough != 0,
		DiscardPassdown: flags&flagDiscardPassdown != 0,
		Indirect:        flags&flagIndirect != 0,
		FinishAuto:      flags&flagFinishAuto != 0,
		Rate:            int64(le.Uint64(b[setRate:])),
		MinRate:         int64(le.Uint64(b[setMinRate:])),
		Threshold:       le.Uint64(b[setThreshold:]),
		Batch:           le.Uint64(b[setBatch:]),
		Retries:         le.Uint32(b[setRetries:]),
	}
}

func decodeCounters(b []byte) Counters {
	return Counters{
		BytesCopied:    le.Uint64(b[cntCopied:]),
		BytesWritten:   le.Uint64(b[cntWritten:]),
		BytesDiscarded: le.Uint64(b[cntDiscarded:]),
		Starts:         le.Uint64(b[cntStarts:]),
		Recoveries:     le.Uint64(b[cntRecoveries:]),
		ActiveSeconds:  le.Uint64(b[cntActive:]),
	}
}

// checkReserved reports a byte that is no field of this version and not zero: encoding
// what was decoded must give the same block. Compatible features of a newer version may
// use such bytes.
func (sb *Superblock) checkReserved(b []byte, own int64) error {
	if sb.FeatureCompat&^knownCompat != 0 || sb.FeatureROCompat&^knownROCompat != 0 {
		return nil
	}
	var again [BlockSize]byte
	sb.encode(again[:], own)
	for i := range again {
		if again[i] != b[i] && (i < offCRC || i >= offCRC+4) {
			return fmt.Errorf("byte %d: reserved: found %#02x, expected %#02x", i, b[i], again[i])
		}
	}
	return nil
}

// putFlag sets or clears one bit of the 64-bit flags at b and leaves the others.
func putFlag(b []byte, flag uint64, on bool) {
	v := le.Uint64(b) &^ flag
	if on {
		v |= flag
	}
	le.PutUint64(b, v)
}

// putString writes s into the field b and zeros behind it.
func putString(b []byte, s string) { clear(b[copy(b, s):]) }

// getString reads n bytes of the field b. A length beyond the field gives all of it,
// which is longer than any valid string: validate refuses it.
func getString(b []byte, n uint16) string { return string(b[:min(int(n), len(b))]) }
