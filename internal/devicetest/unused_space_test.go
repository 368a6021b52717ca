//go:build device

package devicetest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// What nobody uses is not copied: discarded regions and holes of a sparse source.

// Discarded regions are not read from the source and read as zeros, although the destination holds
// other data.
func TestDiscardedRegions(t *testing.T) {
	runs.On(t, "7.3")
	m := harness.New(t)
	region, tail := 64*harness.KiB, int64(5*harness.Sector)
	size := 32*harness.MiB + tail
	counted := m.NullBlk("src", harness.NullOptions{MiB: 33}) // device-mapper's own counts are too high
	source := m.Linear("src", counted, size)
	dest := m.Linear("dst", m.NullBlk("dst", harness.NullOptions{MiB: 33}), size)
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	w := harness.NewModel(size, region)
	c := m.AddClone(source, dest, m.Missing("meta"), "--region-size", harness.KiBText(region), "--no-hydration", "--read-through=off")
	v, buf := m.Open(c.Path, os.O_RDWR), m.Buffer(int(region))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	before := counted.Traffic()
	must(w.Discard(v, 0, 8*harness.MiB))                                                // whole regions
	must(w.Discard(v, 10*harness.MiB+harness.Sector, 2*harness.MiB))                    // both ends ragged: 31 regions
	must(w.Discard(v, 14*harness.MiB+harness.Sector, region-2*harness.Sector))          // nothing whole
	must(w.Write(v, buf[:4*harness.Sector], 16*harness.MiB, false))                     // hydrated by a write
	must(w.Discard(v, 16*harness.MiB, region))                                          // and zeroed in place
	must(w.Write(v, buf[:4*harness.Sector], 4*harness.MiB+harness.Sector, false))       // into a discarded region: merged with zeros
	must(w.Discard(v, size-tail-3*region+harness.Sector, 3*region+tail-harness.Sector)) // to the end: 2 regions and the tail
	must(w.Zero(v, 20*harness.MiB, 2*harness.MiB))
	if n := counted.Traffic().Since(before).ReadBytes; n > region {
		t.Errorf("discards and one small write read %d bytes of the source", n)
	}
	spared := 8*harness.MiB + 31*region + 2*region + tail + 2*harness.MiB
	discarded := counted.Traffic()
	w.Check(m, c.Path)
	checked := counted.Traffic()
	if n, want := checked.Since(discarded).ReadBytes, size-spared-region; n != want {
		t.Errorf("reading everything took %d bytes of the source, expected %d", n, want)
	}
	c.HydrateFast()
	s := c.WaitHydrated()
	if n, want := counted.Traffic().Since(checked).ReadBytes, size-spared-region; n != want {
		t.Errorf("hydration read %d bytes of the source, expected %d", n, want)
	}
	t.Logf("%d KiB copied, %d written, %d discarded; %d KiB spared", s.Bytes.Copied/harness.KiB, s.Bytes.Written/harness.KiB, s.Bytes.Discarded/harness.KiB, spared/harness.KiB)
	w.Check(m, c.Path)
	v.Close()
	c.Del()
	w.Check(m, dest.Path)
}

// fstrim before hydration spares the free space of a file system.
func TestFstrim(t *testing.T) {
	runs.On(t, "6.18", runs.Layered)
	m := harness.New(t)
	rng := m.Random()
	size := int64(96)
	source := m.NullBlk("src", harness.NullOptions{MiB: size})
	m.FillDisk(source, harness.Original) // old content in the free space
	files := m.NewExt4(rng, source, 12*harness.MiB)
	dest := m.NullBlk("dst", harness.NullOptions{MiB: size, Discard: true})
	m.FillDisk(dest, harness.Junk)
	c := m.AddClone(source, dest, m.Missing("meta"), "--no-hydration")
	files.Options = "noinit_itable" // ext4 writes nothing by itself, seconds after the mount: what is written is not read
	files.Mount(c.Path)
	files.Sync()
	t.Log(m.MustRun("fstrim", "-v", files.Root))
	trimmed := c.Status()
	before := source.Traffic()
	c.HydrateFast()
	s := c.WaitHydrated()
	read := source.Traffic().Since(before).ReadBytes
	t.Logf("%d KiB used by files, %d discarded by fstrim, %d left then, %d read from the source", files.Bytes()/harness.KiB,
		trimmed.Bytes.Discarded/harness.KiB, trimmed.Bytes.Remaining/harness.KiB, read/harness.KiB)
	if read != trimmed.Bytes.Remaining {
		t.Errorf("%d bytes were left after fstrim, %d were read", trimmed.Bytes.Remaining, read)
	}
	if used := files.Bytes() + 12*harness.MiB; read > used { // and what ext4 needs for itself
		t.Errorf("the file system uses about %d bytes, %d were read", used, read)
	}
	files.Check(nil)
	files.Unmount()
	m.ZeroWhereJunk(dest, s.Size)
	c.Del()
	files.Fsck(dest.Path)
	files.Mount(dest.Path)
	files.Check(nil)
	files.Unmount()
}

