package harness

import (
	"fmt"
	"os"
	"path/filepath"
)

// Device-mapper devices that change while they are open.

// Reload gives a device another table, a target a line.
func (m *Devices) Reload(name, table string) {
	m.Helper()
	path := filepath.Join(m.Dir, name+".table")
	if err := os.WriteFile(path, []byte(table), 0o644); err != nil {
		m.Fatal(err)
	}
	m.MustRun("dmsetup", "suspend", "--noflush", name)
	m.MustRun("dmsetup", "load", name, path)
	m.MustRun("dmsetup", "resume", name)
}

// Fails turns a device into one that fails all I/O, works makes it what it was.
func (m *Devices) Fails(name string, size int64) {
	m.Helper()
	m.Reload(name, fmt.Sprintf("0 %d error", size/Sector))
}

// Works makes a device-mapper device that was made by name answer again, from the device under it.
func (m *Devices) Works(name string, size int64, under *Disk) {
	m.Helper()
	m.Reload(name, fmt.Sprintf("0 %d linear %s 0", size/Sector, under.Path))
}

// FaultyDisk is a device that can be held up and made unreadable while it is in use.
type FaultyDisk struct {
	*Disk
	Mapper string // its name in device-mapper
	Under  *Disk
}

// FaultyDisk makes one of so many MiB, sound to begin with.
func (m *Devices) FaultyDisk(role string, mib int64) *FaultyDisk {
	m.Helper()
	under := m.NullBlk(role, NullOptions{MiB: mib})
	return &FaultyDisk{Disk: m.Linear(role, under, under.Size), Mapper: role, Under: under}
}

// Fail makes requests fail that touch bytes [bad, end).
func (d *FaultyDisk) Fail(bad, end int64) {
	d.M.Helper()
	sound := func(first, end int64) string {
		if first == end {
			return ""
		}
		return fmt.Sprintf("%d %d linear %s %d\n", first/Sector, (end-first)/Sector, d.Under.Path, first/Sector)
	}
	d.M.Reload(d.Mapper, sound(0, bad)+fmt.Sprintf("%d %d error\n", bad/Sector, (end-bad)/Sector)+sound(end, d.Size))
}

// FailWrites makes writes and flushes fail, and reads work. (A target "error" lets flushes pass.)
func (d *FaultyDisk) FailWrites() {
	d.M.Helper()
	d.M.MustRun("modprobe", "dm-flakey")
	d.M.Reload(d.Mapper, fmt.Sprintf("0 %d flakey %s 0 0 86400 1 error_writes", d.Size/Sector, d.Under.Path))
}

// FailWritesOf is FailWrites of bytes [bad, end) alone, but flushes fail for all.
func (d *FaultyDisk) FailWritesOf(bad, end int64) {
	d.M.Helper()
	d.M.MustRun("modprobe", "dm-flakey")
	d.M.Reload(d.Mapper, fmt.Sprintf("0 %[1]d linear %[4]s 0\n%[1]d %[2]d flakey %[4]s %[1]d 0 86400 1 error_writes\n%[3]d %[5]d linear %[4]s %[3]d\n",
		bad/Sector, (end-bad)/Sector, end/Sector, d.Under.Path, (d.Size-end)/Sector))
}

// Mend makes it sound again.
func (d *FaultyDisk) Mend() {
	d.M.Helper()
	d.M.Works(d.Mapper, d.Size, d.Under)
}

// Hold keeps requests waiting until release.
func (d *FaultyDisk) Hold() {
	d.M.Helper()
	d.M.MustRun("dmsetup", "suspend", "--noflush", d.Mapper)
	d.M.Cleanup(d.Release)
}

// Release lets go of what Hold has held.
func (d *FaultyDisk) Release() {
	d.M.Helper()
	d.M.MustRun("dmsetup", "resume", d.Mapper)
}

// Writing is how many writes, discards among them, are in flight.
func (d *Disk) Writing() int {
	d.M.Helper()
	var reads, writes int
	text := d.M.ReadFile(filepath.Join("/sys/block", d.Name, "inflight"))
	if _, err := fmt.Sscan(text, &reads, &writes); err != nil {
		d.M.Fatalf("requests in flight of %s: %q", d.Name, text)
	}
	return writes
}

// BadBlocks makes a null_blk device fail requests that touch bytes [first, end).
func (d *Disk) BadBlocks(first, end int64) {
	d.M.Helper()
	d.M.WriteFile(filepath.Join(NullBlkDir, d.Name, "badblocks"), fmt.Sprintf("+%d-%d", first/Sector, end/Sector-1))
}
