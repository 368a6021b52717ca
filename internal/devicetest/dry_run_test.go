//go:build device

package devicetest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// dryFigures is what the tests read of `add --dry-run -o json`.
type dryFigures struct {
	Unchanged bool   `json:"unchanged"`
	New       bool   `json:"new"`
	Recover   bool   `json:"recover"`
	Carries   string `json:"dest_carries"`
	Size      int64  `json:"size"`
	Regions   uint64 `json:"regions"`
	Memory    struct {
		Start int64 `json:"start"`
		Most  int64 `json:"most"`
	} `json:"memory"`
	MetadataBytes int64    `json:"metadata_bytes"`
	ZeroCopy      bool     `json:"zero_copy"`
	Hydrated      int64    `json:"hydrated"`
	ToCopy        int64    `json:"to_copy"`
	SourceRate    *int64   `json:"source_rate"`
	Seconds       *int64   `json:"seconds"`
	RateCap       int64    `json:"rate_cap"`
	Warnings      []string `json:"warnings"`
}

// dryRun is `add --dry-run`, which must succeed.
func (c *clone) dryRun(args ...string) (t dryFigures) {
	c.m.Helper()
	line := append(append([]string{"add", c.name, "--dry-run", "-o", "json"}, c.args...), args...)
	out := c.m.run(command, line...)
	var report struct {
		Schema string     `json:"schema"`
		DryRun dryFigures `json:"dry_run"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Schema != "ublk-clone/v1" {
		c.m.Fatalf("dry run: %v: %s", err, out)
	}
	return report.DryRun
}

// untouched is all that a dry run must leave as it is: the devices' contents, and what they were asked to write; folders with
// their files, but for logs and sockets' own times; mounts, modules, ublk devices.
func (m *machine) untouched(disks ...*disk) string {
	m.Helper()
	var b strings.Builder
	for _, d := range disks {
		fmt.Fprintf(&b, "%s %s\n", d.path, m.digest(d.path))
		if d.name != "" {
			t := d.traffic()
			fmt.Fprintf(&b, "%s %d writes, %d flushes\n", d.path, t.writes, t.flushes)
		}
	}
	for _, dir := range []string{m.dir, "/run", recordDir} {
		filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				fmt.Fprintln(&b, path, err)
				return nil
			}
			info, err := e.Info()
			if err != nil {
				return nil
			}
			fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
			return nil
		})
	}
	for _, path := range []string{"/proc/self/mountinfo", "/proc/modules"} {
		b.WriteString(m.readFile(path))
	}
	nodes, _ := filepath.Glob("/dev/ublk*")
	fmt.Fprintln(&b, nodes, daemons())
	return b.String()
}

// untouchedFolder fails the test if what is done changes the names in a folder.
func (m *machine) untouchedFolder(folder string, do func()) {
	m.Helper()
	names := func() string {
		all, err := filepath.Glob(folder + "/*")
		if err != nil {
			m.Fatal(err)
		}
		return strings.Join(all, " ")
	}
	before := names()
	do()
	if after := names(); after != before {
		m.Errorf("%s has %s, not %s", folder, after, before)
	}
}

// digest is that of the content of a device or file, "missing" if there is none.
func (m *machine) digest(path string) string {
	m.Helper()
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return "missing"
	}
	if err != nil {
		m.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		m.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// unchanged fails the test if a dry run has changed anything.
func (m *machine) unchanged(what, before, after string) {
	m.Helper()
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range is {
		if !slices.Contains(was, line) {
			m.Errorf("%s: new is %s", what, line)
		}
	}
	for _, line := range was {
		if !slices.Contains(is, line) {
			m.Errorf("%s: gone is %s", what, line)
		}
	}
}

// TestDryRun: it says what add would do, or refuses what add refuses, with the same words, and changes nothing: for what is
// new, on disks and as files, for what goes on, for what a dead daemon has left, for what is up.
func TestDryRun(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	for _, dir := range []string{recordDir, runDir} { // as on a machine that never had a clone
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	m.unmountMaps()
	os.Remove(mapsDir)
	const size = 4 * mib
	source := m.nullBlk("src", nullOptions{mib: size / mib})
	dest := m.known("dst", m.nullBlk("dst", nullOptions{mib: size / mib}), size)
	m.fillDisk(source, original)
	c := m.newClone(source, dest, m.missing("meta"), "--no-hydration")
	disks := []*disk{source, dest, m.missing("meta")}
	try := func(what string, c *clone, check func(dryFigures) bool, args ...string) {
		t.Helper()
		before := m.untouched(disks...)
		got := c.dryRun(args...)
		m.unchanged(what, before, m.untouched(disks...))
		t.Logf("%s: %+v", what, got)
		if !check(got) {
			t.Errorf("%s: %+v", what, got)
		}
	}
	refused := func(what string, c *clone, code int, args ...string) {
		t.Helper()
		before := m.untouched(disks...)
		line := append(append([]string{"add", c.name}, c.args...), args...)
		tried := m.try(command, append(slices.Clone(line), "--dry-run")...)
		m.unchanged(what, before, m.untouched(disks...))
		really := m.try(command, line...)
		if tried.code != code || really.code != code || tried.stderr != really.stderr {
			t.Errorf("%s: a dry run says %d: %s\nadd says %d: %s", what, tried.code, tried.stderr, really.code, really.stderr)
		}
	}

	try("new on disks", c, func(g dryFigures) bool {
		return g.New && g.Size == size && int64(g.Regions) == size/4096 && g.ToCopy == size && g.Hydrated == 0 && g.SourceRate != nil && g.Seconds == nil && g.Carries == ""
	})
	files := m.newClone(m.nullBlk("4k", nullOptions{mib: size / mib, blocksize: 4096}), m.missing("destfile"), m.missing("metafile"))
	try("new files", files, func(g dryFigures) bool { return g.New && g.ToCopy == size && g.Seconds != nil })
	m.run("mkfs.ext4", "-q", dest.path)
	refused("a file system on the destination", c, exit.Refused)
	try("forced over it", c, func(g dryFigures) bool {
		return g.New && strings.Contains(g.Carries, "ext4") && strings.Contains(strings.Join(g.Warnings, " "), "overwritten")
	}, "--force")
	m.run("wipefs", "-aq", dest.path)
	refused("the same device twice", m.newClone(source, source, m.missing("meta")), exit.Refused)
	refused("no such source", m.newClone(m.missing("nosource"), dest, m.missing("meta")), exit.Source)
	for _, folder := range []string{"/root", "/share"} { // overlay and FUSE: no file is made there, with or without a name
		m.untouchedFolder(folder, func() {
			refused("a destination in "+folder, m.newClone(source, &disk{m: m, path: folder + "/dest"}, m.missing("meta")), exit.Refused)
		})
	}
	refused("--open of nothing", c, exit.Metadata, "--open")
	holder := m.open(dest.path, os.O_RDWR|os.O_EXCL)
	refused("the destination is held", c, exit.Busy)
	holder.close()
	m.mountMaps("-t", "ramfs", "none")()
	refused("another file system has the place of the live maps", c, exit.Other)
	m.unmountMaps()
	m.run("rmmod", "ublk_drv")
	refused("no driver", c, exit.Feature)
	m.run("modprobe", "ublk_drv")
	os.RemoveAll(runDir) // of the adds that were refused
	m.unmountMaps()

	c.add()
	if got := c.dryRun(); !got.Unchanged {
		t.Errorf("it is up: %+v", got)
	}
	m.expectFailure(m.try(command, append([]string{"add", c.name, "--dry-run", "--queue-depth", "7"}, c.args...)...), exit.Exists, "queue depth")
	w := newModel(size, 4*kib)
	w.set(0, size, original)
	v := m.open(c.path, os.O_RDWR)
	for off := int64(0); off < size/4; off += 4096 {
		if err := w.write(v, m.buffer(4096), off, false); err != nil {
			t.Fatal(err)
		}
	}
	v.close()
	quarter := func(g dryFigures) bool { return !g.New && g.Hydrated == size/4 && g.ToCopy == size*3/4 }
	c.end(syscall.SIGKILL)
	c.m.waitFor(cleanLimit, "the dead daemon to be gone", func() error {
		if pids := daemons(); len(pids) > 0 {
			return fmt.Errorf("%v", pids)
		}
		return nil
	})
	var dead dryFigures
	try("a dead daemon's", c, func(g dryFigures) bool { dead = g; return g.Recover && quarter(g) })
	c.recover()
	c.del()
	try("it goes on", c, func(g dryFigures) bool {
		return !g.Recover && quarter(g) && g.Memory == dead.Memory && g.ZeroCopy == dead.ZeroCopy
	})
	kept := m.dir + "/meta.kept"
	if err := os.Rename(m.dir+"/meta", kept); err != nil {
		t.Fatal(err)
	}
	refused("the metadata have vanished", c, exit.Refused)
	if err := os.Rename(kept, m.dir+"/meta"); err != nil {
		t.Fatal(err)
	}
	c.add()
	w.check(m, c.path)
	c.del()
}

// TestDryRunFigures: what is said of memory, bytes and time holds in the run that follows. The time on the counting clock;
// by another, that the guest's neighbours move, it may be off by as much again.
func TestDryRunFigures(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock)
	m := newMachine(t)
	const size = 96 * mib
	paced := m.nullBlk("src", nullOptions{mib: size / mib, mbps: 20})
	deep := m.nullBlk("deep", nullOptions{mib: size / mib, latency: 20 * time.Millisecond, depth: 4})
	dest := m.nullBlk("dst", nullOptions{mib: size / mib})
	least := 1.0
	for _, c := range []struct {
		name   string
		source *disk
		args   []string
	}{
		{"one request at a time", paced, nil},
		{"four at a time", deep, nil},
		{"at a cap", paced, []string{"--rate", "8MiB/s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			least = min(least, m.figuresHold(t, m.newClone(c.source, dest, m.missing("meta"), c.args...)))
		})
	}
	if least > 0.05 {
		t.Errorf("every daemon was over the memory that the dry run said, by %.1f %% at least", 100*least)
	}
}

// heapStep is how much Go's heap grows at once, in bytes (runtime/mheap.go, go 1.26: a chunk of 512 pages). A
// daemon in twenty has 3 MiB more than the others.
const heapStep = 4 * mib

// figuresHold runs what was said, and returns by how much the daemon's memory was more, as a fraction.
func (m *machine) figuresHold(t *testing.T, c *clone) float64 {
	expected := c.dryRun()
	if expected.SourceRate == nil || expected.Seconds == nil {
		t.Fatalf("nothing was measured: %+v", expected)
	}
	rate := *expected.SourceRate
	if expected.RateCap > 0 {
		rate = min(rate, expected.RateCap)
	}
	from := time.Now()
	c.add()
	resident := c.processNumber("VmRSS")
	s := c.waitHydrated()
	took := time.Since(from)
	t.Logf("source %d KiB/s, %d s; it took %v. %d KiB resident, %d expected", *expected.SourceRate/kib, *expected.Seconds, took, resident/kib, expected.Memory.Start/kib)
	if s.Bytes.Copied != expected.ToCopy {
		t.Errorf("%d bytes were copied, not %d", s.Bytes.Copied, expected.ToCopy)
	}
	if most := expected.Memory.Start*105/100 + heapStep; resident > most || resident < expected.Memory.Start*3/4 {
		t.Errorf("%d KiB are resident, the dry run said %d", resident/kib, expected.Memory.Start/kib)
	}
	if *expected.Seconds != (expected.ToCopy+rate-1)/rate {
		t.Errorf("%d s for %d bytes at %d a second", *expected.Seconds, expected.ToCopy, rate)
	}
	margin := 0.25
	if os.Getenv("TIMED") != "1" {
		margin = 1
	}
	if off := took.Seconds()*float64(rate)/float64(expected.ToCopy) - 1; off > margin || off < -margin {
		t.Errorf("it took %v, %.0f %% off", took, 100*off)
	}
	c.del()
	if err := os.Remove(filepath.Join(m.dir, "meta")); err != nil {
		t.Fatal(err)
	}
	return float64(resident)/float64(expected.Memory.Start) - 1
}

// TestDryRunOfSparseSource: holes of a source are not copied, and not counted.
func TestDryRunOfSparseSource(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	source, dest := m.file("source", 32*mib), m.nullBlk("dst", nullOptions{mib: 32})
	m.run("dd", "if=/dev/urandom", "of="+source.path, "bs=1M", "seek=3", "count=5", "conv=notrunc", "status=none")
	m.run("dd", "if=/dev/urandom", "of="+source.path, "bs=4k", "seek=4101", "count=3", "conv=notrunc", "status=none")
	c := m.newClone(source, dest, m.missing("meta"), "--region-size", "64KiB", "--no-hydration")
	expected := c.dryRun()
	if expected.ToCopy != 5*mib+64*kib {
		t.Errorf("to be copied: %+v", expected)
	}
	c.add()
	c.hydrateFast()
	if s := c.waitHydrated(); s.Bytes.Copied != expected.ToCopy {
		t.Errorf("%d bytes were copied, not %d", s.Bytes.Copied, expected.ToCopy)
	}
	c.del()
}

// TestDryRunOfSlowSource: a source that takes long for each read is not waited for, and its rate not made up.
func TestDryRunOfSlowSource(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.run("modprobe", "dm-delay")
	under, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	source := m.mapper("slow", fmt.Sprintf("0 %d delay %s 0 5000", 16*mib/sector, under.path))
	c := m.newClone(source, dest, m.missing("meta"))
	got := c.dryRun()
	t.Logf("%+v", got)
	if got.SourceRate != nil || got.Seconds != nil || !strings.Contains(strings.Join(got.Warnings, " "), "not answered in time") {
		t.Errorf("%+v", got)
	}
}
