//go:build service

package servicetest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// plainDest is the node of the first of two disks without a serial number; the disks are attached
// by name, behind the root's: metadata, plain1, plain2, source.
const plainDest = "/dev/vdc"

// exchange makes two disks of a guest that is off change places.
func (g *guest) exchange(a, b string) {
	g.Helper()
	spare := g.disk(a) + ".spare"
	if err := errors.Join(os.Rename(g.disk(a), spare), os.Rename(g.disk(b), g.disk(a)), os.Rename(spare, g.disk(b))); err != nil {
		g.Fatal(err)
	}
}

// refusedDest checks that the clone was not started over another disk, and that nothing was written
// to that.
func (g *guest) refusedDest(when string) {
	g.Helper()
	status := strings.TrimSpace(g.run("systemctl", "show", "-P", "ExecMainStatus", "ublk-clone@data"))
	if status != "114" {
		g.Errorf("%s: the unit's exit status is %s, expected 114:\n%s", when, status, g.try("journalctl", "-b", "-u", "ublk-clone@data").stdout)
	}
	g.shutdown("poweroff")
	content, err := os.ReadFile(g.disk("plain1"))
	if err != nil {
		g.Fatal(err)
	}
	if len(bytes.Trim(content, "\x00")) > 0 {
		g.Errorf("%s: the other disk was written", when)
	}
}

// TestDisksChangePlaces: two virtio disks without a serial number swap their names, over a reboot
// and over a power cut. The clone is refused, and is whole when they are back.
func TestDisksChangePlaces(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	const size = 64 << 20
	g := newGuest(t, options{disks: map[string]int64{"source": size, "plain1": size, "plain2": size, "metadata": 16 << 20}})
	g.boot()
	g.install(packages)
	g.defineData("")
	g.write("/etc/ublk-clone/data.toml", fmt.Sprintf("source = \"%[1]ssource\"\ndest = \"%[2]s\"\nmetadata = \"%[1]smetadata\"\nno-hydration = true\n", byID, plainDest))
	g.sh(`
		systemctl daemon-reload
		systemctl enable --now ublk-clone@data
		mount /dev/ublk-clone/data /mnt
		head -c 4M /dev/urandom >/mnt/written
		md5sum /mnt/written >/root/written
		sync
		umount /mnt`)
	whole := func() {
		t.Helper()
		g.sh(`
			mount /dev/ublk-clone/data /mnt
			md5sum --quiet -c /root/written
			cd /mnt
			md5sum --quiet -c /root/sums
			head -c 1M /dev/urandom >/mnt/more
			sync
			sleep 3
			cd /`)
	}
	g.shutdown("poweroff")
	g.exchange("plain1", "plain2")
	g.boot()
	g.refusedDest("after a reboot")
	g.exchange("plain1", "plain2")
	g.boot()
	whole()
	g.powerCut()
	g.exchange("plain1", "plain2")
	g.boot()
	g.refusedDest("after a power cut")
	g.exchange("plain1", "plain2")
	g.boot()
	whole()
	g.sh("umount /mnt")
}
