//go:build device

package devicetest

import (
	"os"
	"slices"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A source with a file system is used at once and while it hydrates; in the end the destination
// stands alone. At reduced counts each file system and each region size has its turn; FULL=1 makes
// every pair.

// wholeDevice is a region as large as the device, 1 GiB at full counts.
const wholeDevice = 0

var fileRegions = []int64{4 * harness.KiB, 64 * harness.KiB, harness.MiB, wholeDevice}

func TestExt4Source(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.Sampled)
	testSources(t, harness.Ext4, 4*harness.KiB, 64*harness.KiB)
}

func TestXFSSource(t *testing.T) {
	runs.On(t, "7.3", runs.Layered, runs.Sampled)
	testSources(t, harness.XFS, harness.MiB)
}

func TestBtrfsSource(t *testing.T) {
	runs.On(t, "6.18", runs.Layered, runs.Sampled)
	testSources(t, harness.Btrfs, wholeDevice)
}

func testSources(t *testing.T, kind harness.FSKind, reduced ...int64) {
	for _, region := range fileRegions {
		if os.Getenv("FULL") != "1" && !slices.Contains(reduced, region) {
			continue
		}
		name := harness.KiBText(region)
		if region == wholeDevice {
			name = "WholeDevice"
		}
		t.Run(name, func(t *testing.T) { testSource(t, kind, region) })
	}
}

func testSource(t *testing.T, kind harness.FSKind, region int64) {
	m := harness.New(t)
	rng := m.Random()
	size := int64(harness.Count(32, 256)) // MiB
	if region == wholeDevice {
		size = int64(harness.Count(32, 1024))
		region = size * harness.MiB
	}
	regions := uint64(size * harness.MiB / region)
	source := m.NullBlk("src", harness.NullOptions{MiB: size, MBps: 30})
	files := m.NewFiles(kind, rng, source, int64(harness.Count(6, 128))*harness.MiB)
	sourceSum := m.Sum(source.Path, source.Size)
	sourceBefore := source.Traffic()
	dest := m.NullBlk("dst", harness.NullOptions{MiB: size})
	m.FillDisk(dest, harness.Junk)

	readThrough := map[bool]string{true: "on", false: "off"}[region == 64*harness.KiB || regions == 1]
	c := m.AddClone(source, dest, m.Missing("meta"), "--region-size", harness.KiBText(region), "--no-hydration", "--read-through="+readThrough)
	files.Mount(c.Path)
	files.Check(nil)
	if s := c.Status(); readThrough == "off" && s.Regions.Hydrated >= regions/2 {
		t.Errorf("hydration is off, but %d of %d regions are hydrated", s.Regions.Hydrated, regions)
	}

	c.HydrateSlowly()
	var during harness.Status
	files.Check(func(done, _ int) {
		if done == 1 {
			during = c.Status()
		}
	})
	files.Change(rng, 0.2)
	files.Sync()
	after := c.Status()
	t.Logf("regions hydrated: %d when the check began, %d after it and the changes, of %d", during.Regions.Hydrated,
		after.Regions.Hydrated, regions)
	if regions > 1 && during.Regions.Hydrated == regions {
		t.Error("the check was to run during hydration, which was complete before")
	}
	files.Check(nil)
	c.HydrateFast()
	s := c.WaitHydrated()
	t.Logf("%d KiB copied, %d written, %d discarded", s.Bytes.Copied/harness.KiB, s.Bytes.Written/harness.KiB, s.Bytes.Discarded/harness.KiB)
	files.Check(nil)
	files.Unmount()
	cloneSum := m.Sum(c.Path, s.Size)
	c.Del()

	m.Same("destination, compared with the clone", m.Sum(dest.Path, s.Size), cloneSum)
	files.Fsck(dest.Path)
	files.Mount(dest.Path)
	files.Check(nil)
	files.Unmount()
	m.Same("source, compared with before", m.Sum(source.Path, source.Size), sourceSum)
	if wrote := source.Traffic().Since(sourceBefore).Writes; wrote != 0 {
		t.Errorf("the source was written %d times", wrote)
	}
}
