//go:build device

package devicetest

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"golang.org/x/sys/unix"
)

// atOnce is how long a command may take that has nothing to wait for, the start of a process included.
const atOnce = time.Second

// A part of the source cannot be read. Reads of it fail, everything else works; a write of a whole region
// heals it; hydration does the rest and is then stalled, until the source is repaired.
func TestUnreadableSource(t *testing.T) {
	runs.On(t, "6.12", runs.OrdinaryClock, runs.CountingClock)
	m := newMachine(t)
	m.kernel.expect("I/O error")
	rng := m.random()
	// What cannot be read begins and ends in the middle of a region: two regions are bad.
	const region, size, bad, end = 64 * kib, 8 * mib, 2*mib + 4*kib, 2*mib + 64*kib + 8*kib
	first := badRange{Offset: 2 * mib, Length: region}
	both := badRange{Offset: 2 * mib, Length: 2 * region}
	source, dest := m.faultyDisk("src", size/mib), m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(source.disk, original)
	m.fillDisk(dest, junk)
	c := m.addClone(source.disk, dest, m.missing("meta"), "--region-size", kibText(region), "--no-hydration", "--retries", "1")
	w := newModel(size, region)
	v, buf, large := m.open(c.path, os.O_RDWR), m.buffer(int(region)), m.buffer(ioSize)
	expectEIO := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v, expected EIO", what, err)
		}
	}
	source.fail(bad, end)
	elsewhere := func() {
		t.Helper()
		expectEIO("read of the first bad sector", v.read(buf[:sector], bad))
		expectEIO("read of the last bad sector", v.read(buf[:sector], end-sector))
		expectEIO("write to a part of a bad region", v.write(buf[:sector], both.Offset))
		w.checkBut(m, c.path, bad, end)
		for range count(20, 400) {
			off, length := w.place(rng, sector)
			if off < both.Offset+both.Length && both.Offset < off+length {
				continue
			}
			if err := w.request(rng, v, large, off, length, everything); err != nil {
				t.Error(err)
			}
		}
	}
	elsewhere()
	c.hydrateFast()
	c.waitStalled(both)
	m.within(atOnce, "wait for a stalled clone", func() time.Duration {
		o := m.try(command, "wait", c.name)
		m.expectFailure(o, exit.Source, "stalled")
		return o.took
	})
	elsewhere()
	if s := c.status(); s.Mode != "rw" {
		t.Errorf("mode %s after errors of the source", s.Mode)
	}

	if err := w.write(v, buf, first.Offset+region, false); err != nil {
		t.Errorf("a write of a whole bad region: %v", err)
	}
	if err := w.read(v, buf, first.Offset+region); err != nil {
		t.Errorf("a read of the healed region: %v", err)
	}
	c.waitStalled(first)
	source.mend()
	m.run(command, "resume", c.name)
	c.waitHydrated()
	v.close()
	w.check(m, c.path)
	c.del()
	w.check(m, dest.path)
}

// A device fails a request as a whole, and the kernel makes one request of reads of neighbouring regions that
// come together. In the end the region with the bad block is bad, and no neighbour.
func TestBadBlockAlone(t *testing.T) {
	runs.On(t, "6.12", "7.3")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	const region, size, bad = 4 * kib, 4 * mib, 2 * mib
	source, dest := m.nullBlk("src", nullOptions{mib: size / mib}), m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(source, original)
	c := m.addClone(source, dest, m.missing("meta"), "--no-hydration", "--retries", "2")
	source.badBlocks(bad, bad+region)
	c.hydrateFast()
	c.waitStalled(badRange{Offset: bad, Length: region})
	newModel(size, region).checkBut(m, c.path, bad, bad+region)
	c.del()
}
