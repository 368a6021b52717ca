//go:build service

package servicetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// status is what `ublk-clone status -o json` says of a clone.
type status struct {
	Device, State, Reason string
	PID                   int
	Bytes                 struct{ Hydrated, Remaining int64 }
	Starts                int
}

func (g *guest) status(name string) status {
	g.Helper()
	var all struct{ Clones []status }
	out := g.run("ublk-clone", "status", name, "-o", "json")
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all.Clones) != 1 {
		g.Fatalf("status of %s: %v: %s", name, err, out)
	}
	return all.Clones[0]
}

// awaitNewDaemon waits until another process than pid serves the clone.
func (g *guest) awaitNewDaemon(name string, pid int) {
	g.Helper()
	g.waitFor(commandLimit, "another daemon", func() error {
		o := g.try("ublk-clone", "status", name, "-o", "json")
		var all struct{ Clones []status }
		if err := json.Unmarshal([]byte(o.stdout), &all); err != nil || len(all.Clones) != 1 {
			return fmt.Errorf("%v: %+v", err, o)
		}
		if st := all.Clones[0]; st.PID == pid || !slices.Contains([]string{"hydrating", "yielding", "paused", "hydrated"}, st.State) {
			return fmt.Errorf("process %d, was %d, %s", st.PID, pid, st.State)
		}
		return nil
	})
}

// properties are what udev knows of a device, after it has looked at it again.
func (g *guest) properties(device string) string {
	g.Helper()
	g.run("udevadm", "trigger", "--settle", device)
	return g.run("udevadm", "info", "-q", "property", "-n", device)
}

const byID = "/dev/disk/by-id/virtio-"

// dataUUID is the file system's of defineData.
const dataUUID = "11111111-2222-3333-4444-555555555555"

