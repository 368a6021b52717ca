//go:build device

package devicetest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

const (
	gib = int64(1) << 30
	tib = int64(1) << 40
	// pageSpan is what a page of the region map stands for, with regions of 4 KiB.
	pageSpan = 16128 * 4 * kib
)

// resident is the memory of the clone's daemon, in bytes, and the part of it that is shared: maps and buffers.
func (c *clone) resident() (all, shared int64) {
	c.m.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.status().PID), "status"))
	if err != nil {
		c.m.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			all = n * kib
		case "RssShmem:":
			shared = n * kib
		}
	}
	return all, shared
}

// TestHugeSource: 16 TiB in 2^32 regions of 4 KiB. The clone is there at once and takes little memory; written
// regions take more, by the page of the map; the far end works like the near one.
func TestHugeSource(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock, runs.OrdinaryClockInFull)
	m := newMachine(t)
	source, dest := m.file("source", 16*tib), m.file("dest", 16*tib)
	end := make([]byte, mib)
	fill(end, source.size-mib, original)
	m.writeEnd(source, end)
	c := m.newClone(source, dest, m.missing("meta"), "--no-hydration", "--force")
	m.within(10*time.Second, "a dry run", func() time.Duration {
		from := time.Now()
		if got := c.dryRun(); got.ToCopy != mib || got.Regions != 1<<32 {
			t.Errorf("a dry run says %+v", got)
		}
		return time.Since(from)
	})
	m.within(5*time.Second, "add", func() time.Duration {
		from := time.Now()
		c.add()
		return time.Since(from)
	})
	all, _ := c.resident()
	t.Logf("%d KiB resident", all/kib)
	if all > 150*mib {
		t.Errorf("%d bytes resident, want 150 MiB at most", all)
	}
	if s := c.status(); s.Regions.Total != 1<<32 {
		t.Errorf("%d regions", s.Regions.Total)
	}
	const scattered = 256
	v := m.open(c.path, os.O_RDWR)
	buf := m.buffer(4096)
	for i := range int64(scattered) {
		if err := v.write(buf, 16*tib/scattered*i); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.flush(); err != nil {
		t.Fatal(err)
	}
	v.close()
	after, _ := c.resident()
	t.Logf("%d KiB resident after writes to %d pages of the map", after/kib, scattered)
	if after-all > 16*mib {
		t.Errorf("%d bytes more resident after %d scattered writes", after-all, scattered)
	}
	if s := c.status(); s.Regions.Hydrated != scattered {
		t.Errorf("%d regions hydrated, want %d", s.Regions.Hydrated, scattered)
	}
	m.checkEnd(c.path, source.size, end)
	c.message("enable_hydration")
	m.waitFor(hydrateLimit, "hydration to move on", func() error { return c.atLeast(100 * gib) })
	c.del()
	c.args = append(c.args, "--open")
	c.add()
	m.checkEnd(c.path, source.size, end)
	if err := c.atLeast(100 * gib); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	all, _ = c.resident()
	t.Logf("%d KiB resident after a restart", all/kib)
}

// writeEnd writes the last bytes of a file.
func (m *machine) writeEnd(d *disk, b []byte) {
	m.Helper()
	f, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, d.size-int64(len(b)))
		f.Close()
	}
	if err != nil {
		m.Fatal(err)
	}
}

// checkEnd compares the last bytes of a device.
func (m *machine) checkEnd(path string, size int64, want []byte) {
	m.Helper()
	v, got := m.open(path, os.O_RDONLY), m.buffer(len(want))
	defer v.close()
	if err := v.read(got, size-int64(len(want))); err != nil {
		m.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		m.Errorf("%s: the last %d bytes are other ones", path, len(want))
	}
}

// atLeast says that so much is hydrated.
func (c *clone) atLeast(bytes int64) error {
	if got := c.status().Bytes.Hydrated; got < bytes {
		return fmt.Errorf("%d bytes are hydrated", got)
	}
	return nil
}

// settledPages is how many pages of the region map have memory from the start.
const settledPages = 2048

// TestMapMemoryFallsBack: the memory of the map grows with what is partly hydrated, beyond what it has from the
// start, and is given back when all of it is hydrated (I9).
func TestMapMemoryFallsBack(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	more := int64(count(512, 2048))
	pages := settledPages + more
	size := pages * pageSpan
	c := m.addClone(m.file("source", size), m.file("dest", size), m.missing("meta"), "--no-hydration", "--force")
	_, before := c.resident()
	v := m.open(c.path, os.O_RDWR)
	buf := m.buffer(4096)
	for page := range more {
		if err := v.write(buf, (settledPages+page)*pageSpan); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.flush(); err != nil {
		t.Fatal(err)
	}
	v.close()
	_, partly := c.resident()
	c.hydrateFast()
	c.waitHydrated()
	_, after := c.resident()
	t.Logf("shared memory: %d KiB at first, %d with %d more pages of the map in use, %d when hydrated", before/kib, partly/kib, more, after/kib)
	if partly-before < more*4*kib*95/100 {
		t.Errorf("%d bytes for %d pages: the test shows nothing", partly-before, more)
	}
	if after > partly-pages*4*kib*95/100 {
		t.Errorf("%d bytes are left when all is hydrated, of %d for %d pages", after, partly, pages)
	}
}
