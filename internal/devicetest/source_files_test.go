//go:build device

package devicetest

import (
	"os"
	"slices"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A source with a file system is used at once and while it hydrates; in the end the destination stands
// alone. At reduced counts each file system and each region size has its turn; FULL=1 makes every pair.

// wholeDevice is a region as large as the device, 1 GiB at full counts.
const wholeDevice = 0

var fileRegions = []int64{4 * kib, 64 * kib, mib, wholeDevice}

func TestExt4Source(t *testing.T) {
	runs.On(t, "6.18")
	testSources(t, ext4, 4*kib, 64*kib)
}

func TestXFSSource(t *testing.T) {
	runs.On(t, "7.3")
	testSources(t, xfs, mib)
}

func TestBtrfsSource(t *testing.T) {
	runs.On(t, "6.18")
	testSources(t, btrfs, wholeDevice)
}

func testSources(t *testing.T, kind fsKind, reduced ...int64) {
	for _, region := range fileRegions {
		if os.Getenv("FULL") != "1" && !slices.Contains(reduced, region) {
			continue
		}
		name := kibText(region)
		if region == wholeDevice {
			name = "WholeDevice"
		}
		t.Run(name, func(t *testing.T) { testSource(t, kind, region) })
	}
}

func testSource(t *testing.T, kind fsKind, region int64) {
	m := newMachine(t)
	rng := m.random()
	size := int64(count(32, 256)) // MiB
	if region == wholeDevice {
		size = int64(count(32, 1024))
		region = size * mib
	}
	regions := uint64(size * mib / region)
	source := m.nullBlk("src", nullOptions{mib: size, mbps: 30})
	files := m.newFiles(kind, rng, source, int64(count(6, 128))*mib)
	sourceSum := m.sum(source.path, source.size)
	sourceBefore := source.traffic()
	dest := m.nullBlk("dst", nullOptions{mib: size})
	m.fillDisk(dest, junk)

	readThrough := map[bool]string{true: "on", false: "off"}[region == 64*kib || regions == 1]
	c := m.addClone(source, dest, m.missing("meta"), "--region-size", kibText(region), "--no-hydration", "--read-through="+readThrough)
	files.mount(c.path)
	files.check(nil)
	if s := c.status(); readThrough == "off" && s.Regions.Hydrated >= regions/2 {
		t.Errorf("hydration is off, but %d of %d regions are hydrated", s.Regions.Hydrated, regions)
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
		after.Regions.Hydrated, regions)
	if regions > 1 && during.Regions.Hydrated == regions {
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
	files.examine(dest.path)
	files.mount(dest.path)
	files.check(nil)
	files.unmount()
	m.same("source, compared with before", m.sum(source.path, source.size), sourceSum)
	if wrote := source.traffic().since(sourceBefore).writes; wrote != 0 {
		t.Errorf("the source was written %d times", wrote)
	}
}
