package metadata

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew")

// dumpRows prints the rows of 16 bytes that are not zero.
func dumpRows(title string, b []byte) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n", title)
	for i := 0; i < len(b); i += 16 {
		if !isZero(b[i : i+16]) {
			fmt.Fprintf(&text, "%04x  %s\n", i, hex.EncodeToString(b[i:i+16]))
		}
	}
	return text.String()
}

// TestGolden pins the bytes of a superblock and of a slot. If this fails the disk format
// has changed, and clones that exist can no longer be opened.
func TestGolden(t *testing.T) {
	sb := sample()
	sb.create()
	sb.Sequence, sb.CommitSequence, sb.MapSum, sb.Clean = 0x1122334455667788, 42, mix(1, 42), true
	var b [BlockSize]byte
	sb.encode(b[:], copyOffset(0))
	text := dumpRows("superblock copy 0", b[:])
	sb.encode(b[:], copyOffset(1))
	text += dumpRows("superblock copy 1", b[:80])
	img := image(70)
	img[bitmap.PlaneWords-1], img[2*bitmap.PlaneWords-1] = 0x0807060504030201, 0x1817161514131211
	encodeSlot(b[:], &sb.UUID, 1, 42, img)
	text += dumpRows("page 1, sequence 42", b[:])

	const name = "testdata/golden.txt"
	if *update {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("the disk format has changed; found\n%s\nexpected\n%s", text, want)
	}
}

// TestMix pins the map sum's function.
func TestMix(t *testing.T) {
	for _, c := range []struct{ page, sequence, want uint64 }{
		{0, 0, 0}, {7, 0, 0}, {0, 1, 0x83ec686c1600460a}, {1, 42, 0x7bfa87c92aa0cff0},
		{1 << 32, 1 << 40, 0xe49f322e25ece692},
	} {
		if got := mix(c.page, c.sequence); got != c.want {
			t.Errorf("mix(%d, %d) = %#x, expected %#x", c.page, c.sequence, got, c.want)
		}
	}
}

// TestEveryFieldRoundTrips fills all fields by reflection, so that a field which is added
// and not encoded fails here.
func TestEveryFieldRoundTrips(t *testing.T) {
	var sb, again Superblock
	next := uint64(0)
	fillDistinct(reflect.ValueOf(&sb).Elem(), &next)
	sb.FeatureCompat |= knownCompat // else what belongs to these features is in no field
	var b [BlockSize]byte
	sb.encode(b[:], 0)
	again.decodeFields(b[:])
	if sb != again {
		t.Errorf("found\n%+v\nexpected\n%+v", again, sb)
	}
	if le.Uint32(b[offCRC:]) != checksum(b[:]) {
		t.Error("checksum is not right")
	}
}

// TestEveryFlagRoundTrips sets each bool alone.
func TestEveryFlagRoundTrips(t *testing.T) {
	for _, set := range []func(*Superblock){
		func(sb *Superblock) { sb.Clean = true },
		func(sb *Superblock) { sb.Complete = true },
		func(sb *Superblock) { sb.DestFlushFailed = true },
		func(sb *Superblock) { sb.Settings.Paused = true },
		func(sb *Superblock) { sb.Settings.ReadThrough = true },
		func(sb *Superblock) { sb.Settings.DiscardPassdown = true },
		func(sb *Superblock) { sb.Settings.Indirect = true },
		func(sb *Superblock) { sb.Settings.FinishAuto = true },
	} {
		var sb, again Superblock
		set(&sb)
		b := bytes.Repeat([]byte{0}, BlockSize)
		sb.encode(b, 0)
		again.decodeFields(b)
		again.Version = sb.Version
		if sb != again {
			t.Errorf("found %+v, expected %+v", again, sb)
		}
		var none Superblock
		none.encode(b, 0) // over the old block: the flag goes, the other bytes too
		again.decodeFields(b)
		if again != none {
			t.Errorf("encoded over another: %+v", again)
		}
	}
}

// tables are the field tables of FORMAT.md with the code's offsets.
var tables = map[string]map[string]int{
	"Superblock": {
		"magic": offMagic, "crc": offCRC, "version": offVersion, "feature_compat": offCompat,
		"feature_rocompat": offROCompat, "feature_incompat": offIncompat, "sequence": offSequence, "uuid": offUUID,
		"own_offset": offOwn, "created": offCreated, "flags": offFlags, "mode": offMode, "session": offSession,
		"commit_sequence": offCommit, "map_sum": offMapSum, "machine_id": offMachine, "boot_id": offBoot,
		"region_size": offRegionSize, "device_size": offDeviceSize, "logical_block_size": offLogicalBlock,
		"nr_regions": offNrRegions, "map_offset": offMapOffset, "source": offSource, "dest": offDest,
		"settings": offSettings, "counters": offCounters, "dest_mark": offDestInstance, "dest_sample": offDestSample,
		"source_change": offSourceChange, "source_pieces": offPieces,
	},
	"Instance": {"session": instanceSession, "number": instanceNumber, "disk": instanceDisk, "birth": instanceBirth, "tree": instanceTree},
	"Sample":   {"session": sampleSession, "exact_at": sampleExactAt, "blocks": sampleTable},
	"Identity": {
		"kind": idKind, "id_length": idIDLen, "path_length": idPathLen, "size": idSize, "mod_time": idModTime,
		"sample": idSample, "id": idID, "path": idPath,
	},
	"Settings": {
		"flags": setFlags, "rate": setRate, "min_rate": setMinRate, "threshold": setThreshold, "batch": setBatch,
		"retries": setRetries, "source_timeout": setTimeout,
	},
	"Counters": {
		"bytes_copied": cntCopied, "bytes_written": cntWritten, "bytes_discarded": cntDiscarded,
		"starts": cntStarts, "recoveries": cntRecoveries, "active_seconds": cntActive,
	},
	"Slot": {
		"magic": offMagic, "crc": offCRC, "sequence": slotSequence, "page": slotPage, "uuid": slotUUID,
		"h": slotH, "z": slotZ,
	},
}

