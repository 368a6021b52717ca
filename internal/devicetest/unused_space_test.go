//go:build device

package devicetest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// What nobody uses is not copied: discarded regions and holes of a sparse source.

// Discarded regions are not read from the source and read as zeros, although the destination holds
// other data.
func TestDiscardedRegions(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	region, tail := 64*kib, int64(5*sector)
	size := 32*mib + tail
	counted := m.nullBlk("src", nullOptions{mib: 33}) // device-mapper's own counts are too high
	source := m.linear("src", counted, size)
	dest := m.linear("dst", m.nullBlk("dst", nullOptions{mib: 33}), size)
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	w := newModel(size, region)
	c := m.addClone(source, dest, m.missing("meta"), "--region-size", kibText(region), "--no-hydration", "--read-through=off")
	v, buf := m.open(c.path, os.O_RDWR), m.buffer(int(region))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	before := counted.traffic()
	must(w.discard(v, 0, 8*mib))                                        // whole regions
	must(w.discard(v, 10*mib+sector, 2*mib))                            // both ends ragged: 31 regions
	must(w.discard(v, 14*mib+sector, region-2*sector))                  // nothing whole
	must(w.write(v, buf[:4*sector], 16*mib, false))                     // hydrated by a write
	must(w.discard(v, 16*mib, region))                                  // and zeroed in place
	must(w.write(v, buf[:4*sector], 4*mib+sector, false))               // into a discarded region: merged with zeros
	must(w.discard(v, size-tail-3*region+sector, 3*region+tail-sector)) // to the end: 2 regions and the tail
	must(w.zero(v, 20*mib, 2*mib))
	if n := counted.traffic().since(before).readBytes; n > region {
		t.Errorf("discards and one small write read %d bytes of the source", n)
	}
	spared := 8*mib + 31*region + 2*region + tail + 2*mib
	discarded := counted.traffic()
	w.check(m, c.path)
	checked := counted.traffic()
	if n, want := checked.since(discarded).readBytes, size-spared-region; n != want {
		t.Errorf("reading everything took %d bytes of the source, expected %d", n, want)
	}
	c.hydrateFast()
	s := c.waitHydrated()
	if n, want := counted.traffic().since(checked).readBytes, size-spared-region; n != want {
		t.Errorf("hydration read %d bytes of the source, expected %d", n, want)
	}
	t.Logf("%d KiB copied, %d written, %d discarded; %d KiB spared", s.Bytes.Copied/kib, s.Bytes.Written/kib, s.Bytes.Discarded/kib, spared/kib)
	w.check(m, c.path)
	v.close()
	c.del()
	w.check(m, dest.path)
}

// fstrim before hydration spares the free space of a file system.
func TestFstrim(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	rng := m.random()
	size := int64(96)
	source := m.nullBlk("src", nullOptions{mib: size})
	m.fillDisk(source, original) // old content in the free space
	files := m.newExt4(rng, source, 12*mib)
	dest := m.nullBlk("dst", nullOptions{mib: size, discard: true})
	m.fillDisk(dest, junk)
	c := m.addClone(source, dest, m.missing("meta"), "--no-hydration")
	files.options = "noinit_itable" // ext4 writes nothing by itself, seconds after the mount: what is written is not read
	files.mount(c.path)
	files.sync()
	t.Log(m.run("fstrim", "-v", files.root))
	trimmed := c.status()
	before := source.traffic()
	c.hydrateFast()
	s := c.waitHydrated()
	read := source.traffic().since(before).readBytes
	t.Logf("%d KiB used by files, %d discarded by fstrim, %d left then, %d read from the source", files.bytes()/kib,
		trimmed.Bytes.Discarded/kib, trimmed.Bytes.Remaining/kib, read/kib)
	if read != trimmed.Bytes.Remaining {
		t.Errorf("%d bytes were left after fstrim, %d were read", trimmed.Bytes.Remaining, read)
	}
	if used := files.bytes() + 12*mib; read > used { // and what ext4 needs for itself
		t.Errorf("the file system uses about %d bytes, %d were read", used, read)
	}
	files.check(nil)
	files.unmount()
	m.zeroWhereJunk(dest, s.Size)
	c.del()
	files.examine(dest.path)
	files.mount(dest.path)
	files.check(nil)
	files.unmount()
}

