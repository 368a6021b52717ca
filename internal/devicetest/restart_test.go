//go:build device

package devicetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A clone that was deleted and added again with the same words goes on where it was.

// Deleted at random moments of its hydration, with writes before each, it never falls back, reads
// the source about once in all, and ends with the right content.
func TestDeleteDuringHydration(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	rng := m.random()
	rounds := count(3, 10)
	size, region := int64(count(16, 128))*mib, 64*kib
	source := m.nullBlk("src", nullOptions{mib: size / mib, mbps: 6})
	dest := m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	w := newModel(size, region)
	// Only writes: a read of an unhydrated region would go to the source and be counted.
	writes := load{threads: 2, requests: 15, block: sector, kinds: mix{write: 1}}

	c := m.newClone(source, dest, m.missing("meta"), "--region-size", kibText(region))
	before, hydrated := source.traffic(), uint64(0)
	for round := range rounds {
		c.add()
		s := c.status()
		if s.Regions.Hydrated < hydrated {
			t.Fatalf("round %d: %d regions hydrated after add, %d before del", round, s.Regions.Hydrated, hydrated)
		}
		w.run(m, rng, c.path, writes)
		written := dest.traffic().writeBytes
		goal := written + rng.Int64N(1+c.status().Bytes.Remaining/2)
		m.waitFor(hydrateLimit, "the destination to be written", func() error {
			if n := dest.traffic().writeBytes; n < goal {
				return fmt.Errorf("%d of %d bytes", n-written, goal-written)
			}
			return nil
		})
		hydrated = c.status().Regions.Hydrated
		c.del()
		t.Logf("round %d: deleted with %d of %d regions hydrated", round, hydrated, s.Regions.Total)
	}
	c.add()
	c.waitHydrated()
	total := source.traffic().since(before).readBytes
	w.check(m, c.path)
	c.del()
	opening := m.openingReads(source)
	once := total - int64(rounds+1)*opening
	t.Logf("the source was read %d KiB, of which %d for %d openings; its size is %d KiB", total/kib, (total-once)/kib, rounds+1, size/kib)
	if once > size+size/20 {
		t.Errorf("the source of %d bytes was read %d bytes", size, once)
	}
	w.check(m, dest.path)
	newModel(size, region).check(m, source.path)
}

// openingReads is how many bytes of the source one add reads, to know it again.
func (m *machine) openingReads(source *disk) int64 {
	m.Helper()
	c := m.newClone(source, m.nullBlk("other", nullOptions{mib: source.size / mib}), m.missing("othermeta"), "--no-hydration")
	before := source.traffic()
	c.add()
	c.del()
	return source.traffic().since(before).readBytes
}

// An idle clone loses nothing and copies nothing twice: with hydration off every count stays, and when
// it is on again exactly what is left is read.
func TestDeleteIdle(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	rng := m.random()
	size, region := 32*mib, 64*kib
	source := m.nullBlk("src", nullOptions{mib: size / mib})
	dest := m.nullBlk("dst", nullOptions{mib: size / mib})
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	w := newModel(size, region)
	c := m.addClone(source, dest, m.nullBlk("meta", nullOptions{mib: 1}), "--region-size", kibText(region), "--no-hydration")
	w.run(m, rng, c.path, load{threads: 4, requests: count(40, 400), block: sector, kinds: everything})
	idle := c.status()
	c.del()

	c.add()
	after, opened, written := c.status(), source.traffic(), dest.traffic()
	if after.Regions != idle.Regions || after.Bytes != idle.Bytes || after.UUID != idle.UUID {
		t.Errorf("before del %+v %+v, after add %+v %+v", idle.Regions, idle.Bytes, after.Regions, after.Bytes)
	}
	if n := source.traffic().since(opened).reads; n != 0 {
		t.Errorf("hydration is off, and the source was read %d times", n)
	}
	c.hydrateFast()
	s := c.waitHydrated()
	if got, want := source.traffic().since(opened).readBytes, idle.Bytes.Remaining; got != want {
		t.Errorf("%d bytes were left, %d were read from the source", want, got)
	}
	t.Logf("%d KiB were left; the destination was written %d KiB; in all %d KiB copied, %d written, %d discarded", idle.Bytes.Remaining/kib,
		dest.traffic().since(written).writeBytes/kib, s.Bytes.Copied/kib, s.Bytes.Written/kib, s.Bytes.Discarded/kib)
	c.del()

	written = dest.traffic()
	c.add()
	complete := c.waitHydrated()
	if complete.Bytes != s.Bytes {
		t.Errorf("complete with %+v, after another add %+v", s.Bytes, complete.Bytes)
	}
	w.check(m, c.path)
	if n := dest.traffic().since(written).writes; n != 0 {
		t.Errorf("a complete clone wrote its destination %d times", n)
	}
	c.del()
	w.check(m, dest.path)
}

// Settings changed live are kept.
func TestSettingsSurvive(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	c := m.addClone(source, dest, m.missing("meta"), "--region-size", "64KiB")
	m.run(command, "pause", c.name)
	c.message("hydration_threshold", "7")
	c.message("hydration_batch_size", "3")
	before := m.run(command, "status", c.name, "-o", "dm")
	c.del()
	c.add()
	line := c.dmStatus()
	after := m.run(command, "status", c.name, "-o", "dm")
	if !slices.Contains(line.features, "no_hydration") || !slices.Contains(strings.Fields(after), "7") || !slices.Contains(strings.Fields(after), "3") {
		t.Errorf("before del %q, after add %q", before, after)
	}
	c.del()
}
