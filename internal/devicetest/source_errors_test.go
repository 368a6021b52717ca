//go:build device

package devicetest

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// atOnce is how long a command may take that has nothing to wait for, the start of a process
// included.
const atOnce = time.Second

// A part of the source cannot be read. Reads of it fail, everything else works; a write of a whole
// region heals it; hydration does the rest and is then stalled, until the source is repaired.
func TestUnreadableSource(t *testing.T) {
	runs.On(t, "6.12", runs.OrdinaryClock, runs.CountingClock)
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	rng := m.Random()
	// What cannot be read begins and ends in the middle of a region: two regions are bad.
	const region, size, bad, end = 64 * harness.KiB, 8 * harness.MiB, 2*harness.MiB + 4*harness.KiB, 2*harness.MiB + 64*harness.KiB + 8*harness.KiB
	first := harness.BadRange{Offset: 2 * harness.MiB, Length: region}
	both := harness.BadRange{Offset: 2 * harness.MiB, Length: 2 * region}
	source, dest := m.FaultyDisk("src", size/harness.MiB), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source.Disk, harness.Original)
	m.FillDisk(dest, harness.Junk)
	c := m.AddClone(source.Disk, dest, m.Missing("meta"), "--region-size", harness.KiBText(region), "--no-hydration", "--retries", "1")
	w := harness.NewModel(size, region)
	v, buf, large := m.Open(c.Path, os.O_RDWR), m.Buffer(int(region)), m.Buffer(harness.IOSize)
	expectEIO := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v, expected EIO", what, err)
		}
	}
	source.Fail(bad, end)
	elsewhere := func() {
		t.Helper()
		expectEIO("read of the first bad sector", v.Read(buf[:harness.Sector], bad))
		expectEIO("read of the last bad sector", v.Read(buf[:harness.Sector], end-harness.Sector))
		expectEIO("write to a part of a bad region", v.Write(buf[:harness.Sector], both.Offset))
		w.CheckBut(m, c.Path, bad, end)
		for range harness.Count(20, 400) {
			off, length := w.Place(rng, harness.Sector)
			if off < both.Offset+both.Length && both.Offset < off+length {
				continue
			}
			if err := w.Request(rng, v, large, off, length, harness.Everything); err != nil {
				t.Error(err)
			}
		}
	}
	elsewhere()
	c.HydrateFast()
	c.WaitStalled(both)
	m.Within(atOnce, "wait for a stalled clone", func() time.Duration {
		o := m.Try(harness.Command, "wait", c.Name)
		m.ExpectFailure(o, exit.Source, "stalled")
		return o.Took
	})
	elsewhere()
	if s := c.Status(); s.Mode != "rw" {
		t.Errorf("mode %s after errors of the source", s.Mode)
	}

	if err := w.Write(v, buf, first.Offset+region, false); err != nil {
		t.Errorf("a write of a whole bad region: %v", err)
	}
	if err := w.Read(v, buf, first.Offset+region); err != nil {
		t.Errorf("a read of the healed region: %v", err)
	}
	c.WaitStalled(first)
	source.Mend()
	m.MustRun(harness.Command, "resume", c.Name)
	c.WaitHydrated()
	v.Close()
	w.Check(m, c.Path)
	c.Del()
	w.Check(m, dest.Path)
}

// A device fails a request as a whole, and the kernel makes one request of reads of neighbouring
// regions that come together. In the end the region with the bad block is bad, and no neighbour.
func TestBadBlockAlone(t *testing.T) {
	runs.On(t, "6.12", "7.3")
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	const region, size, bad = 4 * harness.KiB, 4 * harness.MiB, 2 * harness.MiB
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	m.FillDisk(source, harness.Original)
	c := m.AddClone(source, dest, m.Missing("meta"), "--no-hydration", "--retries", "2")
	source.BadBlocks(bad, bad+region)
	c.HydrateFast()
	c.WaitStalled(harness.BadRange{Offset: bad, Length: region})
	harness.NewModel(size, region).CheckBut(m, c.Path, bad, bad+region)
	c.Del()
}
