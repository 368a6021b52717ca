//go:build device

package devicetest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// What is trimmed or zero takes no space in a destination that can discard and has no write-zeroes
// (I17), and none of what the destination held before is seen.

// thinVolume is a thin volume of device-mapper, alone in its pool.
type thinVolume struct {
	*harness.Disk
	pool  string
	block int64 // of the pool, bytes
}

// thin makes a volume of so many bytes in a pool that has twice as many, in blocks of that size.
// Data that was in the pool is junk.
func thin(m *harness.Machine, role string, size, block int64, args string) *thinVolume {
	m.Helper()
	m.MustRun("modprobe", "dm-thin-pool")
	data, meta := m.NullBlk(role+"data", harness.NullOptions{MiB: 2 * size / harness.MiB, Discard: true}), m.NullBlk(role+"meta", harness.NullOptions{MiB: 4})
	pool := m.Mapper(role+"pool", fmt.Sprintf("0 %d thin-pool %s %s %d 0 %s", 2*size/harness.Sector, meta.Path, data.Path, block/harness.Sector, args))
	m.MustRun("dmsetup", "message", role+"pool", "0", "create_thin 0")
	d := m.Mapper(role, fmt.Sprintf("0 %d thin %s 0", size/harness.Sector, pool.Path))
	return &thinVolume{Disk: d, pool: role + "pool", block: block}
}

// used is how much of the pool is allocated, in bytes.
func (v *thinVolume) used() int64 {
	v.M.Helper()
	status := strings.Fields(v.M.MustRun("dmsetup", "status", v.pool)) // START LENGTH thin-pool ID META/META DATA/DATA ...
	used, _, _ := strings.Cut(status[5], "/")
	n, err := strconv.ParseInt(used, 10, 64)
	if err != nil {
		v.M.Fatalf("pool status %q", status)
	}
	return n * v.block
}

// trimmed is a file system with little in it, on a disk that is full of other data.
func trimmed(m *harness.Machine, size int64) (*harness.Disk, *harness.FileTree) {
	m.Helper()
	source := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	files := m.NewExt4(m.Random(), source, 6*harness.MiB)
	files.Options = "noinit_itable"
	return source, files
}

// byKernel is what dm-clone leaves allocated of a thin volume after the same recipe; 0 where the
// kernel has none.
func byKernel(m *harness.Machine, source *harness.Disk, files *harness.FileTree, block, region int64) int64 {
	m.Helper()
	if !m.HasKernelClone() {
		return 0
	}
	dest, meta := thin(m, "kthin", source.Size, block, ""), m.NullBlk("kmeta", harness.NullOptions{MiB: 4})
	table := fmt.Sprintf("0 %d clone %s %s %s %d 1 no_hydration", source.Size/harness.Sector, meta.Path, dest.Path, source.Path, region/harness.Sector)
	m.MustRun("dmsetup", "create", "kclone", "--table", table)
	m.Cleanup(func() { m.Try("dmsetup", "remove", "--retry", "kclone") }) // if it is there yet
	files.Mount(m.MapperPath("kclone"))
	m.MustRun("fstrim", files.Root)
	files.Unmount()
	m.MustRun("dmsetup", "message", "kclone", "0", "hydration_threshold", "1024")
	m.MustRun("dmsetup", "message", "kclone", "0", "hydration_batch_size", "256")
	m.MustRun("dmsetup", "message", "kclone", "0", "enable_hydration")
	m.WaitFor(harness.HydrateLimit, "dm-clone to hydrate", func() error {
		f := strings.Fields(m.MustRun("dmsetup", "status", "kclone"))
		if done, all, _ := strings.Cut(f[6], "/"); done != all {
			return fmt.Errorf("%s", f[6])
		}
		return nil
	})
	m.MustRun("dmsetup", "remove", "--retry", "kclone")
	return dest.used()
}

// TestTrimmedSpaceOnThin: the recipe that copies no free space leaves as little of a thin volume
// allocated as dm-clone does, also if the volume held other data; and discards later on allocate
// nothing.
func TestTrimmedSpaceOnThin(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	const size = 96 * harness.MiB
	for _, c := range []struct {
		region, block int64
		held          bool // other data
		args          string
	}{
		{64 * harness.KiB, 64 * harness.KiB, false, "1 skip_block_zeroing"},
		{64 * harness.KiB, 64 * harness.KiB, true, ""},
		{4 * harness.KiB, 64 * harness.KiB, true, ""},
		{4 * harness.KiB, 512 * harness.KiB, false, ""},
	}[:harness.Count(2, 4)] {
		t.Run(fmt.Sprintf("region %d block %d held %t", c.region, c.block, c.held), func(t *testing.T) {
			m := harness.New(t)
			source, files := trimmed(m, size)
			kernel := byKernel(m, source, files, c.block, c.region)
			dest := thin(m, "thin", size, c.block, c.args)
			if c.held {
				m.FillDisk(dest.Disk, harness.Junk)
			}
			cl := m.AddClone(source, dest.Disk, m.Missing("meta"), "--region-size", harness.KiBText(c.region), "--no-hydration")
			files.Mount(cl.Path)
			m.MustRun("fstrim", files.Root)
			cl.HydrateFast()
			cl.WaitHydrated()
			used := dest.used()
			t.Logf("%d KiB of %d are allocated, %d after dm-clone", used/harness.KiB, size/harness.KiB, kernel/harness.KiB)
			if most := max(kernel*11/10, files.Bytes()+12*harness.MiB); kernel > 0 && used > kernel*11/10 || used > most {
				t.Errorf("%d bytes are allocated, %d after dm-clone", used, kernel)
			}
			files.Check(nil)
			m.MustRun("fstrim", files.Root) // of hydrated regions, which are zero already
			if again := dest.used(); again > used+harness.MiB {
				t.Errorf("%d bytes are allocated after another fstrim, %d before it", again, used)
			}
			files.Check(nil)
			files.Unmount()
			m.ZeroWhereJunk(dest.Disk, size)
			cl.Del()
			files.Fsck(dest.Path)
		})
	}
}

