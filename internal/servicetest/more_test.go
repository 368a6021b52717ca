//go:build service

package servicetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestServiceClonetab: a line of systemd's clonetab, imported, is a clone as by add with the same words; and complete,
// it needs its source no more, also when its daemon begins anew.
func TestServiceClonetab(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	g := newGuest(t, options{disks: map[string]int64{"source": 48 << 20, "dest": 48 << 20, "metadata": 16 << 20}})
	g.boot()
	g.install(packages)
	g.defineData("")
	g.sh("rm /etc/ublk-clone/data.toml")
	g.write("/etc/clonetab", fmt.Sprintf("# comment\ndata %[1]ssource %[1]sdest %[1]smetadata region-size=64K\n", byID))
	g.sh(`
		ublk-clone import-clonetab
		systemctl enable --now ublk-clone@data
		ublk-clone add data --source ` + byID + `source --dest ` + byID + `dest --metadata ` + byID + `metadata --region-size 64KiB | grep unchanged
		mount /dev/ublk-clone/data /mnt
		ublk-clone wait data --timeout 2m
		disk=$(basename "$(readlink ` + byID + `source)")
		echo 1 >"$(readlink -f /sys/block/$disk/device/..)/remove"`)
	if o := g.try("test", "-e", byID+"source"); o.code == 0 {
		t.Fatal("the source is still there")
	}
	g.sh(`
		cd /mnt
		md5sum --quiet -c /root/sums
		systemctl restart ublk-clone@data
		echo 3 >/proc/sys/vm/drop_caches
		md5sum --quiet -c /root/sums
		systemctl is-active ublk-clone@data`)
}

