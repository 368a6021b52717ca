//go:build device

package devicetest

import (
	"testing"
)

// An ext4 source is used at once and while it hydrates; in the end the destination stands alone.

func TestExt4SourceRegions4KiB(t *testing.T)  { testExt4Source(t, 4*kib) }
func TestExt4SourceRegions64KiB(t *testing.T) { testExt4Source(t, 64*kib) }

func testExt4Source(t *testing.T, region int64) {
	m := newMachine(t)
	rng := m.random()
	size := int64(count(48, 256)) // MiB
	source := m.nullBlk("src", nullOptions{mib: size, mbps: 30})
	files := m.newExt4(rng, source, size*mib/2)
	sourceSum := m.sum(source.path, source.size)
	sourceBefore := source.traffic()
	dest := m.nullBlk("dst", nullOptions{mib: size})
	m.fillDisk(dest, junk)

	c := m.addClone(source, dest, m.missing("meta"), "--region-size", kibText(region), "--no-hydration")
	files.mount(c.path)
	files.check(nil)
	if s := c.status(); s.Regions.Hydrated >= s.Regions.Total/2 {
		t.Errorf("hydration is off, but %d of %d regions are hydrated", s.Regions.Hydrated, s.Regions.Total)
	}

	c.hydrateSlowly()
	var during status
	files.check(func(done, _ int) {
		if done == 1 {
			during = c.status()
		}
	})
	files.change(rng, 0.2)
	files.sync()
	after := c.status()
	t.Logf("regions hydrated: %d when the check began, %d after it and the changes, of %d", during.Regions.Hydrated,
		after.Regions.Hydrated, after.Regions.Total)
	if during.Regions.Hydrated == during.Regions.Total {
		t.Error("the check was to run during hydration, which was complete before")
	}
	files.check(nil)
	c.hydrateFast()
	s := c.waitHydrated()
	t.Logf("%d KiB copied, %d written, %d discarded", s.Bytes.Copied/kib, s.Bytes.Written/kib, s.Bytes.Discarded/kib)
	files.check(nil)
	files.unmount()
	cloneSum := m.sum(c.path, s.Size)
	c.del()

	m.same("destination, compared with the clone", m.sum(dest.path, s.Size), cloneSum)
	m.checkExt4(dest.path)
	files.mount(dest.path)
	files.check(nil)
	files.unmount()
	m.same("source, compared with before", m.sum(source.path, source.size), sourceSum)
	if wrote := source.traffic().since(sourceBefore).writes; wrote != 0 {
		t.Errorf("the source was written %d times", wrote)
	}
}
