package blockdev

import (
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// What has been discarded may read as anything, and as something else each time, until it is written. The kernel does not
// say of which devices more can be expected. Known to read as zeros from then on, and behind a flush also when the power has
// been cut:
//
//	dm-thin         a block that has been given up is not provisioned (Documentation/admin-guide/device-mapper)
//	null_blk, brd   the memory is given back (null_handle_discard, brd_do_discard, 6.12)
//	an ATA disk     that promises both in words 69 and 169 of what it says of itself (ata_id_has_zero_after_trim,
//	                linux/ata.h); the kernel relies on it for few disks, and offers no write-zeroes for the others
//	linear, striped what all of them lie on
//
// Of everything else, such as NBD, MMC and a target of device-mapper that is not named here, nothing is known.

// steadyZeros says that what reads as zeros from the block device goes on doing so, even if it has been discarded. It looks
// at most so many levels down.
func (t tree) steadyZeros(rdev uint64, levels int) bool {
	dir := diskOf(t.dir(rdev))
	disk, ok := parseDev(text(dir, "dev"))
	if !ok || levels == 0 {
		return false
	}
	below := slaves(dir)
	switch t.driver(disk) {
	case "device-mapper":
		thin, passes := t.tableKind(disk)
		if thin || !passes {
			return thin
		}
	case "nullb", "ramdisk":
		return true
	case "sd":
		return t.trimsToZero(dir)
	default:
		return false
	}
	for _, dev := range below {
		if !t.steadyZeros(dev, levels-1) {
			return false
		}
	}
	return len(below) > 0
}

// driver is the name by which a driver has registered the major number of its devices (/proc/devices).
func (t tree) driver(disk uint64) string {
	major := strconv.FormatUint(uint64(sys.Major(disk)), 10)
	_, list, _ := strings.Cut(text(t.proc, "devices"), "Block devices:")
	for line := range strings.Lines(list) {
		if number, name, _ := strings.Cut(strings.TrimSpace(line), " "); number == major {
			return name
		}
	}
	return ""
}

// tableKind says of a device of device-mapper whether all of it is a thin volume, and whether it only passes requests on.
func (t tree) tableKind(disk uint64) (thin, passes bool) {
	table, err := t.targets(disk)
	if err != nil || len(table) == 0 {
		return false, false
	}
	thin, passes = true, true
	for _, target := range table {
		thin = thin && target.Type == "thin"
		passes = passes && (target.Type == "linear" || target.Type == "striped")
	}
	return thin, passes
}

// trimsToZero says of a SCSI disk that it is an ATA disk which promises that what has been trimmed reads as zeros, each time.
func (t tree) trimsToZero(dir string) bool {
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
			return false
		}
		words := strings.Fields(text(found[0]))
		word := func(i int) uint64 {
			if i >= len(words) {
				return 0
			}
			n, _ := strconv.ParseUint(words[i], 16, 16)
			return n
		}
		return word(support)&trim != 0 && word(additional)&zeroAlways == zeroAlways
	}
	return false
}
