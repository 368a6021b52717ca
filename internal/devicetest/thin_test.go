//go:build device

package devicetest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// What is trimmed or zero takes no space in a destination that can discard and has no write-zeroes (I17), and none of
// what the destination held before is seen.

// thinVolume is a thin volume of device-mapper, alone in its pool.
type thinVolume struct {
	*disk
	pool  string
	block int64 // of the pool, bytes
}

// thin makes a volume of so many bytes in a pool that has twice as many, in blocks of that size. Data that was in the pool is
// junk.
func (m *machine) thin(role string, size, block int64, args string) *thinVolume {
	m.Helper()
	m.run("modprobe", "dm-thin-pool")
	data, meta := m.nullBlk(role+"data", nullOptions{mib: 2 * size / mib, discard: true}), m.nullBlk(role+"meta", nullOptions{mib: 4})
	pool := m.mapper(role+"pool", fmt.Sprintf("0 %d thin-pool %s %s %d 0 %s", 2*size/sector, meta.path, data.path, block/sector, args))
	m.run("dmsetup", "message", role+"pool", "0", "create_thin 0")
	d := m.mapper(role, fmt.Sprintf("0 %d thin %s 0", size/sector, pool.path))
	return &thinVolume{disk: d, pool: role + "pool", block: block}
}

// used is how much of the pool is allocated, in bytes.
func (v *thinVolume) used() int64 {
	v.m.Helper()
	status := strings.Fields(v.m.run("dmsetup", "status", v.pool)) // START LENGTH thin-pool ID META/META DATA/DATA ...
	used, _, _ := strings.Cut(status[5], "/")
	n, err := strconv.ParseInt(used, 10, 64)
	if err != nil {
		v.m.Fatalf("pool status %q", status)
	}
	return n * v.block
}

// trimmed is a file system with little in it, on a disk that is full of other data.
func (m *machine) trimmed(size int64) (*disk, *fileTree) {
	m.Helper()
	source := m.nullBlk("src", nullOptions{mib: size / mib})
	m.fillDisk(source, original)
	files := m.newExt4(m.random(), source, 6*mib)
	files.options = "noinit_itable"
	return source, files
}

// byKernel is what dm-clone leaves allocated of a thin volume after the same recipe; 0 where the kernel has none.
func (m *machine) byKernel(source *disk, files *fileTree, block, region int64) int64 {
	m.Helper()
	if !m.hasKernelClone() {
		return 0
	}
	dest, meta := m.thin("kthin", source.size, block, ""), m.nullBlk("kmeta", nullOptions{mib: 4})
	table := fmt.Sprintf("0 %d clone %s %s %s %d 1 no_hydration", source.size/sector, meta.path, dest.path, source.path, region/sector)
	m.run("dmsetup", "create", "kclone", "--table", table)
	m.Cleanup(func() { m.try("dmsetup", "remove", "--retry", "kclone") }) // if it is there yet
	files.mount(m.mapperPath("kclone"))
	m.run("fstrim", files.root)
	files.unmount()
	m.run("dmsetup", "message", "kclone", "0", "hydration_threshold", "1024")
	m.run("dmsetup", "message", "kclone", "0", "hydration_batch_size", "256")
	m.run("dmsetup", "message", "kclone", "0", "enable_hydration")
	m.waitFor(hydrateLimit, "dm-clone to hydrate", func() error {
		f := strings.Fields(m.run("dmsetup", "status", "kclone"))
		if done, all, _ := strings.Cut(f[6], "/"); done != all {
			return fmt.Errorf("%s", f[6])
		}
		return nil
	})
	m.run("dmsetup", "remove", "--retry", "kclone")
	return dest.used()
}

// TestTrimmedSpaceOnThin: the recipe that copies no free space leaves as little of a thin volume allocated as dm-clone
// does, also if the volume held other data; and discards later on allocate nothing.
func TestTrimmedSpaceOnThin(t *testing.T) {
	runs.On(t, "6.18")
	const size = 96 * mib
	for _, c := range []struct {
		region, block int64
		held          bool // other data
		args          string
	}{
		{64 * kib, 64 * kib, false, "1 skip_block_zeroing"},
		{64 * kib, 64 * kib, true, ""},
		{4 * kib, 64 * kib, true, ""},
		{4 * kib, 512 * kib, false, ""},
	}[:count(2, 4)] {
		t.Run(fmt.Sprintf("region %d block %d held %t", c.region, c.block, c.held), func(t *testing.T) {
			m := newMachine(t)
			source, files := m.trimmed(size)
			kernel := m.byKernel(source, files, c.block, c.region)
			dest := m.thin("thin", size, c.block, c.args)
			if c.held {
				m.fillDisk(dest.disk, junk)
			}
			cl := m.addClone(source, dest.disk, m.missing("meta"), "--region-size", kibText(c.region), "--no-hydration")
			files.mount(cl.path)
			m.run("fstrim", files.root)
			cl.hydrateFast()
			cl.waitHydrated()
			used := dest.used()
			t.Logf("%d KiB of %d are allocated, %d after dm-clone", used/kib, size/kib, kernel/kib)
			if most := max(kernel*11/10, files.bytes()+12*mib); kernel > 0 && used > kernel*11/10 || used > most {
				t.Errorf("%d bytes are allocated, %d after dm-clone", used, kernel)
			}
			files.check(nil)
			m.run("fstrim", files.root) // of hydrated regions, which are zero already
			if again := dest.used(); again > used+mib {
				t.Errorf("%d bytes are allocated after another fstrim, %d before it", again, used)
			}
			files.check(nil)
			files.unmount()
			m.zeroWhereJunk(dest.disk, size)
			cl.del()
			files.examine(dest.path)
		})
	}
}