// Holes of a sparse source are not read, and found when hydration comes to them.
func TestSparseSource(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	size, islands := 128*harness.MiB, int64(8)
	source := sparseFile(m, m.Ext4Dir(64)+"/source", size, islands)
	backing := m.Block("/dev/nulldirectory")
	dest := m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(dest, harness.Junk)
	w := harness.NewModel(size, 4*harness.KiB)
	w.Set(0, size, harness.Zeros)
	for i := range islands {
		w.Set(i*size/islands, i*size/islands+harness.MiB, harness.Original)
	}
	m.DropCaches()
	c := m.AddClone(source, dest, m.Missing("meta"), "--no-hydration", "--read-through=off")
	if s := c.Status(); s.Regions.Hydrated != 0 {
		t.Errorf("%d regions are hydrated before hydration has begun: holes are to be found when it comes to them", s.Regions.Hydrated)
	}
	before := backing.Traffic()
	c.HydrateFast()
	s := c.WaitHydrated()
	read := backing.Traffic().Since(before).ReadBytes
	t.Logf("source of %d KiB with %d KiB of data: %d KiB read, %d copied, %d discarded", size/harness.KiB, islands*harness.MiB/harness.KiB, read/harness.KiB,
		s.Bytes.Copied/harness.KiB, s.Bytes.Discarded/harness.KiB)
	if read > islands*harness.MiB*5/4 {
		t.Errorf("%d bytes were read of a source with %d bytes of data", read, islands*harness.MiB)
	}
	if s.Bytes.Copied != islands*harness.MiB || s.Bytes.Discarded != size-islands*harness.MiB {
		t.Errorf("%d bytes copied, %d discarded, expected %d and %d", s.Bytes.Copied, s.Bytes.Discarded, islands*harness.MiB, size-islands*harness.MiB)
	}
	w.Check(m, c.Path)
	c.Del()
	w.Check(m, dest.Path)
}

// sparseFile makes a file with so many islands of one MiB of data, evenly spaced.
func sparseFile(m *harness.Machine, path string, size, islands int64) *harness.Disk {
	m.Helper()
	f, err := os.Create(path)
	if err != nil {
		m.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		m.Fatal(err)
	}
	b := make([]byte, harness.MiB)
	for i := range islands {
		off := i * size / islands
		harness.Fill(b, off, harness.Original)
		if _, err := f.WriteAt(b, off); err != nil {
			m.Fatal(err)
		}
	}
	if err := unix.Fsync(int(f.Fd())); err != nil {
		m.Fatal(err)
	}
	return &harness.Disk{M: &m.Devices, Path: path, Size: size}
}

// Zeros of a source that tells of no holes, as a disk does, need no space in the destination; with
// --detect-zeroes=off they are data like any other.
func TestZerosOfSource(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	const size, islands = 64 * harness.MiB, 4
	for _, detect := range []string{"on", "off"} {
		t.Run(detect, func(t *testing.T) {
			m := harness.New(t)
			dir := m.Ext4Dir(192)
			source := m.Loop(sparseFile(m, dir+"/source", size, islands).Path, harness.Sector)
			file := filepath.Join(dir, "dest")
			m.MustRun("truncate", "-s", fmt.Sprint(size), file)
			dest := m.Loop(file, harness.Sector)
			m.FillDisk(dest, harness.Junk)
			w := harness.NewModel(size, 4*harness.KiB)
			w.Set(0, size, harness.Zeros)
			for i := range int64(islands) {
				w.Set(i*size/islands, i*size/islands+harness.MiB, harness.Original)
			}
			c := m.AddClone(source, dest, m.Missing("meta"), "--no-hydration", "--detect-zeroes="+detect)
			c.HydrateFast()
			s := c.WaitHydrated()
			if s.Bytes.Copied != size {
				t.Errorf("%d bytes copied, expected %d", s.Bytes.Copied, size)
			}
			w.Check(m, c.Path)
			c.Del()
			w.Check(m, dest.Path)
			m.MustRun("sync")
			var st unix.Stat_t
			if err := unix.Stat(file, &st); err != nil {
				t.Fatal(err)
			}
			space := st.Blocks * harness.Sector
			t.Logf("%d KiB of the destination's %d need space", space/harness.KiB, size/harness.KiB)
			if most := int64((islands + 1) * harness.MiB); detect == "on" && space > most || detect == "off" && space < size {
				t.Errorf("%d bytes need space", space)
			}
		})
	}
}
