//go:build service

package servicetest

import (
	"fmt"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestServiceClonetab: a line of systemd's clonetab, imported, is a clone as by add with the same
// words; and complete, it needs its source no more, also when its daemon begins anew.
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
