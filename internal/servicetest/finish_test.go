//go:build service

package servicetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// finishGuest has a clone with a layer, the metadata in a file and more settings, which is mounted.
func finishGuest(t *testing.T, more string) *guest {
	t.Helper()
	g := newGuest(t, options{disks: map[string]int64{"source": 48 << 20, "dest": 48 << 20}})
	g.boot()
	g.install(packages)
	g.defineData("dm = \"data\"\n" + more)
	g.sh(`
		sed -i 's,^metadata.*,metadata = "/var/lib/data.meta",' /etc/ublk-clone/data.toml
		systemctl enable --now ublk-clone@data
		mount /dev/ublk-clone/data /mnt`)
	return g
}

// finished checks that the layer leads to the destination and nothing is left of the clone.
func finished(g *guest) {
	g.sh(`
		cd /mnt
		md5sum --quiet -c /root/sums
		test ! -e /var/lib/data.meta
		test ! -e /dev/ublkb0
		test ! -e /etc/ublk-clone/data.toml
		test -e /etc/ublk-clone/data.toml.finished
		dmsetup table data | grep linear
		flock -n -x "$(readlink -f ` + byID + `source)" true`)
}

// standsAlone checks that the next boot begins nothing anew, and the destination has everything.
func standsAlone(g *guest) {
	g.reboot()
	g.sh(`
		test ! -e /dev/ublkb0
		mount ` + byID + `dest /mnt
		cd /mnt
		md5sum --quiet -c /root/sums`)
}

// TestServiceFinish: a clone with a layer is handed over while it is in use, from within the unit's
// sandbox; then no daemon, no source, no metadata and no unit are needed, and the next boot begins
// nothing anew.
func TestServiceFinish(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	g := finishGuest(t, "rate = \"1MiB/s\"\nmin-rate = \"none\"\n")
	if p := g.properties("/dev/mapper/data"); strings.Contains(p, "ID_FS_UUID=") {
		t.Errorf("udev has searched a layer whose clone is not complete:\n%s", p)
	}
	under := g.sh(`
		for d in /sys/block/dm-*; do
			[ "$(cat "$d/dm/name")" = data-dest ] || continue
			udevadm trigger --settle "$d"
			udevadm info --query=property --path="$d"
		done
		test ! -e /dev/mapper/data-dest`)
	if !strings.Contains(under, "DEVNAME=") || strings.Contains(under, "ID_FS_UUID=") {
		t.Errorf("udev has searched the device over the destination:\n%s", under)
	}
	load := g.start(5*time.Minute, "fio", "--name=x", "--filename=/mnt/load", "--size=4M", "--rw=randrw", "--bs=4k", "--iodepth=8", "--ioengine=libaio",
		"--direct=1", "--verify=crc32c", "--time_based", "--runtime=25", "--do_verify=1", "--verify_fatal=1", "--rate=1m")
	g.sh(`
		ublk-clone set data rate=none
		ublk-clone wait data --timeout 2m`)
	same := func(when string) {
		if to := strings.Fields(g.run("readlink", "-f", "/dev/ublk-clone/data", "/dev/mapper/data")); len(to) != 2 || to[0] != to[1] {
			t.Errorf("%s the clone's name leads to %s", when, to)
		}
	}
	same("served,")
	named := func(when string) {
		to := strings.Fields(g.run("readlink", "-f", "/dev/disk/by-uuid/"+dataUUID, "/dev/mapper/data"))
		if len(to) != 2 || to[0] != to[1] {
			t.Errorf("%s the file system's name leads to %s", when, to)
		}
	}
	g.properties("/dev/mapper/data")
	named("complete,")
	g.sh("ublk-clone finish data --timeout 30s")
	load.must()
	if p := g.sh("udevadm settle; udevadm info --query=property " + byID + "dest"); !strings.Contains(p, "ID_FS_UUID="+dataUUID) {
		t.Errorf("finished, udev still hides the destination:\n%s", p)
	}
	g.properties("/dev/mapper/data")
	g.properties(byID + "dest")
	named("finished,")
	same("finished,")
	finished(g)
	if state := strings.TrimSpace(g.try("systemctl", "is-active", "ublk-clone@data").stdout); state != "inactive" {
		t.Errorf("the unit is %s", state)
	}
	if state := strings.TrimSpace(g.try("systemctl", "is-enabled", "ublk-clone@data").stdout); state != "disabled" {
		t.Errorf("the unit is %s", state)
	}
	standsAlone(g)
}

// TestServiceFinishAuto: the daemon of a unit finishes its clone by itself, from within the sandbox:
// unit, definition and udev are then as after the command.
func TestServiceFinishAuto(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	g := finishGuest(t, "finish = \"auto\"\nno-hydration = true\n")
	g.sh("ublk-clone resume data")
	g.waitFor(2*time.Minute, "the unit to end and to be disabled", func() error {
		active, enabled := g.try("systemctl", "is-active", "ublk-clone@data").stdout, g.try("systemctl", "is-enabled", "ublk-clone@data").stdout
		if strings.TrimSpace(active) != "inactive" || strings.TrimSpace(enabled) != "disabled" {
			return fmt.Errorf("it is %s, %s", active, enabled)
		}
		return nil
	})
	if p := g.sh("udevadm settle; udevadm info --query=property " + byID + "dest"); !strings.Contains(p, "ID_FS_UUID="+dataUUID) {
		t.Errorf("finished, udev still hides the destination:\n%s", p)
	}
	finished(g)
	standsAlone(g)
}