// TestServiceFinish: a clone with a layer is handed over while it is in use, from within the unit's sandbox; then no
// daemon, no source, no metadata and no unit are needed, and the next boot begins nothing anew.
func TestServiceFinish(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	g := newGuest(t, options{disks: map[string]int64{"source": 48 << 20, "dest": 48 << 20}})
	g.boot()
	g.install(packages)
	g.defineData("dm = \"data\"\nrate = \"1MiB/s\"\nmin-rate = \"none\"\n")
	g.sh(`
		sed -i 's,^metadata.*,metadata = "/var/lib/data.meta",' /etc/ublk-clone/data.toml
		systemctl enable --now ublk-clone@data
		mount /dev/mapper/data /mnt`)
	if p := g.properties("/dev/mapper/data"); strings.Contains(p, "ID_FS_UUID=") {
		t.Errorf("udev has searched a layer whose clone is not complete:\n%s", p)
	}
	load := g.start(5*time.Minute, "fio", "--name=x", "--filename=/mnt/load", "--size=4M", "--rw=randrw", "--bs=4k", "--iodepth=8", "--ioengine=libaio",
		"--direct=1", "--verify=crc32c", "--time_based", "--runtime=25", "--do_verify=1", "--verify_fatal=1", "--rate=1m")
	g.sh(`
		ublk-clone set data rate=none
		ublk-clone wait data --timeout 2m`)
	named := func(when string) {
		if to := strings.TrimSpace(g.run("readlink", "-f", "/dev/disk/by-uuid/"+dataUUID)); to != "/dev/dm-0" {
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
	g.sh(`
		cd /mnt
		md5sum --quiet -c /root/sums
		test ! -e /var/lib/data.meta
		test ! -e /dev/ublkb0
		test -e /etc/ublk-clone/data.toml.finished
		dmsetup table data | grep linear
		flock -n -x "$(readlink -f ` + byID + `source)" true`)
	if state := strings.TrimSpace(g.try("systemctl", "is-active", "ublk-clone@data").stdout); state != "inactive" {
		t.Errorf("the unit is %s", state)
	}
	if state := strings.TrimSpace(g.try("systemctl", "is-enabled", "ublk-clone@data").stdout); state != "disabled" {
		t.Errorf("the unit is %s", state)
	}
	g.reboot()
	g.sh(`
		test ! -e /dev/ublkb0
		mount ` + byID + `dest /mnt
		cd /mnt
		md5sum --quiet -c /root/sums`)
}

// TestServiceMany: twenty clones at once, or six without FULL, over a reboot. Figures for the docs are in the log.
func TestServiceMany(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	n := 6
	if os.Getenv("FULL") == "1" {
		n = 20
	}
	g := newGuest(t, options{disks: map[string]int64{}, memory: "3G"})
	g.boot()
	g.install(packages)
	for i := range n {
		g.write(fmt.Sprintf("/etc/ublk-clone/c%d.toml", i), fmt.Sprintf("source = \"/srv/s%[1]d\"\ndest = \"/srv/d%[1]d\"\nmetadata = \"/srv/m%[1]d\"\n", i))
	}
	g.sh(fmt.Sprintf(`
		for i in $(seq 0 %d); do head -c 4M /dev/urandom >/srv/s$i; done
		systemctl daemon-reload
		systemctl enable --now $(for i in $(seq 0 %[1]d); do echo ublk-clone@c$i; done)`, n-1))
	g.allServe(n)
	g.slowManager()
	g.reboot()
	g.run("rm", slowSystemctl)
	if left := strings.Count(g.journal(1), `"device_left":true`); left > 0 {
		t.Errorf("%d clones that nobody had open were left without a daemon when the machine went down", left)
	}
	g.allServe(n)
	g.sh(fmt.Sprintf(`
		for i in $(seq 0 %d); do ublk-clone wait c$i --timeout 3m; cmp -n 4194304 /srv/s$i /dev/ublk-clone/c$i; ublk-clone del c$i; cmp /srv/s$i /srv/d$i; done`, n-1))
	if left := g.run("ublk-clone", "list"); strings.Count(left, "\n") != 1 {
		t.Errorf("left: %s", left)
	}
}

// slowSystemctl comes before the real one in the PATH of units.
const slowSystemctl = "/usr/local/bin/systemctl"

// slowManager has the service manager say its state late, or to every other who asks not at all, as it may while it stops
// everything on a slow machine.
func (g *guest) slowManager() {
	g.Helper()
	g.write(slowSystemctl, `#!/bin/sh
if [ "$1" = is-system-running ]; then
	sleep 8
	[ $(($$ % 2)) = 0 ] || { echo unknown; exit 4; }
fi
exec /usr/bin/systemctl "$@"
`)
	g.run("chmod", "755", slowSystemctl)
}

// journal is what the nth boot has said.
func (g *guest) journal(n int) string {
	g.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, fmt.Sprintf("boot-%d.journal", n)))
	if err != nil {
		g.Fatal(err)
	}
	return string(b)
}

// socketLimit is what a control socket may take.
const socketLimit = 100 * time.Millisecond

// allServe sees that n clones are served and answer, and logs their memory and the time of their answers.
func (g *guest) allServe(n int) {
	g.Helper()
	g.waitFor(bootLimit, "all clones", func() error {
		if list := g.run("ublk-clone", "list"); strings.Count(list, "/dev/ublkb") != n {
			return fmt.Errorf("%s", list)
		}
		return nil
	})
	answers := strings.TrimSpace(g.run("bash", "-c", "/host"+agentProgram(g.T)+" ask /run/ublk-clone/*.sock"))
	g.Logf("microseconds to an answer:\n%s", answers)
	if got := strings.Count(answers, "\n") + 1; got != n {
		g.Errorf("%d daemons have answered, not %d", got, n)
	}
	for line := range strings.Lines(answers) {
		var best, worst int64
		if _, err := fmt.Sscan(line, &best, &worst); err != nil || best >= socketLimit.Microseconds() {
			g.Errorf("an answer took %s (%v)", line, err)
		}
	}
	g.Logf("memory: %s", strings.ReplaceAll(g.sh(`grep -h VmRSS /proc/[0-9]*/status | sort -k2n | tail -1; free -m | sed -n 2p`), "\n", "; "))
}
