package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

const (
	Sector = 512
	KiB    = int64(1) << 10
	MiB    = int64(1) << 20
)

// Disk is a block device of the test's, or a file in the place of one.
type Disk struct {
	M    *Devices
	Path string // /dev/..., or the file's
	Name string // of the block device in /sys/block; "" for a file
	Size int64  // bytes
}

// NullOptions of a null_blk device. It keeps its data in memory.
type NullOptions struct {
	MiB       int64 // size
	Blocksize int   // 512 if zero
	Discard   bool
	Cache     int64 // of writes, MiB; 0 = none
	MBps      int   // most MB a second; 0 = no limit
	// latency of a request, depth and a timer instead of at once, as a real disk's.
	Latency time.Duration
	Depth   int
}

// NullBlkDir is where configfs has the null_blk devices.
const NullBlkDir = "/sys/kernel/config/nullb"

// NullBlk makes a null_blk device called null<role>.
func (m *Devices) NullBlk(role string, o NullOptions) *Disk {
	m.Helper()
	name := "null" + role
	dir := filepath.Join(NullBlkDir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			m.Errorf("remove null_blk device: %v", err)
		}
	})
	paced := o.MBps > 0 && o.Latency == 0
	if paced {
		o.Latency, o.Depth = time.Second*pacedRequest/time.Duration(int64(o.MBps)*MiB), 1
	}
	irqmode := 0 // complete in the submitter
	if o.Latency > 0 {
		irqmode = 2 // by a timer
	}
	set := func(attribute string, value int64) {
		m.WriteFile(filepath.Join(dir, attribute), strconv.FormatInt(value, 10))
	}
	set("memory_backed", 1)
	set("size", o.MiB)
	set("blocksize", int64(max(o.Blocksize, Sector)))
	set("irqmode", int64(irqmode))
	set("completion_nsec", o.Latency.Nanoseconds())
	set("submit_queues", 1)
	if o.Cache > 0 {
		set("cache_size", o.Cache)
	}
	if o.Discard || runs.Layer() && o.MBps == 0 { // nothing is led to one that cannot; a paced one never grants a large discard
		set("discard", 1)
	}
	if o.MBps > 0 {
		set("mbps", int64(o.MBps))
	}
	if o.Depth > 0 {
		set("hw_queue_depth", int64(o.Depth))
	}
	set("power", 1)
	d := m.Block("/dev/" + name)
	switch {
	case paced:
		m.WriteFile(filepath.Join("/sys/block", d.Name, "queue/max_sectors_kb"), strconv.Itoa(pacedRequest/1024))
	case o.MBps > 0:
		m.boundRequests(d, o.MBps)
	}
	return d
}

// pacedRequest is the largest request, in bytes, of a device whose rate comes from the time that a
// request takes. null_blk's own limit is for guests of one CPU: with more its timer is restarted
// while it runs, the kernel warns (hrtimer_forward), and now and then the device stands still for
// ever (6.12 and 7.3).
const pacedRequest = 64 << 10

// boundRequests: null_blk grants a limited device the bytes of 20 ms at a time, and a request
// larger than that never (null_handle_throttled, main.c, 7.3). Before 7.3 its largest request is
// 127 KiB, and so it is here on all: larger ones leave much of what is granted unused.
func (m *Devices) boundRequests(d *Disk, mbps int) {
	m.Helper()
	granted := mbps * int(KiB) / 50
	m.WriteFile(filepath.Join("/sys/block", d.Name, "queue/max_sectors_kb"), strconv.Itoa(min(granted/4*4, 127)))
}

// Block describes a block device that is there, or about to be.
func (m *Devices) Block(path string) *Disk {
	m.Helper()
	d := &Disk{M: m, Path: path}
	m.WaitFor(CleanLimit, path, func() error {
		name, err := blockName(path)
		d.Name = name
		_, late := os.Stat(filepath.Join("/sys/block", d.Name, "size")) // sda that was found again has a node first
		return errors.Join(err, late)
	})
	d.Size = m.Number(filepath.Join("/sys/block", d.Name, "size")) * Sector
	return d
}

// blockName is the kernel's name of a block device. A layer has a link, or a node of its own that
// dmsetup makes without udev.
func blockName(path string) (string, error) {
	st, err := sys.StatPath(path)
	if err != nil {
		return "", err
	}
	device, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", sys.Major(st.Rdev), sys.Minor(st.Rdev)))
	return filepath.Base(device), err
}

// Loop makes a loop device with logical blocks of that size over a file.
func (m *Devices) Loop(file string, block int) *Disk {
	m.Helper()
	path := strings.TrimSpace(m.MustRun("losetup", "--find", "--show", "--sector-size", strconv.Itoa(block), file))
	m.Cleanup(func() { m.MustRun("losetup", "--detach", path) })
	return m.Block(path)
}

