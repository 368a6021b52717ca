package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// fakeHost is a sysfs and procfs in a directory, with made-up device nodes.
type fakeHost struct {
	t     *testing.T
	root  string
	nodes map[string]sys.Stat // by path
	sizes map[string]int64    // bytes, by path; of those that have one
	tree  tree

	claims map[string]bool // by path: somebody has it open exclusively
}

func newFakeHost(t *testing.T) *fakeHost {
	f := &fakeHost{t: t, root: t.TempDir(), nodes: map[string]sys.Stat{}, sizes: map[string]int64{}, claims: map[string]bool{}}
	f.tree = tree{sys: filepath.Join(f.root, "sys"), processes: processes{proc: filepath.Join(f.root, "proc"), stat: f.stat}}
	return f
}

func (f *fakeHost) stat(path string) (sys.Stat, error) {
	if to, err := os.Readlink(path); err == nil {
		path = to
	}
	st, ok := f.nodes[path]
	if !ok {
		return sys.Stat{}, fmt.Errorf("stat %s: %w", path, os.ErrNotExist)
	}
	return st, nil
}

func (f *fakeHost) write(path, content string) {
	f.t.Helper()
	full := filepath.Join(f.root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeHost) link(path, to string) {
	f.t.Helper()
	full := filepath.Join(f.root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(to, full); err != nil {
		f.t.Fatal(err)
	}
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) + "\n" }

// block adds a device with its sysfs directory, relative to /sys/devices, and its
// node /dev/NAME.
func (f *fakeHost) block(dir string, major, minor uint32) sys.Stat {
	f.t.Helper()
	dev := fmt.Sprintf("%d:%d", major, minor)
	f.write("sys/devices/"+dir+"/dev", dev+"\n")
	f.link("sys/dev/block/"+dev, filepath.Join(f.root, "sys/devices", dir))
	if filepath.Dir(dir) == "." {
		f.link("sys/block/"+dir, filepath.Join(f.root, "sys/devices", dir))
	}
	st := sys.Stat{Mode: 0o060600, Rdev: sys.Mkdev(major, minor), Dev: sys.Mkdev(0, 5), Inode: uint64(minor)}
	f.nodes["/dev/"+filepath.Base(dir)] = st
	return st
}

func (f *fakeHost) partition(disk, name string, major, minor uint32, start, sectors int64) sys.Stat {
	f.t.Helper()
	st := f.block(disk+"/"+name, major, minor)
	f.write("sys/devices/"+disk+"/"+name+"/partition", "1\n")
	f.write("sys/devices/"+disk+"/"+name+"/start", fmt.Sprintln(start))
	f.write("sys/devices/"+disk+"/"+name+"/size", fmt.Sprintln(sectors))
	return st
}

func (f *fakeHost) dm(name string, minor uint32, slaves ...string) sys.Stat {
	f.t.Helper()
	st := f.block(name, 253, minor)
	f.write("sys/devices/"+name+"/dm/name", "vg-"+name+"\n")
	for _, s := range slaves {
		f.link("sys/devices/"+name+"/slaves/"+filepath.Base(s), filepath.Join(f.root, "sys/devices", s))
		f.link("sys/devices/"+s+"/holders/"+name, filepath.Join(f.root, "sys/devices", name))
	}
	return st
}

func (f *fakeHost) file(path string, dev, inode uint64) sys.Stat {
	st := sys.Stat{Mode: 0o100600, Dev: dev, Inode: inode}
	f.nodes[path] = st
	return st
}

func (f *fakeHost) loop(n uint32, file string, offset int64) sys.Stat {
	f.t.Helper()
	name := fmt.Sprintf("loop%d", n)
	st := f.block(name, 7, n)
	f.write("sys/devices/"+name+"/loop/backing_file", file+"\n")
	f.write("sys/devices/"+name+"/loop/offset", fmt.Sprintln(offset))
	return st
}

// TestDepth: what the queues of a disk hold, also seen from a partition or from what is made of it;
// of several disks it is that of the one that holds the fewest.
func TestDepth(t *testing.T) {
	f := newFakeHost(t)
	f.block("sda", 8, 0)
	f.write("sys/devices/sda/queue/nr_requests", "64\n")
	f.write("sys/devices/sda/mq/0/nr_tags", "32\n")
	f.partition("sda", "sda1", 8, 1, 2048, 2048)
	f.block("nvme0n1", 259, 0)
	f.write("sys/devices/nvme0n1/queue/nr_requests", "1023\n")
	f.write("sys/devices/nvme0n1/mq/0/nr_tags", "1023\n")
	f.write("sys/devices/nvme0n1/mq/1/nr_tags", "1023\n")
	f.dm("dm-0", 0, "nvme0n1", "sda/sda1")
	f.write("sys/devices/dm-0/queue/nr_requests", "128\n")
	f.block("ram0", 1, 0)
	f.dm("dm-1", 1)
	f.dm("dm-2", 2, "dm-1")
	f.link("sys/devices/dm-1/slaves/dm-2", f.root+"/sys/devices/dm-2")
	for name, want := range map[string][2]int{
		"sda": {64, 1}, "sda1": {64, 1}, "nvme0n1": {1023, 2}, "dm-0": {64, 1}, "ram0": {0, 1}, "dm-2": {0, 0},
	} {
		if requests, queues := f.tree.depth(f.nodes["/dev/"+name].Rdev, levels); requests != want[0] || requests > 0 && queues != want[1] {
			t.Errorf("depth of %s is %d in %d queues, want %d", name, requests, queues, want)
		}
	}
}