var fieldRow = regexp.MustCompile(`^\| (\d+) \| (\d+) \| (\w+) \|`)

// TestFormatDocument compares the tables of FORMAT.md with the code, and looks for fields
// that overlap.
func TestFormatDocument(t *testing.T) {
	text, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	section, end, found := "", 0, map[string]int{}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			section, end = strings.TrimSpace(name), 0
		}
		row := fieldRow.FindStringSubmatch(line)
		if row == nil {
			continue
		}
		off, _ := strconv.Atoi(row[1])
		size, _ := strconv.Atoi(row[2])
		if want, ok := tables[section][row[3]]; !ok || want != off {
			t.Errorf("%s: %s: found at %d, the code has %d (%v)", section, row[3], off, want, ok)
		}
		if off < end {
			t.Errorf("%s: %s overlaps the field before it", section, row[3])
		}
		end = off + size
		found[section]++
	}
	for name, fields := range tables {
		if found[name] != len(fields) {
			t.Errorf("%s: %d fields in the document, %d in the code", name, found[name], len(fields))
		}
	}
}

// TestImpossibleSuperblocks: each is refused by Create, and, with a right checksum on
// disk, by Open.
func TestImpossibleSuperblocks(t *testing.T) {
	for name, change := range map[string]func(*Superblock){
		"no uuid":                func(sb *Superblock) { sb.UUID = UUID{} },
		"mode":                   func(sb *Superblock) { sb.Mode = 3 },
		"region size 0":          func(sb *Superblock) { sb.RegionSize = 0 },
		"region size 2 KiB":      func(sb *Superblock) { sb.RegionSize = 2048 },
		"region size 2 GiB":      func(sb *Superblock) { sb.RegionSize = 2 << 30 },
		"region size odd":        func(sb *Superblock) { sb.RegionSize = 12288 },
		"region size negative":   func(sb *Superblock) { sb.RegionSize = -1 << 63 },
		"device size 0":          func(sb *Superblock) { sb.DeviceSize = 0 },
		"device size negative":   func(sb *Superblock) { sb.DeviceSize = -4096 },
		"device size odd":        func(sb *Superblock) { sb.DeviceSize++ },
		"logical block 0":        func(sb *Superblock) { sb.LogicalBlockSize = 0 },
		"logical block 8 KiB":    func(sb *Superblock) { sb.LogicalBlockSize = 8192 },
		"logical block odd":      func(sb *Superblock) { sb.LogicalBlockSize = 520 },
		"source kind":            func(sb *Superblock) { sb.Source.Kind = 3 },
		"source size negative":   func(sb *Superblock) { sb.Source.Size = -1 },
		"destination id long":    func(sb *Superblock) { sb.Dest.ID = strings.Repeat("i", MaxIDBytes+1) },
		"destination path long":  func(sb *Superblock) { sb.Dest.Path = strings.Repeat("p", MaxPathBytes+1) },
		"rate negative":          func(sb *Superblock) { sb.Settings.Rate = -1 },
		"minimum rate negative":  func(sb *Superblock) { sb.Settings.MinRate = -1 },
		"region number mismatch": func(sb *Superblock) { sb.NrRegions++ },
		"map offset":             func(sb *Superblock) { sb.MapOffset = 4096 },
		"sequence 0":             func(sb *Superblock) { sb.Sequence = 0 },
	} {
		sb := sample()
		sb.create()
		change(sb)
		b := make([]byte, BlockSize)
		sb.encode(b, 0)
		if err := new(Superblock).decode(b, 0); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

// TestReservedBytes: every byte that is in no field is checked, unless an unknown feature
// may use it, and then it survives an Update.
func TestReservedBytes(t *testing.T) {
	sb := sample()
	sb.create()
	clean := make([]byte, BlockSize)
	sb.encode(clean, 0)
	b := make([]byte, BlockSize)
	for _, i := range []int{offMode + 4, 120, 180, 200, 255, offSource + 56, offSource + idID + MaxIDBytes,
		offDest + idBytes - 1, offSettings + 44, offCounters + 48, 2816, offDestInstance + 48, BlockSize - 1, offFlags + 7, offSettings + 1} {
		copy(b, clean)
		reseal(flip(i))(b)
		if err := new(Superblock).decode(b, 0); err == nil {
			t.Errorf("byte %d may be anything", i)
		}
		le.PutUint64(b[offCompat:], 1<<63)
		reseal(func([]byte) {})(b)
		if err := new(Superblock).decode(b, 0); err != nil {
			t.Errorf("byte %d with an unknown feature: %v", i, err)
		}
	}
}

func TestUnknownCompatibleFeatureSurvives(t *testing.T) {
	d, _ := create(t)
	for i := range 2 {
		edit(t, d, copyOffset(i), reseal(func(b []byte) {
			le.PutUint64(b[offCompat:], 1<<40)
			b[4090], b[offFlags+5] = 0x77, 0x80
		}))
	}
	s := expectLevels(t, d, 0, 0, 0)
	mustUpdate(t, s, func(sb *Superblock) { sb.Counters.Starts++; sb.Complete = false })
	for i := range 2 {
		edit(t, d, copyOffset(i), func(b []byte) {
			if b[4090] != 0x77 || b[offFlags+5] != 0x80 || le.Uint64(b[offCompat:]) != 1<<40 {
				t.Errorf("copy %d: what we do not know was overwritten", i)
			}
		})
	}
}
