//go:build device

package devicetest

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

const (
	gib = int64(1) << 30
	tib = int64(1) << 40
	// pageSpan is what a page of the region map stands for, with regions of 4 KiB.
	pageSpan = 16128 * 4 * harness.KiB
)

// TestHugeSource: 16 TiB in 2^32 regions of 4 KiB. The clone is there at once and takes little
// memory; written regions take more, by the page of the map; the far end works like the near one.
func TestHugeSource(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock, runs.OrdinaryClockInFull, runs.Sampled)
	m := harness.New(t)
	source, dest := m.File("source", 16*tib), m.File("dest", 16*tib)
	end := make([]byte, harness.MiB)
	harness.Fill(end, source.Size-harness.MiB, harness.Original)
	writeEnd(m, source, end)
	c := m.NewClone(source, dest, m.Missing("meta"), "--no-hydration", "--force")
	m.Within(10*time.Second, "a dry run", func() time.Duration {
		from := time.Now()
		if got := c.DryRun(); got.ToCopy != harness.MiB || got.Regions != 1<<32 {
			t.Errorf("a dry run says %+v", got)
		}
		return time.Since(from)
	})
	m.Within(5*time.Second, "add", func() time.Duration {
		from := time.Now()
		c.Add()
		return time.Since(from)
	})
	all, _ := c.Resident()
	t.Logf("%d KiB resident", all/harness.KiB)
	if all > 150*harness.MiB {
		t.Errorf("%d bytes resident, want 150 MiB at most", all)
	}
	if s := c.Status(); s.Regions.Total != 1<<32 {
		t.Errorf("%d regions", s.Regions.Total)
	}
	const scattered = 256
	v := m.Open(c.Path, os.O_RDWR)
	buf := m.Buffer(4096)
	for i := range int64(scattered) {
		if err := v.Write(buf, 16*tib/scattered*i); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	v.Close()
	after, _ := c.Resident()
	t.Logf("%d KiB resident after writes to %d pages of the map", after/harness.KiB, scattered)
	if after-all > 16*harness.MiB {
		t.Errorf("%d bytes more resident after %d scattered writes", after-all, scattered)
	}
	if s := c.Status(); s.Regions.Hydrated != scattered {
		t.Errorf("%d regions hydrated, want %d", s.Regions.Hydrated, scattered)
	}
	checkEnd(m, c.Path, source.Size, end)
	c.Message("enable_hydration")
	m.WaitFor(harness.HydrateLimit, "hydration to move on", func() error { return atLeast(c, 100*gib) })
	c.Del()
	c.Args = append(c.Args, "--open")
	c.Add()
	checkEnd(m, c.Path, source.Size, end)
	if err := atLeast(c, 100*gib); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	all, _ = c.Resident()
	t.Logf("%d KiB resident after a restart", all/harness.KiB)
}

// writeEnd writes the last bytes of a file.
func writeEnd(m *harness.Machine, d *harness.Disk, b []byte) {
	m.Helper()
	f, err := os.OpenFile(d.Path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, d.Size-int64(len(b)))
		f.Close()
	}
	if err != nil {
		m.Fatal(err)
	}
}

// checkEnd compares the last bytes of a device.
func checkEnd(m *harness.Machine, path string, size int64, want []byte) {
	m.Helper()
	v, got := m.Open(path, os.O_RDONLY), m.Buffer(len(want))
	defer v.Close()
	if err := v.Read(got, size-int64(len(want))); err != nil {
		m.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		m.Errorf("%s: the last %d bytes are other ones", path, len(want))
	}
}

// atLeast says that so much is hydrated.
func atLeast(c *harness.Clone, bytes int64) error {
	if got := c.Status().Bytes.Hydrated; got < bytes {
		return fmt.Errorf("%d bytes are hydrated", got)
	}
	return nil
}

// firstPages is how many pages of the region map have memory from the start.
const firstPages = 2048

// TestMapMemoryFallsBack: the memory of the map grows with what is partly hydrated, beyond what it
// has from the start, and is given back when all of it is hydrated (I9).
func TestMapMemoryFallsBack(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	more := int64(harness.Count(512, 2048))
	pages := firstPages + more
	size := pages * pageSpan
	c := m.AddClone(m.File("source", size), m.File("dest", size), m.Missing("meta"), "--no-hydration", "--force")
	before := mapMemory(c)
	v := m.Open(c.Path, os.O_RDWR)
	buf := m.Buffer(4096)
	for page := range more {
		if err := v.Write(buf, (firstPages+page)*pageSpan); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	v.Close()
	partly := mapMemory(c)
	c.HydrateFast()
	c.WaitHydrated()
	after := mapMemory(c)
	t.Logf("live map: %d KiB at first, %d with %d more pages of the map in use, %d when hydrated", before/harness.KiB, partly/harness.KiB, more, after/harness.KiB)
	if partly-before < more*4*harness.KiB*95/100 {
		t.Errorf("%d bytes for %d pages: the test shows nothing", partly-before, more)
	}
	if after > partly-pages*4*harness.KiB*95/100 {
		t.Errorf("%d bytes are left when all is hydrated, of %d for %d pages", after, partly, pages)
	}
}
