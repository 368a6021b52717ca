package blockdev

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// What has been discarded may read as anything, and as something else each time, until it is
// written. The kernel does not say of which devices more can be expected. Known to read as zeros
// from then on, and behind a flush also when the power has been cut:
//
//	dm-thin         a block that has been given up is not provisioned (Documentation/admin-guide/device-mapper)
//	null_blk        the memory is given back (null_handle_discard, drivers/block/null_blk/main.c, 6.12)
//	an ATA disk     that promises both in words 69 and 169 of what it says of itself (ata_id_has_zero_after_trim,
//	                linux/ata.h); the kernel relies on it for few disks, and offers no write-zeroes for the others
//	linear, striped what all of them lie on
//
// Of everything else, such as NBD, MMC and other targets of device-mapper, nothing is known.

// Zeros says how long what reads as zeros from a device, and is not written, goes on doing so.
type Zeros uint8

const (
	ZerosUnknown Zeros = iota
	// ZerosOfUnit: until a part of the unit is written in which the device gives up space
	// (Device.DiscardUnit). The rest of it then shows old bytes: dm-thin with skip_block_zeroing.
	ZerosOfUnit
	ZerosSteady
)

// steadyZeros says it of a block device. It looks at most so many levels down.
func (t tree) steadyZeros(rdev uint64, levels int) Zeros {
	dir := diskOf(t.dir(rdev))
	disk, ok := parseDev(text(dir, "dev"))
	if !ok || levels == 0 {
		return ZerosUnknown
	}
	below := slaves(dir)
	switch t.driver(disk) {
	case "device-mapper":
		table, err := t.targets(disk)
		if err != nil || len(below) == 0 {
			return ZerosUnknown
		}
		if len(table) == 1 && table[0].Type == "thin" {
			return t.thinZeros(table[0])
		}
		if slices.ContainsFunc(table, func(target sys.DMTarget) bool { return target.Type != "linear" && target.Type != "striped" }) {
			return ZerosUnknown
		}
	case "nullb":
		return ZerosSteady
	case "sd":
		return trimsToZero(dir)
	default:
		return ZerosUnknown
	}
	least := ZerosSteady
	for _, dev := range below {
		least = min(least, t.steadyZeros(dev, levels-1))
	}
	return least
}

// thinZeros looks at the pool of a thin volume.
func (t tree) thinZeros(volume sys.DMTarget) Zeros {
	pool, _, _ := strings.Cut(volume.Params, " ")
	dev, ok := parseDev(pool)
	table, err := t.targets(dev)
	switch {
	case !ok || err != nil || len(table) != 1:
		return ZerosUnknown
	case slices.Contains(strings.Fields(table[0].Params), "skip_block_zeroing"):
		return ZerosOfUnit
	}
	return ZerosSteady
}

// trimsToZero says of a SCSI disk that it is an ATA disk which promises that what has been trimmed
// reads as zeros, each time.
func trimsToZero(dir string) Zeros {
	const (
		support, trim          = 169, 1           // words of IDENTIFY DEVICE (ATA8-ACS), and bits of them
		additional, zeroAlways = 69, 1<<14 | 1<<5 // deterministic, and zeros
	)
	for at := dir; len(at) > 1; at = filepath.Dir(at) {
		port, isATA := strings.CutPrefix(filepath.Base(at), "ata")
		if _, err := strconv.Atoi(port); !isATA || err != nil {
			continue
		}
		found, _ := filepath.Glob(filepath.Join(at, "link*", "dev*", "ata_device", "dev*", "id"))
		if len(found) != 1 { // several disks behind one port
			return ZerosUnknown
		}
		words := strings.Fields(text(found[0]))
		word := func(i int) uint64 {
			if i >= len(words) {
				return 0
			}
			n, _ := strconv.ParseUint(words[i], 16, 16)
			return n
		}
		if word(support)&trim != 0 && word(additional)&zeroAlways == zeroAlways {
			return ZerosSteady
		}
	}
	return ZerosUnknown
}
