package blockdev

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// TestSteadyZeros: zeros that are read are believed of what is known to keep them, directly or
// through what only passes requests on, and of nothing else.
func TestSteadyZeros(t *testing.T) {
	f := newFakeHost(t)
	tables := map[uint64][]sys.DMTarget{}
	f.tree.targets = func(rdev uint64) ([]sys.DMTarget, error) { return tables[rdev], nil }
	f.write("proc/devices", "Character devices:\n  8 other\n\nBlock devices:\n  1 ramdisk\n  8 sd\n 43 nbd\n251 nullb\n253 device-mapper\n259 blkext\n")
	f.block("nullb0", 251, 0)
	f.partition("nullb0", "nullb0p1", 259, 0, 0, 8)
	f.block("nbd0", 43, 0)
	f.block("ram0", 1, 0)
	f.block("nvme0n1", 259, 1)
	f.block("sda", 8, 0)
	pool := func(name string, minor uint32, params string) string {
		st := f.dm(name, minor, "nbd0")
		tables[st.Rdev] = []sys.DMTarget{{Type: "thin-pool", Params: params}}
		return name
	}
	zeroing, skipping := pool("dm-90", 90, "43:0 43:0 128 0 0 "), pool("dm-91", 91, "43:0 43:0 128 0 1 skip_block_zeroing ")
	next := uint32(0)
	dm := func(types string, below ...string) string {
		name := fmt.Sprintf("dm-%d", next)
		st := f.dm(name, next, below...)
		for kind := range strings.SplitSeq(types, ",") {
			kind, params, _ := strings.Cut(kind, " ")
			tables[st.Rdev] = append(tables[st.Rdev], sys.DMTarget{Type: kind, Params: params})
		}
		next++
		return "/dev/" + name
	}
	thin := dm("thin 253:91 5", skipping)
	for path, want := range map[string]Zeros{
		"/dev/nullb0": ZerosSteady, "/dev/nullb0p1": ZerosSteady, "/dev/nbd0": ZerosUnknown, "/dev/ram0": ZerosUnknown, "/dev/nvme0n1": ZerosUnknown, "/dev/sda": ZerosUnknown,
		dm("thin 253:90 0", zeroing):   ZerosSteady, // of the pool's own map
		thin:                           ZerosOfUnit,
		dm("linear", "dm-0"):           ZerosOfUnit,
		dm("linear", "dm-0", "nullb0"): ZerosOfUnit,
		dm("thin 253:90 0,linear", zeroing, "nullb0"): ZerosUnknown,
		dm("thin 99:0 0", zeroing):                    ZerosUnknown,
		dm("linear", "nullb0"):                        ZerosSteady,
		dm("linear,striped", "nullb0"):                ZerosSteady,
		dm("linear", "nullb0", "nbd0"):                ZerosUnknown,
		dm("linear", "nullb0", "sda"):                 ZerosUnknown, // whichever of them comes first
		dm("crypt", "nullb0"):                         ZerosUnknown,
		dm("log-writes", "nullb0"):                    ZerosUnknown,
		dm("linear,linear,error", "nullb0"):           ZerosUnknown,
		dm("linear"):                                  ZerosUnknown,
	} {
		if got := f.tree.steadyZeros(f.nodes[path].Rdev, levels); got != want {
			t.Errorf("%s: %v, expected %v", path, got, want)
		}
	}
}

// TestTrimsToZero reads what an ATA disk promises.
func TestTrimsToZero(t *testing.T) {
	f := newFakeHost(t)
	const disk = "sys/devices/pci0000:00/ata3/host2/target2:0:0/2:0:0:0/block/sda"
	for _, c := range []struct {
		word169, word69 uint16
		want            Zeros
	}{{1, 0x4020, ZerosSteady}, {1, 0x4000, ZerosUnknown}, {1, 0x0020, ZerosUnknown}, {0, 0x4020, ZerosUnknown}, {0xfff1, 0xffff, ZerosSteady}} {
		var words strings.Builder
		for i := range 256 {
			w := uint16(i)
			switch i {
			case 69:
				w = c.word69
			case 169:
				w = c.word169
			}
			fmt.Fprintf(&words, "%04x%c", w, " \n"[(i+1)%8/7&1])
		}
		f.write("sys/devices/pci0000:00/ata3/link3/dev3.0/ata_device/dev3.0/id", words.String())
		if got := trimsToZero(f.root + "/" + disk); got != c.want {
			t.Errorf("%04x, %04x: %v", c.word169, c.word69, got)
		}
	}
	for _, dir := range []string{"/devices/pci0000:00/usb1/host4/target4:0:0/4:0:0:0/block/sdb", "/devices/pci0000:00/ata9/host8/block/sdc"} {
		if trimsToZero(f.tree.sys+dir) != ZerosUnknown {
			t.Errorf("%s says nothing, and is believed", dir)
		}
	}
}
