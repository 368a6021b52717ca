//go:build service

package servicetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestServiceShutdownInUse: a file system on a clone that cannot be unmounted before the stop is
// still served for the last sync, and nothing hangs.
func TestServiceShutdownInUse(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	g := pausedClone(t)
	g.shutdownInUse("/dev/ublk-clone/data", "")
}

// TestServiceShutdownInUseDirect: the same with a layer, which leads some of the file system straight
// to the destination and the rest to the daemon.
func TestServiceShutdownInUseDirect(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	g := pausedClone(t)
	g.sh(`echo 'dm = "data"' >>/etc/ublk-clone/data.toml`)
	g.shutdownInUse("/dev/mapper/data", `
		head -c 20M /dev/urandom >/mnt/direct
		(cd /mnt; md5sum direct) >>/root/sums
		sync
		ublk-clone set data direct=on`)
}

// shutdownInUse restarts the machine while a program uses the file system that is mounted from the
// device. before is done with it until some of it is direct; "" for nothing.
func (g *guest) shutdownInUse(device, before string) {
	g.Helper()
	g.write("/etc/systemd/system/ublk-clone@data.service.d/soon.conf", "[Service]\nTimeoutStopSec=10s\n") // twice that is waited
	g.sh(`
		systemctl daemon-reload
		systemctl enable --now ublk-clone@data
		mount ` + device + ` /mnt`)
	if before != "" {
		g.sh(before)
		g.waitFor(time.Minute, "some of the clone to be direct", func() error {
			return isMixed(g.run("dmsetup", "table", "data"))
		})
	}
	// The holder outlives the units' stop: systemd spares it as it spares the daemon, until file
	// systems are unmounted.
	g.sh(`
		systemd-run --unit holder -p DefaultDependencies=no -p SendSIGKILL=no -p KillMode=none bash -c 'exec -a @holder bash -c "cd /mnt; while sleep 1; do date >now; done"'
		sleep 3
		date >/mnt/last`)
	g.shutdown("reboot")
	g.boot()
	g.sh("mount " + device + " /mnt; test -s /mnt/last; cd /mnt; md5sum --quiet -c /root/sums")
	if log := g.run("dmesg"); strings.Contains(log, "recovery complete") {
		g.Logf("the journal was replayed: the holder kept it in use to the end")
	}
}

// isMixed fails unless a table has several targets, some of the daemon's and some of the
// destination's.
func isMixed(table string) error {
	if strings.Count(table, " linear ") < 2 {
		return fmt.Errorf("the table is %q", table)
	}
	return nil
}
