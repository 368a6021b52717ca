//go:build service

package servicetest

import (
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestServiceKept: a daemon is there for the users of its clone after what could end it for good: a
// fatal error of Go's runtime in a unit, and the end of the service or timer that has started a
// daemon without a unit.
func TestServiceKept(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	g := pausedClone(t)
	g.sh("systemctl daemon-reload; systemctl start ublk-clone@data; mount /dev/ublk-clone/data /mnt")
	for _, signal := range []string{"QUIT", "SEGV", "ABRT"} {
		pid := g.status("data").PID
		g.sh("systemctl kill -s " + signal + " ublk-clone@data")
		g.awaitNewDaemon("data", pid)
		g.sh("echo 3 >/proc/sys/vm/drop_caches; cd /mnt; md5sum --quiet -c /root/sums")
	}
	if log := g.run("journalctl", "-u", "ublk-clone@data", "-o", "cat"); !strings.Contains(log, "status=2/") {
		t.Errorf("no daemon has ended by the runtime: the test shows nothing:\n%s", log)
	}

	g.sh(`
		truncate -s 16M /srv/source
		mkfs.ext4 -q /srv/source
		mkdir /own`)
	oneshot := func(command string) {
		t.Helper()
		g.run("systemd-run", "--wait", "--quiet", "--collect", "-p", "Type=oneshot", "bash", "-c", command)
		time.Sleep(2 * time.Second)
		g.inScope("own")
		g.sh("echo 3 >/proc/sys/vm/drop_caches; date >/own/now; sync -f /own")
	}
	g.run("systemd-run", "--wait", "--quiet", "--collect", "-p", "Type=oneshot", "ublk-clone", "add", "own",
		"--source", "/srv/source", "--dest", "/srv/dest", "--metadata", "/srv/metadata", "--no-hydration")
	g.sh("mount /dev/ublkb1 /own")
	oneshot("true")
	g.sh(fmt.Sprintf("kill -9 %d", g.status("own").PID))
	oneshot("ublk-clone recover own")
	oneshot("ublk-clone restart own")
	oneshot("dpkg -i /host" + packageFile(t, packagesNext, "deb"))
	g.isVersion(packagesNext)

	// Its scope is no reason for the machine not to go down, nor does it end before the file system
	// on the clone.
	g.sh("date >/own/last")
	g.reboot()
	g.sh(`
		ublk-clone add own --source /srv/source --dest /srv/dest --metadata /srv/metadata --no-hydration
		mount /dev/ublkb0 /own
		test -s /own/last`)
	if log := g.run("dmesg"); strings.Contains(log, "recovery complete") {
		t.Errorf("the file system was not unmounted before the daemon ended:\n%s", log)
	}
}

// inScope sees that the clone's daemon lives, in a scope of its own.
func (g *guest) inScope(name string) {
	g.Helper()
	pid := g.status(name).PID
	group := strings.TrimSpace(g.run("cat", fmt.Sprintf("/proc/%d/cgroup", pid)))
	if unit := path.Base(group); unit != fmt.Sprintf("ublk-clone-%s-%d.scope", name, pid) {
		g.Errorf("the daemon of %s is in %s", name, group)
	}
}