// TestZerosOnThin: zeros of a source that knows no holes take no space in a thin volume, unless its
// pool shows old bytes in a block of which a part is written; then there are zeros all the same.
func TestZerosOnThin(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	const size, islands = 64 * harness.MiB, 4
	for _, c := range []struct {
		held  bool // other data
		block int64
		args  string
	}{{false, 64 * harness.KiB, ""}, {true, 64 * harness.KiB, ""}, {false, 512 * harness.KiB, "1 skip_block_zeroing"}} {
		t.Run(strings.TrimSpace(fmt.Sprint("held ", c.held, " ", c.args)), func(t *testing.T) {
			m := harness.New(t)
			source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), thin(m, "thin", size, c.block, c.args)
			w := harness.NewModel(size, 4*harness.KiB)
			w.Set(0, size, harness.Zeros)
			for i := range int64(islands) {
				begin := i*size/islands + 200*harness.KiB // in a large block behind zeros that are not copied
				m.FillPart(source, begin, begin+harness.MiB, harness.Original)
				w.Set(begin, begin+harness.MiB, harness.Original)
			}
			if c.held {
				m.FillDisk(dest.Disk, harness.Junk)
			}
			if c.args != "" { // the pool has old bytes everywhere, and the volume none
				m.FillDisk(m.Block("/dev/nullthindata"), harness.Junk)
			}
			skips := c.args != ""
			c := m.AddClone(source, dest.Disk, m.Missing("meta"), "--no-hydration")
			v := m.Open(c.Path, os.O_RDONLY)
			if err := v.Read(m.Buffer(harness.IOSize), 6*harness.MiB); err != nil { // which is kept
				t.Fatal(err)
			}
			v.Close()
			c.HydrateFast()
			c.WaitHydrated()
			w.Check(m, c.Path)
			c.Del()
			w.Check(m, dest.Path)
			used := dest.used()
			t.Logf("%d KiB of %d are allocated", used/harness.KiB, size/harness.KiB)
			if used > islands*harness.MiB*11/10 && !skips {
				t.Errorf("%d bytes are allocated for %d bytes of data", used, islands*harness.MiB)
			}
		})
	}
}

// TestSpareZeros: on a disk with discard alone nothing is written for what is zero already, by
// hydration or for users, and zeros replace whatever else there is.
func TestSpareZeros(t *testing.T) {
	runs.On(t, "6.12")
	const size = 32 * harness.MiB
	m := harness.New(t)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB, Discard: true})
	m.FillDisk(source, harness.Original)
	m.FillPart(dest, 0, size/2, harness.Junk)
	w := harness.NewModel(size, 64*harness.KiB)
	c := m.AddClone(source, dest, m.Missing("meta"), "--region-size", "64KiB", "--no-hydration", "--read-through=off")
	v, buf := m.Open(c.Path, os.O_RDWR), m.Buffer(harness.IOSize)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	written := func(what string, most int64, do func()) {
		t.Helper()
		before := dest.Traffic().WriteBytes
		do()
		if n := dest.Traffic().WriteBytes - before; n > most {
			t.Errorf("%s wrote %d bytes to the destination, at most %d are needed", what, n, most)
		}
	}
	must(w.Discard(v, 0, size-4*harness.MiB))
	must(w.Write(v, buf[:4*harness.KiB], 10*harness.MiB+4*harness.KiB, false))
	written("hydration", 4*harness.MiB, func() { c.HydrateFast(); c.WaitHydrated() })
	w.Check(m, c.Path)
	written("a discard of zeros", 64*harness.KiB, func() { must(w.Discard(v, 8*harness.MiB, 8*harness.MiB)) })
	written("zeroing of zeros", 0, func() { must(sys.PunchHole(v.FD(), 12*harness.MiB+512, 3*harness.MiB)) }) // BLKZEROOUT asks for the space
	written("a discard of data", 2*harness.MiB, func() { must(w.Discard(v, size-2*harness.MiB, 2*harness.MiB)) })
	written("zeroing of data", harness.MiB, func() {
		must(sys.PunchHole(v.FD(), size-4*harness.MiB+512, harness.MiB-1024))
		w.Set(size-4*harness.MiB+512, size-3*harness.MiB-512, harness.Zeros)
	})
	w.Check(m, c.Path)
	v.Close()
	c.Del()
	w.Check(m, dest.Path)
}
