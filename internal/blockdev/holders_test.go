package blockdev

import (
	"os"
	"slices"
	"strconv"
	"testing"
)

func TestHolders(t *testing.T) {
	f := newFakeHost(t)
	sda := f.block("sda", 8, 0)
	f.partition("sda", "sda1", 8, 1, 2048, 2048)
	f.dm("dm-0", 0, "sda/sda1")
	sdb := f.block("sdb", 8, 16)
	img := f.file("/img", 99, 7)
	f.loop(3, "/img", 0)
	f.loop(4, "/dev/sdb", 0)

	// Process 10 and 11 share a mount namespace, 12 has its own.
	f.write("proc/10/comm", "postgres\n")
	f.link("proc/10/ns/mnt", "mnt:[1]")
	f.write("proc/10/mountinfo", "50 1 8:1 / /data rw - ext4 /dev/sda1 rw\n51 1 0:44 / /btr rw - btrfs /dev/sdb rw\n")
	f.link("proc/10/fd/3", "/dev/sda")
	f.link("proc/10/fd/4", "/img")
	f.write("proc/11/comm", "sh\n")
	f.link("proc/11/ns/mnt", "mnt:[1]")
	f.write("proc/11/mountinfo", "50 1 8:1 / /never-read rw - ext4 /dev/sda1 rw\n")
	f.write("proc/12/comm", "container\n")
	f.link("proc/12/ns/mnt", "mnt:[2]")
	f.write("proc/12/mountinfo", "90 1 8:1 / /inside rw - ext4 /dev/sda1 rw\n")
	f.write("proc/swaps", "Filename\tType\n/dev/sdb partition 100 0 -2\n")
	self := strconv.Itoa(os.Getpid())
	f.link("proc/"+self+"/fd/3", "/dev/sda")

	for _, c := range []struct {
		name string
		got  []Holder
		want []string
	}{
		{"sda", f.tree.holders(sda), []string{"mounted on /data", "mounted on /inside", "under /dev/dm-0 (vg-dm-0)", "open in process 10 (postgres)"}},
		{"sdb", f.tree.holders(sdb), []string{"mounted on /btr", "under /dev/loop4", "used as swap"}},
		{"file", f.tree.holders(img), []string{"under /dev/loop3", "open in process 10 (postgres)"}},
	} {
		var got []string
		for _, h := range c.got {
			got = append(got, h.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("holders of %s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}
