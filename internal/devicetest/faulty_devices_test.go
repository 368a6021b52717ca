//go:build device

package devicetest

import (
	"fmt"
	"os"
	"path/filepath"
)

// Device-mapper devices that change while they are open.

// reload gives a device another table, a target a line.
func (m *machine) reload(name, table string) {
	m.Helper()
	path := filepath.Join(m.dir, name+".table")
	if err := os.WriteFile(path, []byte(table), 0o644); err != nil {
		m.Fatal(err)
	}
	m.run("dmsetup", "suspend", "--noflush", name)
	m.run("dmsetup", "load", name, path)
	m.run("dmsetup", "resume", name)
}

// fails turns a device into one that fails all I/O, works makes it what it was.
func (m *machine) fails(name string, size int64) {
	m.Helper()
	m.reload(name, fmt.Sprintf("0 %d error", size/sector))
}

func (m *machine) works(name string, size int64, under *disk) {
	m.Helper()
	m.reload(name, fmt.Sprintf("0 %d linear %s 0", size/sector, under.path))
}

// faultyDisk is a device that can be held up and made unreadable while it is in use.
type faultyDisk struct {
	*disk
	mapper string // its name in device-mapper
	under  *disk
}

// faultyDisk makes one of so many MiB, sound to begin with.
func (m *machine) faultyDisk(role string, mib int64) *faultyDisk {
	m.Helper()
	under := m.nullBlk(role, nullOptions{mib: mib})
	return &faultyDisk{disk: m.linear(role, under, under.size), mapper: role, under: under}
}

// fail makes requests fail that touch bytes [bad, end).
func (d *faultyDisk) fail(bad, end int64) {
	d.m.Helper()
	sound := func(first, end int64) string {
		if first == end {
			return ""
		}
		return fmt.Sprintf("%d %d linear %s %d\n", first/sector, (end-first)/sector, d.under.path, first/sector)
	}
	d.m.reload(d.mapper, sound(0, bad)+fmt.Sprintf("%d %d error\n", bad/sector, (end-bad)/sector)+sound(end, d.size))
}

// failWrites makes writes and flushes fail, and reads work. (A target "error" lets flushes pass.)
func (d *faultyDisk) failWrites() {
	d.m.Helper()
	d.m.run("modprobe", "dm-flakey")
	d.m.reload(d.mapper, fmt.Sprintf("0 %d flakey %s 0 0 86400 1 error_writes", d.size/sector, d.under.path))
}

// failWritesOf is failWrites of bytes [bad, end) alone, but flushes fail for all.
func (d *faultyDisk) failWritesOf(bad, end int64) {
	d.m.Helper()
	d.m.run("modprobe", "dm-flakey")
	d.m.reload(d.mapper, fmt.Sprintf("0 %[1]d linear %[4]s 0\n%[1]d %[2]d flakey %[4]s %[1]d 0 86400 1 error_writes\n%[3]d %[5]d linear %[4]s %[3]d\n",
		bad/sector, (end-bad)/sector, end/sector, d.under.path, (d.size-end)/sector))
}

// mend makes it sound again.
func (d *faultyDisk) mend() {
	d.m.Helper()
	d.m.works(d.mapper, d.size, d.under)
}

// hold keeps requests waiting until release.
func (d *faultyDisk) hold() {
	d.m.Helper()
	d.m.run("dmsetup", "suspend", "--noflush", d.mapper)
	d.m.Cleanup(d.release)
}

func (d *faultyDisk) release() {
	d.m.Helper()
	d.m.run("dmsetup", "resume", d.mapper)
}

// writing is how many writes, discards among them, are in flight.
func (d *disk) writing() int {
	d.m.Helper()
	var reads, writes int
	text := d.m.readFile(filepath.Join("/sys/block", d.name, "inflight"))
	if _, err := fmt.Sscan(text, &reads, &writes); err != nil {
		d.m.Fatalf("requests in flight of %s: %q", d.name, text)
	}
	return writes
}

// badBlocks makes a null_blk device fail requests that touch bytes [first, end).
func (d *disk) badBlocks(first, end int64) {
	d.m.Helper()
	d.m.writeFile(filepath.Join(nullBlkFolder, d.name, "badblocks"), fmt.Sprintf("+%d-%d", first/sector, end/sector-1))
}