// Linear makes a device-mapper device of that size, in bytes, over the beginning of another: any
// size that sectors allow.
func (m *Devices) Linear(name string, under *Disk, size int64) *Disk {
	m.Helper()
	return m.Mapper(name, fmt.Sprintf("0 %d linear %s 0", size/Sector, under.Path))
}

// Known is linear with something that the device is known by, as a disk by its serial number. The
// others of the tests have nothing.
func (m *Devices) Known(name string, under *Disk, size int64) *Disk {
	m.Helper()
	return m.Mapper(name, fmt.Sprintf("0 %d linear %s 0", size/Sector, under.Path), "--uuid", "devicetest-"+name)
}

// Mapper makes a device-mapper device.
func (m *Devices) Mapper(name, table string, args ...string) *Disk {
	m.Helper()
	m.MustRun("dmsetup", append([]string{"create", name, "--table", table}, args...)...)
	m.Cleanup(func() { m.MustRun("dmsetup", "remove", "--retry", name) })
	return m.Block(m.MapperPath(name))
}

// MapperPath is the node of a device-mapper device: without udev there is no link of its name.
func (m *Devices) MapperPath(name string) string {
	m.Helper()
	minor := strings.TrimSpace(m.MustRun("dmsetup", "info", "--columns", "--noheadings", "-o", "minor", name))
	return "/dev/dm-" + minor
}

// File makes a sparse file of size bytes in the test's directory.
func (m *Devices) File(name string, size int64) *Disk {
	m.Helper()
	path := filepath.Join(m.Dir, name)
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(size)
		f.Close()
	}
	if err != nil {
		m.Fatal(err)
	}
	return &Disk{M: m, Path: path, Size: size}
}

// Missing is a file that add is to make.
func (m *Devices) Missing(name string) *Disk {
	return &Disk{M: m, Path: filepath.Join(m.Dir, name)}
}

// Traffic is what a block device has been asked for since it was made.
type Traffic struct {
	Reads, ReadBytes, Writes, WriteBytes, Flushes int64
}

// Since is the traffic between b and a.
func (a Traffic) Since(b Traffic) Traffic {
	return Traffic{a.Reads - b.Reads, a.ReadBytes - b.ReadBytes, a.Writes - b.Writes, a.WriteBytes - b.WriteBytes, a.Flushes - b.Flushes}
}

// Traffic reads /sys/block/NAME/stat (Documentation/block/stat.rst).
func (d *Disk) Traffic() Traffic {
	d.M.Helper()
	f := strings.Fields(d.M.ReadFile(filepath.Join("/sys/block", d.Name, "stat")))
	n := make([]int64, len(f))
	for i := range f {
		n[i], _ = strconv.ParseInt(f[i], 10, 64)
	}
	return Traffic{Reads: n[0], ReadBytes: n[2] * Sector, Writes: n[4], WriteBytes: n[6] * Sector, Flushes: n[15]}
}

// Number reads a file that holds one.
func (m *Guest) Number(path string) int64 {
	m.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(m.ReadFile(path)), 10, 64)
	if err != nil {
		m.Fatalf("%s: %v", path, err)
	}
	return n
}

// ReadFile reads a file, such as one of sysfs, whole.
func (m *Guest) ReadFile(path string) string {
	m.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		m.Fatal(err)
	}
	return string(b)
}

// WriteFile writes to a file that is there, as in sysfs.
func (m *Guest) WriteFile(path, text string) {
	m.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
		f.Close()
	}
	if err != nil {
		m.Fatalf("write %q to %s: %v", text, path, err)
	}
}

// DropCaches makes the next reads of files come from their devices.
func (m *Guest) DropCaches() {
	m.Helper()
	m.WriteFile("/proc/sys/vm/drop_caches", "3")
}

// KiBText writes a size as the command line takes it.
func KiBText(bytes int64) string { return fmt.Sprintf("%dKiB", bytes/KiB) }

// Number is a block device's as device-mapper writes it.
func (d *Disk) Number() string {
	d.M.Helper()
	return strings.TrimSpace(d.M.ReadFile(filepath.Join("/sys/block", d.Name, "dev")))
}

// Sized is a disk of that kind and size.
func (o NullOptions) Sized(mib int64) NullOptions {
	o.MiB = mib
	return o
}

// Erase makes metadata empty.
func (m *Contents) Erase(d *Disk) {
	m.Helper()
	m.FillDisk(d, Zeros)
}

// Removed takes a null_blk device away from whoever uses it, and attach makes it anew: another
// device to the kernel, of the same name, number and contents.
func (d *Disk) Removed() {
	d.M.Helper()
	d.M.WriteFile(filepath.Join(NullBlkDir, d.Name, "power"), "0")
}
