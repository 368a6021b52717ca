//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	sector = 512
	kib    = int64(1) << 10
	mib    = int64(1) << 20
)

// disk is a block device of the test's, or a file in the place of one.
type disk struct {
	m    *machine
	path string // /dev/..., or the file's
	name string // of the block device in /sys/block; "" for a file
	size int64  // bytes
}

// nullOptions of a null_blk device. It keeps its data in memory.
type nullOptions struct {
	mib       int64 // size
	blocksize int   // 512 if zero
	discard   bool
	cache     int64 // of writes, MiB; 0 = none
	mbps      int   // most MB a second; 0 = no limit
	// latency of a request, depth and a timer instead of at once, as a real disk's.
	latency time.Duration
	depth   int
}

const nullBlkFolder = "/sys/kernel/config/nullb"

// nullBlk makes a null_blk device called null<role>.
func (m *machine) nullBlk(role string, o nullOptions) *disk {
	m.Helper()
	name := "null" + role
	folder := filepath.Join(nullBlkFolder, name)
	if err := os.Mkdir(folder, 0o755); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() {
		if err := os.Remove(folder); err != nil {
			m.Errorf("remove null_blk device: %v", err)
		}
	})
	paced := o.mbps > 0 && o.latency == 0
	if paced {
		o.latency, o.depth = time.Second*pacedRequest/time.Duration(int64(o.mbps)*mib), 1
	}
	irqmode := 0 // complete in the submitter
	if o.latency > 0 {
		irqmode = 2 // by a timer
	}
	set := func(attribute string, value int64) {
		m.writeFile(filepath.Join(folder, attribute), strconv.FormatInt(value, 10))
	}
	set("memory_backed", 1)
	set("size", o.mib)
	set("blocksize", int64(max(o.blocksize, sector)))
	set("irqmode", int64(irqmode))
	set("completion_nsec", o.latency.Nanoseconds())
	set("submit_queues", 1)
	if o.cache > 0 {
		set("cache_size", o.cache)
	}
	if o.discard {
		set("discard", 1)
	}
	if o.mbps > 0 {
		set("mbps", int64(o.mbps))
	}
	if o.depth > 0 {
		set("hw_queue_depth", int64(o.depth))
	}
	set("power", 1)
	d := m.block("/dev/" + name)
	switch {
	case paced:
		m.writeFile(filepath.Join("/sys/block", d.name, "queue/max_sectors_kb"), strconv.Itoa(pacedRequest/1024))
	case o.mbps > 0:
		m.boundRequests(d, o.mbps)
	}
	return d
}

// pacedRequest is the largest request, in bytes, of a device whose rate comes from the time that a request
// takes. null_blk's own limit is for guests of one CPU: with more its timer is restarted while it runs, the
// kernel warns (hrtimer_forward), and now and then the device stands still for ever (6.12 and 7.3).
const pacedRequest = 64 << 10

// boundRequests: null_blk grants a limited device the bytes of 20 ms at a time, and a request larger than that
// never (null_handle_throttled, main.c, 7.3). Before 7.3 its largest request is 127 KiB, and so it is here on all:
// larger ones leave much of what is granted unused.
func (m *machine) boundRequests(d *disk, mbps int) {
	m.Helper()
	granted := mbps * int(kib) / 50
	m.writeFile(filepath.Join("/sys/block", d.name, "queue/max_sectors_kb"), strconv.Itoa(min(granted/4*4, 127)))
}

// block describes a block device that is there, or about to be.
func (m *machine) block(path string) *disk {
	m.Helper()
	d := &disk{m: m, path: path, name: filepath.Base(path)}
	m.waitFor(cleanLimit, path, func() error {
		_, err := os.Stat(path)
		_, late := os.Stat(filepath.Join("/sys/block", d.name, "size")) // sda that was found again has a node first
		return errors.Join(err, late)
	})
	d.size = m.number(filepath.Join("/sys/block", d.name, "size")) * sector
	return d
}

// loop makes a loop device with logical blocks of that size over a file.
func (m *machine) loop(file string, block int) *disk {
	m.Helper()
	path := strings.TrimSpace(m.run("losetup", "--find", "--show", "--sector-size", strconv.Itoa(block), file))
	m.Cleanup(func() { m.run("losetup", "--detach", path) })
	return m.block(path)
}

// linear makes a device-mapper device of that size, in bytes, over the beginning of another: any size
// that sectors allow.
func (m *machine) linear(name string, under *disk, size int64) *disk {
	m.Helper()
	return m.mapper(name, fmt.Sprintf("0 %d linear %s 0", size/sector, under.path))
}

// known is linear with something that the device is known by, as a disk by its serial number. The others of
// the tests have nothing.
func (m *machine) known(name string, under *disk, size int64) *disk {
	m.Helper()
	return m.mapper(name, fmt.Sprintf("0 %d linear %s 0", size/sector, under.path), "--uuid", "devicetest-"+name)
}

// mapper makes a device-mapper device.
func (m *machine) mapper(name, table string, args ...string) *disk {
	m.Helper()
	m.run("dmsetup", append([]string{"create", name, "--table", table}, args...)...)
	m.Cleanup(func() { m.run("dmsetup", "remove", "--retry", name) })
	return m.block(m.mapperPath(name))
}

// mapperPath is the node of a device-mapper device: without udev there is no link of its name.
func (m *machine) mapperPath(name string) string {
	m.Helper()
	minor := strings.TrimSpace(m.run("dmsetup", "info", "--columns", "--noheadings", "-o", "minor", name))
	return "/dev/dm-" + minor
}

// file makes a sparse file of size bytes in the test's folder.
func (m *machine) file(name string, size int64) *disk {
	m.Helper()
	path := filepath.Join(m.dir, name)
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(size)
		f.Close()
	}
	if err != nil {
		m.Fatal(err)
	}
	return &disk{m: m, path: path, size: size}
}

// missing is a file that add is to make.
func (m *machine) missing(name string) *disk {
	return &disk{m: m, path: filepath.Join(m.dir, name)}
}

// traffic is what a block device has been asked for since it was made.
type traffic struct {
	reads, readBytes, writes, writeBytes, flushes int64
}

func (a traffic) since(b traffic) traffic {
	return traffic{a.reads - b.reads, a.readBytes - b.readBytes, a.writes - b.writes, a.writeBytes - b.writeBytes, a.flushes - b.flushes}
}

// traffic reads /sys/block/NAME/stat (Documentation/block/stat.rst).
func (d *disk) traffic() traffic {
	d.m.Helper()
	f := strings.Fields(d.m.readFile(filepath.Join("/sys/block", d.name, "stat")))
	n := make([]int64, len(f))
	for i := range f {
		n[i], _ = strconv.ParseInt(f[i], 10, 64)
	}
	return traffic{reads: n[0], readBytes: n[2] * sector, writes: n[4], writeBytes: n[6] * sector, flushes: n[15]}
}

// number reads a file that holds one.
func (m *machine) number(path string) int64 {
	m.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(m.readFile(path)), 10, 64)
	if err != nil {
		m.Fatalf("%s: %v", path, err)
	}
	return n
}

func (m *machine) readFile(path string) string {
	m.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		m.Fatal(err)
	}
	return string(b)
}

// writeFile writes to a file that is there, as in sysfs.
func (m *machine) writeFile(path, text string) {
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

// dropCaches makes the next reads of files come from their devices.
func (m *machine) dropCaches() {
	m.Helper()
	m.writeFile("/proc/sys/vm/drop_caches", "3")
}

// kibText writes a size as the command line takes it.
func kibText(bytes int64) string { return fmt.Sprintf("%dKiB", bytes/kib) }