// agentProgram is the path of the agent on the host, whose directories the guest has in /host.
func agentProgram(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../build/service-agent")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// defineData defines a clone, "data", of a source with a file system whose files /root/sums knows;
// more are further lines of the definition.
func (g *guest) defineData(more string) {
	g.Helper()
	g.sh(`
		mkfs.ext4 -q -U ` + dataUUID + ` ` + byID + `source
		mount ` + byID + `source /mnt
		head -c 24M /dev/urandom >/mnt/random
		cp -r /etc /mnt/etc
		cd /mnt
		find . -type f | sort | xargs -d '\n' md5sum >/root/sums
		cd /
		umount /mnt`)
	g.write("/etc/ublk-clone/data.toml", fmt.Sprintf("source = \"%[1]ssource\"\ndest = \"%[1]sdest\"\nmetadata = \"%[1]smetadata\"\n%[2]s", byID, more))
}

// pausedClone is a guest in which a clone is defined that is not hydrated by itself.
func pausedClone(t *testing.T) *guest {
	t.Helper()
	g := newGuest(t, options{disks: map[string]int64{"source": 64 << 20, "dest": 72 << 20, "metadata": 16 << 20}})
	g.boot()
	g.install(packages)
	g.defineData("no-hydration = true\n")
	return g
}

// TestService is the life of a clone that a machine depends on: defined, enabled, mounted by fstab,
// there again after a reboot in the middle of hydration, and through the death, the restart and the
// stop of its daemon under load.
func TestService(t *testing.T) {
	runs.On(t, "6.18")
	g := newGuest(t, options{disks: map[string]int64{"source": 96 << 20, "dest": 96 << 20, "metadata": 16 << 20}})
	g.boot()
	g.install(packages)
	g.defineData("rate = \"256KiB/s\"\nmin-rate = \"none\"\n")
	g.write("/etc/fstab", "/dev/ublk-clone/data /data ext4 defaults 0 2\n")
	g.sh(`
		mkdir /data
		systemctl daemon-reload
		systemctl enable --now ublk-clone@data
		mount /data
		cd /data
		md5sum --quiet -c /root/sums
		cd /`)
	if text := g.run("systemctl", "show", "-P", "StatusText", "ublk-clone@data"); !strings.Contains(text, "% of 96 MiB") {
		t.Errorf("the unit's status line: %s", text)
	}

	const upgrade = "the upgrade"
	load := g.start(5*time.Minute, "fio", "--name=x", "--filename=/data/load", "--size=8M", "--rw=randrw", "--bs=4k", "--iodepth=8", "--ioengine=libaio",
		"--direct=1", "--verify=crc32c", "--time_based", "--runtime=25", "--do_verify=1", "--verify_fatal=1", "--rate=1m")
	pid := g.status("data").PID
	for _, cmd := range []string{"systemctl kill -s KILL ublk-clone@data", "systemctl restart ublk-clone@data", "ublk-clone restart data", upgrade} {
		if cmd == upgrade {
			g.install(packagesNext)
			g.isVersion(packagesNext)
		} else {
			g.sh(cmd)
		}
		g.awaitNewDaemon("data", pid)
		pid = g.status("data").PID
		if main := strings.TrimSpace(g.run("systemctl", "show", "-P", "MainPID", "ublk-clone@data")); main != fmt.Sprint(pid) {
			t.Errorf("after %s the unit's process is %s, the daemon %d", cmd, main, pid)
		}
	}
	load.must()
	g.sh("cd /data; md5sum --quiet -c /root/sums; md5sum load >/root/load")
	if st := g.status("data"); st.Bytes.Remaining == 0 {
		t.Fatal("all is hydrated: the reboot would not be in the middle of it")
	}

	g.reboot()
	g.sh(`
		findmnt -n -o SOURCE /data
		systemctl is-active ublk-clone@data
		cd /data
		md5sum --quiet -c /root/sums
		md5sum --quiet -c /root/load`)
	if st := g.status("data"); st.Bytes.Remaining == 0 || st.Starts < 2 {
		t.Errorf("after the reboot: %+v", st)
	}

	if p := g.properties("/dev/ublk-clone/data"); strings.Contains(p, "ID_FS_UUID=") {
		t.Errorf("udev has searched a clone that is not complete:\n%s", p)
	}
	g.sh("ublk-clone set data rate=none; ublk-clone wait data --timeout 2m")
	// Both have the file system by now. The destination keeps the name of the definition, and no
	// other.
	if p := g.properties(byID + "dest"); !strings.Contains(p, "UBLK_CLONE_DEST=data") || strings.Contains(p, "ID_FS_UUID=") || strings.Contains(p, "by-uuid") {
		t.Errorf("udev's view of the destination:\n%s", p)
	}
	if p := g.properties("/dev/ublk-clone/data"); !strings.Contains(p, "ID_FS_UUID="+dataUUID) {
		t.Errorf("udev's view of the complete clone:\n%s", p)
	}
	g.sh(`
		umount /data
		ublk-clone del data
		systemctl disable ublk-clone@data
		mount -o ro ` + byID + `dest /data
		cd /data
		md5sum --quiet -c /root/sums
		md5sum --quiet -c /root/load`)
}

// partitionDest makes the destination of "data" a partition, of all but the first MiB of a disk of
// 72.
func (g *guest) partitionDest() {
	g.Helper()
	g.sh(`
		printf '\0\0\0\0\203\0\0\0\0\010\0\0\0\070\002\0' | dd of=` + byID + `dest bs=1 seek=446 conv=notrunc status=none
		printf '\125\252' | dd of=` + byID + `dest bs=1 seek=510 conv=notrunc status=none
		blockdev --rereadpt ` + byID + `dest
		udevadm settle
		sed -i 's,^\(dest.*\)"$,\1-part1",' /etc/ublk-clone/data.toml`)
}

// checkRights sees that nobody but root gets at what a daemon of the clone "data" has, and that its
// sandbox is as tight as the docs say.
func (g *guest) checkRights() {
	g.Helper()
	if open := g.sh("find /run/ublk-clone /run/ublk-clone-maps /var/lib/ublk-clone ! -type l \\( -perm /077 -o ! -user root \\) -ls"); open != "" {
		g.Errorf("others have rights:\n%s", open)
	}
	if open := g.sh("find /dev/ublk-control /dev/ublkc* \\( -perm /066 -o ! -user root \\) -ls"); open != "" {
		g.Errorf("others have rights:\n%s", open)
	}
	if o := g.try("runuser", "-u", "nobody", "--", "ublk-clone", "status", "data"); o.code != exit.Denied || !strings.Contains(o.stderr, "Run it as root") {
		g.Errorf("nobody asks for the status: %+v", o)
	}
	score := g.try("systemd-analyze", "security", "--threshold=25", "ublk-clone@data")
	if score.code != 0 {
		g.Errorf("the sandbox is looser than 2.5:\n%s%s", score.stdout, score.stderr)
	}
	lines := strings.Split(strings.TrimSpace(score.stdout), "\n")
	g.Log(lines[len(lines)-1])
}

// TestServiceStop: a stop leaves the device to the next start, and the load waits.
func TestServiceStop(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	g := pausedClone(t)
	g.partitionDest()
	g.sh(`
		systemctl daemon-reload
		systemctl start ublk-clone@data`)
	if p := g.properties(byID + "dest-part1"); !strings.Contains(p, "UBLK_CLONE_DEST=data") || strings.Contains(p, "ID_FS_UUID=") {
		t.Errorf("udev's view of a destination that is a partition:\n%s", p)
	}
	g.checkRights()
	if wbt := strings.TrimSpace(g.run("cat", "/sys/block/ublkb0/queue/wbt_lat_usec")); wbt != "0" {
		t.Errorf("the clone's queue throttles writeback: %s us", wbt)
	}
	g.sh(`
		mount /dev/ublk-clone/data /mnt
		systemctl stop ublk-clone@data`)
	waiting := g.start(commandLimit, "bash", "-c", "cd /mnt; md5sum --quiet -c /root/sums")
	time.Sleep(2 * time.Second)
	g.run("pgrep", "-x", "md5sum") // it waits
	g.sh("systemctl start ublk-clone@data")
	waiting.must()

	// Nor does a definition that cannot be read any more keep the users waiting for a new daemon.
	pid := g.status("data").PID
	definition := g.run("cat", "/etc/ublk-clone/data.toml")
	g.write("/etc/ublk-clone/data.toml", definition+"nonsense = 1\n")
	g.sh("systemctl kill -s KILL ublk-clone@data")
	g.awaitNewDaemon("data", pid)
	g.write("/etc/ublk-clone/data.toml", definition)

	// A del of a clone whose daemon is dead, and whose unit is about to begin it anew, is refused
	// while somebody has it open, who goes on; otherwise it is the end of it.
	g.write("/etc/systemd/system/ublk-clone@data.service.d/slow.conf", "[Service]\nRestartSec=4s\n")
	g.sh("systemctl daemon-reload")
	pid = g.status("data").PID
	g.sh("systemctl kill -s KILL ublk-clone@data; sleep 1")
	if o := g.try("ublk-clone", "del", "data"); o.code != exit.Busy || !strings.Contains(o.stderr, "mounted on /mnt") {
		t.Errorf("del of a dead daemon's clone that is mounted: %+v", o)
	}
	g.awaitNewDaemon("data", pid)
	g.sh(`
		cd /mnt
		md5sum --quiet -c /root/sums
		cd /
		umount /mnt
		systemctl kill -s KILL ublk-clone@data
		sleep 1
		ublk-clone del data
		sleep 6`)
	if list := g.run("ublk-clone", "list"); strings.Contains(list, "data") || strings.Contains(g.run("ls", "/dev"), "ublkb") {
		t.Errorf("after a del it is there again:\n%s", list)
	}

	// A definition that cannot be used is said to be so, and not tried for ever.
	g.write("/etc/ublk-clone/bad.toml", "source = \"/dev/none\"\nregion_size = 4096\n")
	if o := g.try("systemctl", "start", "ublk-clone@bad"); o.code == 0 {
		t.Error("a unit with a bad definition has started")
	}
	if log := g.run("journalctl", "-u", "ublk-clone@bad", "-o", "cat"); !strings.Contains(log, `unknown key "region_size"`) || !strings.Contains(log, "bad.toml") {
		t.Errorf("the journal says of a bad definition: %s", log)
	}
	if state := strings.TrimSpace(g.try("systemctl", "is-failed", "ublk-clone@bad").stdout); state != "failed" {
		t.Errorf("the unit with a bad definition is %s", state)
	}
}

// TestServiceWatchdog: a daemon whose queue stands still is killed, and its successor serves.
func TestServiceWatchdog(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	g := pausedClone(t)
	g.write("/etc/systemd/system/ublk-clone@data.service.d/fast.conf", "[Service]\nWatchdogSec=5s\n")
	g.sh("systemctl daemon-reload; systemctl start ublk-clone@data; mount /dev/ublk-clone/data /mnt")
	pid := g.status("data").PID
	time.Sleep(8 * time.Second)
	if now := g.status("data").PID; now != pid {
		t.Fatalf("a daemon that is well was killed: process %d, now %d", pid, now)
	}
	// One thread alone stands still; the others, timers among them, go on.
	queue := strings.TrimSpace(g.sh(fmt.Sprintf(`grep -l "^queue" /proc/%d/task/*/comm | cut -d/ -f5`, pid)))
	frozen := g.start(commandLimit, "/host"+agentProgram(t), "freeze", queue)
	g.waitFor(commandLimit, "the end of the daemon", func() error {
		if o := g.try("test", "-e", fmt.Sprintf("/proc/%d/task/%s", pid, queue)); o.code == 0 {
			return errors.New("its queue is there")
		}
		return nil
	})
	frozen.must()
	g.awaitNewDaemon("data", pid)
	g.sh("cd /mnt; md5sum --quiet -c /root/sums")
	if result := g.run("journalctl", "-u", "ublk-clone@data", "-o", "cat"); !strings.Contains(result, "Watchdog timeout") {
		t.Errorf("the journal does not tell of the watchdog: %s", result)
	}
}
