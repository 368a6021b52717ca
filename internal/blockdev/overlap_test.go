package blockdev

import (
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

const mib = 1 << 20

func TestOverlap(t *testing.T) {
	f := newFakeHost(t)
	sizes := map[string]int64{}
	add := func(name string, st sys.Stat, size int64) {
		f.nodes[name], sizes[name] = st, size
	}
	sda1 := sys.Mkdev(8, 1)
	add("sda", f.block("sda", 8, 0), 100*mib)
	add("sda1", f.partition("sda", "sda1", 8, 1, 2048, 40*2048), 40*mib)
	add("sda2", f.partition("sda", "sda2", 8, 2, 41*2048, 50*2048), 50*mib)
	add("sdb", f.block("sdb", 8, 16), 100*mib)
	add("lv1", f.dm("dm-0", 0, "sda/sda2"), 10*mib)
	add("lv2", f.dm("dm-1", 1, "sda/sda2"), 10*mib)
	add("crypt on lv1", f.dm("dm-2", 2, "dm-0"), 10*mib)
	add("stripe on sda2 and sdb", f.dm("dm-3", 3, "sda/sda2", "sdb"), 10*mib)
	add("clone", f.block("ublkb0", 259, 7), 10*mib)
	add("layer", f.dm("dm-4", 4, "ublkb0", "sdb"), 10*mib)
	f.write("sys/devices/dm-4/dm/uuid", "UBLK-CLONE-0102\n")
	add("crypt on layer", f.dm("dm-5", 5, "dm-4"), 10*mib)
	add("way", f.dm("dm-6", 6, "sdb"), 100*mib)
	f.write("sys/devices/dm-6/dm/uuid", "UBLK-CLONE-DEST-home\n")
	add("layer of a finished one", f.dm("dm-7", 7, "sdb"), 10*mib)
	f.write("sys/devices/dm-7/dm/uuid", "UBLK-CLONE-0304\n")
	add("image", f.file("/img", sda1, 100), 64*mib)
	add("other image", f.file("/img2", sda1, 101), 64*mib)
	add("loop of image", f.loop(0, "/img", 0), 64*mib)
	add("loop of image, first half", f.loop(1, "/img", 0), 32*mib)
	add("loop of image, second half", f.loop(2, "/img", 32*mib), 32*mib)
	add("partition of loop of image", f.partition("loop0", "loop0p1", 259, 0, 60*2048, 4*2048), 4*mib)
	add("mpath a", f.block("sdc", 8, 32), 10*mib)
	add("mpath b", f.block("sdd", 8, 48), 10*mib)
	f.write("sys/devices/sdc/device/wwid", "naa.6001405\n")
	f.write("sys/devices/sdd/device/wwid", "naa.6001405\n")
	add("made-up a", f.block("sde", 8, 64), 10*mib)
	add("made-up b", f.block("sdf", 8, 80), 10*mib)
	f.write("sys/devices/sde/device/wwid", "t10.ATA QEMU\n")
	f.write("sys/devices/sdf/device/wwid", "t10.ATA QEMU\n")

	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"sda", "sda", true},
		{"sda", "sdb", false},
		{"sda", "sda1", true},
		{"sda1", "sda2", false},
		{"lv1", "lv2", false},
		{"lv1", "sda2", true},
		{"lv1", "sda", true},
		{"lv1", "sda1", false},
		{"lv1", "sdb", false},
		{"crypt on lv1", "lv1", true},
		{"crypt on lv1", "lv2", false},
		{"crypt on lv1", "sda", true},
		{"stripe on sda2 and sdb", "sdb", true},
		{"layer", "sdb", false}, {"crypt on layer", "sdb", false}, {"crypt on layer", "layer", true},
		{"way", "sdb", true}, {"layer of a finished one", "sdb", true},
		{"image", "image", true},
		{"image", "other image", false},
		{"image", "sda1", true},
		{"image", "sda", true},
		{"image", "sda2", false},
		{"loop of image", "image", true},
		{"loop of image", "other image", false},
		{"loop of image", "loop of image, first half", true},
		{"loop of image, first half", "loop of image, second half", false},
		{"loop of image, second half", "partition of loop of image", true},
		{"loop of image, first half", "partition of loop of image", false},
		{"partition of loop of image", "image", true},
		{"partition of loop of image", "sda", true},
		{"mpath a", "mpath b", true},
		{"made-up a", "made-up b", false},
	} {
		a := node{stat: f.nodes[c.a], size: sizes[c.a]}
		b := node{stat: f.nodes[c.b], size: sizes[c.b]}
		for _, p := range [][2]node{{a, b}, {b, a}} {
			if got := f.tree.shared(p[0], p[1]); (got != "") != c.want {
				t.Errorf("%q and %q: share %q, want sharing %v", c.a, c.b, got, c.want)
			}
		}
	}
}

func TestOverlapThroughAnonymousDevice(t *testing.T) {
	f := newFakeHost(t)
	sda := f.block("sda", 8, 0)
	anonymous := sys.Mkdev(0, 40)
	img := f.file("/mnt/img", anonymous, 7)
	f.write("proc/self/mountinfo", "50 1 0:40 / /mnt rw - btrfs /dev/sda rw\n")
	if got := f.tree.shared(node{stat: img, size: mib}, node{stat: sda, size: mib}); got == "" {
		t.Error("a file on btrfs shares nothing with the disk below it")
	}
}

func TestClimbEndsInACircle(t *testing.T) {
	f := newFakeHost(t)
	a := f.dm("dm-0", 0)
	f.dm("dm-1", 1, "dm-0")
	f.link("sys/devices/dm-0/slaves/dm-1", f.root+"/sys/devices/dm-1")
	if n := len(f.tree.spans(a, mib)); n > levels+1 {
		t.Errorf("%d spans in a circle", n)
	}
}

func TestIdentityOfBlockDevices(t *testing.T) {
	f := newFakeHost(t)
	f.block("sda", 8, 0)
	f.write("sys/devices/sda/device/wwid", "naa.5000c500\n")
	f.partition("sda", "sda1", 8, 1, 2048, 2048)
	f.block("vda", 254, 0)
	f.write("sys/devices/vda/serial", "disk  one ")
	f.block("ram0", 1, 0)
	f.dm("dm-0", 0, "sda/sda1")
	f.write("sys/devices/dm-0/dm/uuid", "LVM-abc\n")
	f.file("/img", sys.Mkdev(8, 1), 42)
	f.loop(0, "/img", 512)
	for name, want := range map[string]string{
		"sda": "wwid:naa.5000c500", "sda1": "wwid:naa.5000c500@1048576", "vda": "serial:disk one",
		"ram0": "", "dm-0": "dm:LVM-abc", "loop0": "loop:42@512",
	} {
		if got := f.tree.identifyBlock(f.nodes["/dev/"+name].Rdev); got != want {
			t.Errorf("identity of %s = %q, want %q", name, got, want)
		}
	}
}
