package blockdev

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// sized is a device of the fake host with its size in sysfs.
func (f *fakeHost) sized(st sys.Stat, bytes int64) sys.Stat {
	f.t.Helper()
	for path, node := range f.nodes {
		if node == st {
			f.sizes[path] = bytes
			if dir := f.tree.dir(st.Rdev); dir != "" {
				f.write(strings.TrimPrefix(dir, f.root)+"/size", decimal(bytes/512))
			}
		}
	}
	return st
}

// usersHost is a machine with two disks, whose parts, loops and tables are in each other's way or
// not.
func usersHost(t *testing.T) *fakeHost {
	f := newFakeHost(t)
	tables := map[uint64][]sys.DMTarget{}
	f.tree.targets = func(rdev uint64) ([]sys.DMTarget, error) { return tables[rdev], nil }
	f.tree.claimed = func(path string) bool { return f.claims[path] }

	f.sized(f.block("sda", 8, 0), 100*mib)
	f.sized(f.partition("sda", "sda1", 8, 1, 2048, 40*2048), 40*mib)
	f.sized(f.partition("sda", "sda2", 8, 2, 41*2048, 50*2048), 50*mib)
	f.sized(f.block("sdb", 8, 16), 100*mib)
	f.sized(f.block("sdc", 8, 32), 100*mib)
	lv := func(name string, minor uint32, table ...sys.DMTarget) {
		st := f.sized(f.dm(name, minor, "sdc"), 10*mib)
		tables[st.Rdev] = table
	}
	lv("dm-0", 0, sys.DMTarget{Sectors: 20480, Type: "linear", Params: "8:32 2048"})
	lv("dm-1", 1, sys.DMTarget{Sectors: 20480, Type: "linear", Params: "8:32 22528"})
	lv("dm-2", 2, sys.DMTarget{Sectors: 2048, Type: "error"}, sys.DMTarget{Start: 2048, Sectors: 18432, Type: "linear", Params: "8:32 10240"})
	f.sized(f.block("sdd", 8, 48), 100*mib)
	f.sized(f.loop(0, "/dev/sdd", 0), 10*mib)
	f.sized(f.loop(1, "/dev/sdd", 10*mib), 10*mib)
	f.sized(f.loop(2, "/dev/sda1", 0), 40*mib)
	f.sized(f.loop(3, "/img", 0), 10*mib)
	f.sized(f.loop(4, "/img", 10*mib), 10*mib)
	for i, path := range []string{"/img", "/other"} {
		st := f.file(path, sys.Mkdev(8, 16), 100+uint64(i))
		st.Size = 20 * mib
		f.nodes[path], f.sizes[path] = st, st.Size
	}

	f.write("proc/10/comm", "postgres\n")
	f.link("proc/10/ns/mnt", "mnt:[1]")
	f.write("proc/10/mountinfo", "50 1 8:16 / /data rw - ext4 /dev/sdb rw\n51 1 7:1 / /on-loop rw - ext4 /dev/loop1 rw\n")
	return f
}

func names(holders []Holder) string { return joinHolders(holders) }

// TestUsers: whoever reaches the same bytes is found, and no sibling is.
func TestUsers(t *testing.T) {
	f := usersHost(t)
	for _, c := range []struct{ of, want string }{
		{"/dev/sdd", "under /dev/loop0; under /dev/loop1, mounted on /on-loop"},
		{"/dev/loop0", ""}, // its sibling has the next 10 MiB
		{"/dev/loop2", ""},
		{"/dev/sda", "under /dev/loop2"},
		{"/dev/sda1", "under /dev/loop2"},
		{"/dev/sda2", ""},
		{"/dev/dm-0", "under /dev/dm-2 (vg-dm-2)"},
		{"/dev/dm-1", "under /dev/dm-2 (vg-dm-2)"},
		{"/dev/dm-2", "under /dev/dm-0 (vg-dm-0); under /dev/dm-1 (vg-dm-1)"},
		{"/img", "under /dev/loop3; under /dev/loop4"},
		{"/other", ""},
		{"/dev/loop3", ""},
	} {
		st := f.nodes[c.of]
		if got := names(f.tree.search(st, f.sizes[c.of]).rivals()); got != c.want {
			t.Errorf("users of %s: found %q, expected %q", c.of, got, c.want)
		}
	}
}

