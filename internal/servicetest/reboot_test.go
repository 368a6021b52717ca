//go:build service

package servicetest

import (
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestReboot: the guest is what the other tests take for granted. systemd comes up whole, udev
// makes its links, a clone can be added, disks and root outlive a reboot in order and a power cut,
// and the clone goes on after both.
func TestReboot(t *testing.T) {
	runs.On(t, "6.18", runs.FullOnly)
	g := newGuest(t, options{disks: map[string]int64{"source": 64 << 20, "dest": 64 << 20, "metadata": 16 << 20}})
	g.boot()
	if state := strings.TrimSpace(g.run("systemctl", "is-system-running")); state != "running" {
		t.Errorf("the system is %s", state)
	}
	for _, name := range []string{"source", "dest", "metadata"} {
		g.run("test", "-b", "/dev/disk/by-id/virtio-"+name)
	}
	g.write("/etc/modules-load.d/ublk.conf", "ublk_drv\n")
	g.sh(`
		modprobe ublk_drv
		mkfs.ext4 -q /dev/disk/by-id/virtio-source
		mount /dev/disk/by-id/virtio-source /mnt
		seq 100000 >/mnt/numbers
		umount /mnt`)

	const add = `
		ublk-clone add data --source /dev/disk/by-id/virtio-source --dest /dev/disk/by-id/virtio-dest \
			--metadata /dev/disk/by-id/virtio-metadata --no-hydration
		mount /dev/ublkb0 /mnt
		seq 100000 | cmp - /mnt/numbers`
	g.sh(add + `
		seq 5 >/mnt/first
		umount /mnt
		ublk-clone del data # or what looks at all devices at the shutdown, as lvm does, waits for it
		echo first >/root/first`)
	g.reboot()

	g.sh(add + `
		grep -x first /root/first
		seq 5 | cmp - /mnt/first
		seq 7 >/mnt/second
		sync
		echo lost >/mnt/third`)
	g.powerCut()
	g.boot()

	g.sh(add + `
		seq 7 | cmp - /mnt/second`)
	if o := g.try("test", "-s", "/mnt/third"); o.code == 0 {
		t.Error("what was not synced survived the power cut: it was none")
	}
	g.sh(`
		umount /mnt
		ublk-clone del data`)
}

// TestAgent: a command that fails, one that is killed and one that hangs are told apart; what the
// kernel says is heard.
func TestAgent(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	g := newGuest(t, options{})
	g.powerOn()
	beside := g.start(commandLimit, "sleep", "1")
	for _, c := range []struct {
		args []string
		want outcome
	}{
		{[]string{"echo", "out"}, outcome{stdout: "out\n"}},
		{[]string{"bash", "-c", "echo err >&2; exit 3"}, outcome{code: 3, stderr: "err\n"}},
		{[]string{"bash", "-c", "kill -KILL $$"}, outcome{code: -1}},
		{[]string{"bash", "-c", "sleep 1000 & echo left"}, outcome{stdout: "left\n"}},
	} {
		o := g.try(c.args[0], c.args[1:]...)
		o.took = 0
		if o != c.want {
			t.Errorf("%q: %+v, not %+v", c.args, o, c.want)
		}
	}
	if o := g.tryFor(waitInterval*5, "sleep", "1000"); o.code != 124 {
		t.Errorf("what takes too long: %+v", o)
	}
	g.write("/root/a/b", "text\n")
	if text := g.read("/root/a/b"); text != "text\n" {
		t.Errorf("written and read: %q", text)
	}
	for line, want := range map[string]bool{"[ 1.0] I/O error, dev x": true, "[ 1.0] BUG: x": true, "[ 1.0] all is well": false} {
		if got := complains(line); got != want {
			t.Errorf("%q is a complaint: %v", line, got)
		}
	}
	beside.must()
	g.shutdown("poweroff")
}
