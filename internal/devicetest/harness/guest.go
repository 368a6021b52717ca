package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// MountGroups mounts the cgroups (Documentation/admin-guide/cgroup-v2.rst) and returns where.
func (m *Guest) MountGroups() string {
	m.Helper()
	root := filepath.Join(m.Dir, "cgroup")
	if err := os.Mkdir(root, 0o755); err != nil {
		m.Fatal(err)
	}
	if err := unix.Mount("cgroup", root, "cgroup2", 0, ""); err != nil {
		m.Fatalf("mount cgroup2: %v", err)
	}
	m.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	return root
}

// The device-mapper device that `add --dm` lays over the block device.

// LayerName is that of the tests.
const LayerName = "layered"

// LayerPath is its link.
const LayerPath = "/dev/mapper/" + LayerName

// LayerGone says that there is no device-mapper device of the tests' name, nor its link.
func (m *Machine) LayerGone() {
	m.Helper()
	if o := m.Try("dmsetup", "info", LayerName); o.Code == 0 {
		m.Errorf("there is a device-mapper device:\n%s", o.Stdout)
	}
	if _, err := os.Lstat(LayerPath); err == nil {
		m.Errorf("%s is there", LayerPath)
	}
}

// Under is the number of the block device that the layer leads to.
func (m *Machine) Under() string {
	m.Helper()
	f := strings.Fields(m.MustRun("dmsetup", "table", LayerName))
	if len(f) != 5 || f[2] != "linear" || f[4] != "0" {
		m.Fatalf("the layer's table is %q", f)
	}
	return f[3]
}

// LedTo is how many bytes of the layer lead to the block device of that number, each to its own
// place.
func (m *Machine) LedTo(number string) (bytes int64) {
	m.Helper()
	for line := range strings.Lines(m.MustRun("dmsetup", "table", LayerName)) {
		var first, sectors, at int64
		var target, to string
		if n, _ := fmt.Sscan(line, &first, &sectors, &target, &to, &at); n != 5 || target != "linear" || at != first {
			m.Fatalf("a line of the layer's table is %q", line)
		}
		if to == number {
			bytes += sectors * Sector
		}
	}
	return bytes
}

// MemoryNumber reads /proc/meminfo, in bytes.
func (m *Guest) MemoryNumber(name string) int64 {
	m.Helper()
	n := int64(-1)
	for line := range strings.Lines(m.ReadFile("/proc/meminfo")) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			_, _ = fmt.Sscan(rest, &n)
		}
	}
	return n * KiB
}

// ReadDisk is all that a small device holds.
func (m *Contents) ReadDisk(d *Disk) (content []byte) {
	m.Helper()
	m.Sweep(d.Path, d.Size, func(_ int64, b []byte) error {
		content = append(content, b...)
		return nil
	})
	return content
}

// CheckTail: what lies behind the clone's end in a larger destination is not the clone's.
func (m *Contents) CheckTail(dest *Disk, size int64) {
	m.Helper()
	m.Sweep(dest.Path, dest.Size, func(off int64, b []byte) error {
		for i := max(0, size-off); i < int64(len(b)); i += Sector {
			if !Holds(b[i:i+Sector], 0, Junk) {
				return fmt.Errorf("sector %d behind the clone's end was overwritten: %s", (off+i)/Sector, Describe(b[i:i+Sector]))
			}
		}
		return nil
	})
}

// OpenCount is how often a device-mapper device is open.
func (m *Guest) OpenCount(name string) (n int) {
	m.Helper()
	out := m.MustRun("dmsetup", "info", "--columns", "--noheadings", "-o", "open", name)
	if _, err := fmt.Sscan(out, &n); err != nil {
		m.Fatalf("open count of %s: %q", name, out)
	}
	return n
}

// ZeroWhereJunk: nothing of the destination's old content is left in what the clone covers.
func (m *Contents) ZeroWhereJunk(dest *Disk, size int64) {
	m.Helper()
	m.Sweep(dest.Path, size, func(off int64, b []byte) error {
		for i := int64(0); i < int64(len(b)); i += Sector {
			if Holds(b[i:i+Sector], 0, Junk) {
				m.Fatalf("sector %d of the destination is as it was before", (off+i)/Sector)
			}
		}
		return nil
	})
}