// TestZerosOnThin: zeros of a source that knows no holes take no space in a thin volume, unless its pool shows old bytes in a
// block of which a part is written; then there are zeros all the same.
func TestZerosOnThin(t *testing.T) {
	runs.On(t, "6.18")
	const size, islands = 64 * mib, 4
	for _, c := range []struct {
		held  bool // other data
		block int64
		args  string
	}{{false, 64 * kib, ""}, {true, 64 * kib, ""}, {false, 512 * kib, "1 skip_block_zeroing"}} {
		t.Run(strings.TrimSpace(fmt.Sprint("held ", c.held, " ", c.args)), func(t *testing.T) {
			m := newMachine(t)
			source, dest := m.nullBlk("src", nullOptions{mib: size / mib}), m.thin("thin", size, c.block, c.args)
			w := newModel(size, 4*kib)
			w.set(0, size, zeros)
			for i := range int64(islands) {
				begin := i*size/islands + 200*kib // in a large block behind zeros that are not copied
				m.fillPart(source, begin, begin+mib, original)
				w.set(begin, begin+mib, original)
			}
			if c.held {
				m.fillDisk(dest.disk, junk)
			}
			if c.args != "" { // the pool has old bytes everywhere, and the volume none
				m.fillDisk(m.block("/dev/nullthindata"), junk)
			}
			skips := c.args != ""
			c := m.addClone(source, dest.disk, m.missing("meta"), "--no-hydration")
			v := m.open(c.path, os.O_RDONLY)
			if err := v.read(m.buffer(ioSize), 6*mib); err != nil { // which is kept
				t.Fatal(err)
			}
			v.close()
			c.hydrateFast()
			c.waitHydrated()
			w.check(m, c.path)
			c.del()
			w.check(m, dest.path)
			used := dest.used()
			t.Logf("%d KiB of %d are allocated", used/kib, size/kib)
			if used > islands*mib*11/10 && !skips {
				t.Errorf("%d bytes are allocated for %d bytes of data", used, islands*mib)
			}
		})
	}
}

// TestSpareZeros: on a disk with discard alone nothing is written for what is zero already, by hydration or for users,
// and zeros replace whatever else there is.
func TestSpareZeros(t *testing.T) {
	runs.On(t, "6.12")
	const size = 32 * mib
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: size / mib}), m.nullBlk("dst", nullOptions{mib: size / mib, discard: true})
	m.fillDisk(source, original)
	m.fillPart(dest, 0, size/2, junk)
	w := newModel(size, 64*kib)
	c := m.addClone(source, dest, m.missing("meta"), "--region-size", "64KiB", "--no-hydration", "--read-through=off")
	v, buf := m.open(c.path, os.O_RDWR), m.buffer(ioSize)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	written := func(what string, most int64, do func()) {
		t.Helper()
		before := dest.traffic().writeBytes
		do()
		if n := dest.traffic().writeBytes - before; n > most {
			t.Errorf("%s wrote %d bytes to the destination, at most %d are needed", what, n, most)
		}
	}
	must(w.discard(v, 0, size-4*mib))
	must(w.write(v, buf[:4*kib], 10*mib+4*kib, false))
	written("hydration", 4*mib, func() { c.hydrateFast(); c.waitHydrated() })
	w.check(m, c.path)
	written("a discard of zeros", 64*kib, func() { must(w.discard(v, 8*mib, 8*mib)) })
	written("zeroing of zeros", 0, func() { must(sys.PunchHole(v.fd(), 12*mib+512, 3*mib)) }) // BLKZEROOUT asks for the space
	written("a discard of data", 2*mib, func() { must(w.discard(v, size-2*mib, 2*mib)) })
	written("zeroing of data", mib, func() {
		must(sys.PunchHole(v.fd(), size-4*mib+512, mib-1024))
		w.set(size-4*mib+512, size-3*mib-512, zeros)
	})
	w.check(m, c.path)
	v.close()
	c.del()
	w.check(m, dest.path)
}