// zeroWhereJunk: nothing of the destination's old content is left in what the clone covers.
func (m *machine) zeroWhereJunk(dest *disk, size int64) {
	m.Helper()
	m.sweep(dest.path, size, func(off int64, b []byte) error {
		for i := int64(0); i < int64(len(b)); i += sector {
			if holds(b[i:i+sector], 0, junk) {
				m.Fatalf("sector %d of the destination is as it was before", (off+i)/sector)
			}
		}
		return nil
	})
}

// Holes of a sparse source are not read, and found when hydration comes to them.
func TestSparseSource(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	size, islands := 128*mib, int64(8)
	source := m.sparseFile(m.ext4Folder(64)+"/source", size, islands)
	backing := m.block("/dev/nullfolder")
	dest := m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(dest, junk)
	w := newModel(size, 4*kib)
	w.set(0, size, zeros)
	for i := range islands {
		w.set(i*size/islands, i*size/islands+mib, original)
	}
	m.dropCaches()
	c := m.addClone(source, dest, m.missing("meta"), "--no-hydration", "--read-through=off")
	if s := c.status(); s.Regions.Hydrated != 0 {
		t.Errorf("%d regions are hydrated before hydration has begun: holes are to be found when it comes to them", s.Regions.Hydrated)
	}
	before := backing.traffic()
	c.hydrateFast()
	s := c.waitHydrated()
	read := backing.traffic().since(before).readBytes
	t.Logf("source of %d KiB with %d KiB of data: %d KiB read, %d copied, %d discarded", size/kib, islands*mib/kib, read/kib,
		s.Bytes.Copied/kib, s.Bytes.Discarded/kib)
	if read > islands*mib*5/4 {
		t.Errorf("%d bytes were read of a source with %d bytes of data", read, islands*mib)
	}
	if s.Bytes.Copied != islands*mib || s.Bytes.Discarded != size-islands*mib {
		t.Errorf("%d bytes copied, %d discarded, expected %d and %d", s.Bytes.Copied, s.Bytes.Discarded, islands*mib, size-islands*mib)
	}
	w.check(m, c.path)
	c.del()
	w.check(m, dest.path)
}

// sparseFile makes a file with so many islands of one MiB of data, evenly spaced.
func (m *machine) sparseFile(path string, size, islands int64) *disk {
	m.Helper()
	f, err := os.Create(path)
	if err != nil {
		m.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		m.Fatal(err)
	}
	b := make([]byte, mib)
	for i := range islands {
		off := i * size / islands
		fill(b, off, original)
		if _, err := f.WriteAt(b, off); err != nil {
			m.Fatal(err)
		}
	}
	if err := unix.Fsync(int(f.Fd())); err != nil {
		m.Fatal(err)
	}
	return &disk{m: m, path: path, size: size}
}

// Zeros of a source that tells of no holes, as a disk does, need no space in the destination; with --detect-zeroes=off they
// are data like any other.
func TestZerosOfSource(t *testing.T) {
	runs.On(t, "6.18")
	const size, islands = 64 * mib, 4
	for _, detect := range []string{"on", "off"} {
		t.Run(detect, func(t *testing.T) {
			m := newMachine(t)
			folder := m.ext4Folder(192)
			source := m.loop(m.sparseFile(folder+"/source", size, islands).path, sector)
			file := filepath.Join(folder, "dest")
			m.run("truncate", "-s", fmt.Sprint(size), file)
			dest := m.loop(file, sector)
			m.fillDisk(dest, junk)
			w := newModel(size, 4*kib)
			w.set(0, size, zeros)
			for i := range int64(islands) {
				w.set(i*size/islands, i*size/islands+mib, original)
			}
			c := m.addClone(source, dest, m.missing("meta"), "--no-hydration", "--detect-zeroes="+detect)
			c.hydrateFast()
			s := c.waitHydrated()
			if s.Bytes.Copied != size {
				t.Errorf("%d bytes copied, expected %d", s.Bytes.Copied, size)
			}
			w.check(m, c.path)
			c.del()
			w.check(m, dest.path)
			m.run("sync")
			var st unix.Stat_t
			if err := unix.Stat(file, &st); err != nil {
				t.Fatal(err)
			}
			space := st.Blocks * sector
			t.Logf("%d KiB of the destination's %d need space", space/kib, size/kib)
			if most := int64((islands + 1) * mib); detect == "on" && space > most || detect == "off" && space < size {
				t.Errorf("%d bytes need space", space)
			}
		})
	}
}