// TestUsersBelow: what a loop device leads to is mounted, or held by somebody.
func TestUsersBelow(t *testing.T) {
	f := usersHost(t)
	f.write("proc/10/mountinfo", "50 1 8:48 / /data rw - ext4 /dev/sdd rw\n")
	if got := names(f.tree.search(f.nodes["/dev/loop0"], 10*mib).rivals()); got != "mounted on /data" {
		t.Errorf("the disk below is mounted: found %q", got)
	}
	f.write("proc/10/mountinfo", "")
	f.claims["/dev/sdd"] = true
	if got := names(f.tree.search(f.nodes["/dev/loop0"], 10*mib).rivals()); got != "somebody holds /dev/sdd" {
		t.Errorf("the disk below is held: found %q", got)
	}
	f.claims["/dev/sdd"] = false
	all := f.tree.search(f.nodes["/dev/sdd"], 100*mib).rivals()
	if len(all) != 2 || !all[0].idle || !all[1].idle {
		t.Errorf("loops that nobody uses are not idle: %+v", all)
	}
	f.claims["/dev/loop1"] = true
	if all := f.tree.search(f.nodes["/dev/sdd"], 100*mib).rivals(); len(all) != 2 || !all[0].idle || all[1].idle {
		t.Errorf("one loop is held: %+v", all)
	}
	f.link("proc/"+strconv.Itoa(os.Getpid())+"/fd/3", "/dev/loop1")
	if all := f.tree.search(f.nodes["/dev/sdd"], 100*mib).rivals(); len(all) != 1 || all[0].Where != "/dev/loop0" {
		t.Errorf("one loop is held by this very process: %+v", all)
	}
}

// TestExporters: network targets of the kernel hold no lock.
func TestExporters(t *testing.T) {
	f := usersHost(t)
	f.write("sys/kernel/config/nvmet/subsystems/nqn/namespaces/1/enable", "1\n")
	f.write("sys/kernel/config/nvmet/subsystems/nqn/namespaces/1/device_path", "/dev/sda1\n")
	f.write("sys/kernel/config/target/core/fileio_0/disk/enable", "1\n")
	f.write("sys/kernel/config/target/core/fileio_0/disk/info", "Status: ACTIVATED  Max Queue Depth: 0\n TCM FILEIO ID: 0        File: /img  Size: 1\n")
	f.write("sys/kernel/config/target/core/iblock_0/off/enable", "0\n")
	f.write("sys/kernel/config/target/core/iblock_0/off/udev_path", "/dev/sdb\n")
	for of, want := range map[string]string{
		"/dev/sda": "exported by the NVMe target nqn, namespace 1", "/dev/sda2": "", "/img": "exported by the SCSI target fileio_0/disk",
		"/dev/loop3": "exported by the SCSI target fileio_0/disk",
	} {
		if got := names(f.tree.search(f.nodes[of], f.sizes[of]).exporters()); got != want {
			t.Errorf("exporters of %s: found %q, expected %q", of, got, want)
		}
	}
}

// TestWriters: a reader is no danger, a writer without a lock is.
func TestWriters(t *testing.T) {
	f := usersHost(t)
	f.link("proc/10/fd/3", "/dev/sda")
	f.write("proc/10/fdinfo/3", "pos:\t0\nflags:\t0100000\n")
	u := f.tree.object(f.nodes["/dev/sda"])
	if got := names(f.tree.writers(u)); got != "" {
		t.Errorf("a reader: found %q", got)
	}
	f.write("proc/10/fdinfo/3", "pos:\t0\nflags:\t0100002\n")
	if got := names(f.tree.writers(u)); got != "open in process 10 (postgres)" {
		t.Errorf("a writer: found %q", got)
	}
}

// TestInstance: a device that another has taken the place of has another instance, at any depth.
func TestInstance(t *testing.T) {
	f := usersHost(t)
	instances := map[Instance]string{}
	for i, change := range []func(){
		func() {},
		func() { f.write("sys/devices/sdd/diskseq", "7\n") },
		func() { f.write("sys/devices/loop0/loop/offset", "512\n") },
		func() { f.write("sys/devices/loop0/loop/backing_file", "/dev/sdb\n") },
		func() { f.write("sys/devices/loop0/diskseq", "8\n") },
	} {
		change()
		m := f.tree.instance(f.nodes["/dev/loop0"])
		if m != f.tree.instance(f.nodes["/dev/loop0"]) {
			t.Errorf("change %d: the instance is another one each time", i)
		}
		if instances[m] != "" {
			t.Errorf("change %d: the instance is the one of change %s", i, instances[m])
		}
		instances[m] = decimal(int64(i))
	}
	image := f.tree.instance(f.nodes["/img"])
	again := f.nodes["/img"]
	again.Birth = 5
	if f.tree.instance(again) == image {
		t.Error("a file with the same inode that was made later has the same instance")
	}
}

// TestLoopWhoseNameLeadsElsewhere: the driver's word counts.
func TestLoopWhoseNameLeadsElsewhere(t *testing.T) {
	f := usersHost(t)
	f.tree.loop = func(string) (sys.Stat, error) { return f.nodes["/img"], nil }
	f.write("sys/devices/loop3/loop/backing_file", "/other\n")
	if got := f.tree.identifyBlock(f.nodes["/dev/loop3"].Rdev); got != "loop:100@0" {
		t.Errorf("its identity is %q", got)
	}
}
