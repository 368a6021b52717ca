//go:build device

package devicetest

import (
	"crypto/sha256"
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

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// untouched is all that a dry run must leave as it is: the devices' contents, and what they were
// asked to write; directories with their files, but for logs and sockets' own times; mounts,
// modules, ublk devices.
func untouched(m *harness.Machine, disks ...*harness.Disk) string {
	m.Helper()
	var b strings.Builder
	for _, d := range disks {
		fmt.Fprintf(&b, "%s %s\n", d.Path, digest(m, d.Path))
		if d.Name != "" {
			t := d.Traffic()
			fmt.Fprintf(&b, "%s %d writes, %d flushes\n", d.Path, t.Writes, t.Flushes)
		}
	}
	for _, dir := range []string{m.Dir, "/run", harness.RecordDir} {
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
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
		b.WriteString(m.ReadFile(path))
	}
	nodes, _ := filepath.Glob("/dev/ublk*")
	fmt.Fprintln(&b, nodes, harness.Daemons())
	return b.String()
}

// untouchedDir fails the test if what is done changes the names in a directory.
func untouchedDir(m *harness.Machine, directory string, do func()) {
	m.Helper()
	names := func() string {
		all, err := filepath.Glob(directory + "/*")
		if err != nil {
			m.Fatal(err)
		}
		return strings.Join(all, " ")
	}
	before := names()
	do()
	if after := names(); after != before {
		m.Errorf("%s has %s, not %s", directory, after, before)
	}
}

// digest is that of the content of a device or file, "missing" if there is none.
func digest(m *harness.Machine, path string) string {
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
func unchanged(m *harness.Machine, what, before, after string) {
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

// TestDryRun: it says what add would do, or refuses what add refuses, with the same words, and
// changes nothing: for what is new, on disks and as files, for what goes on, for what a dead daemon
// has left, for what is up.
func TestDryRun(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	for _, dir := range []string{harness.RecordDir, harness.RunDir} { // as on a machine that never had a clone
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	m.UnmountMaps()
	_ = os.Remove(harness.MapsDir)
	const size = 4 * harness.MiB
	source := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB})
	dest := m.Known("dst", m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB}), size)
	m.FillDisk(source, harness.Original)
	c := m.NewClone(source, dest, m.Missing("meta"), "--no-hydration")
	disks := []*harness.Disk{source, dest, m.Missing("meta")}
	try := func(what string, c *harness.Clone, check func(harness.DryFigures) bool, args ...string) {
		t.Helper()
		before := untouched(m, disks...)
		got := c.DryRun(args...)
		unchanged(m, what, before, untouched(m, disks...))
		t.Logf("%s: %+v", what, got)
		if !check(got) {
			t.Errorf("%s: %+v", what, got)
		}
	}
	refused := func(what string, c *harness.Clone, code int, args ...string) {
		t.Helper()
		before := untouched(m, disks...)
		line := append(append([]string{"add", c.Name}, c.Args...), args...)
		tried := m.Try(harness.Command, append(slices.Clone(line), "--dry-run")...)
		unchanged(m, what, before, untouched(m, disks...))
		really := m.Try(harness.Command, line...)
		if tried.Code != code || really.Code != code || tried.Stderr != really.Stderr {
			t.Errorf("%s: a dry run says %d: %s\nadd says %d: %s", what, tried.Code, tried.Stderr, really.Code, really.Stderr)
		}
	}

	try("new on disks", c, func(g harness.DryFigures) bool {
		return g.New && g.Size == size && int64(g.Regions) == size/4096 && g.ToCopy == size && g.Hydrated == 0 && g.SourceRate != nil && g.Seconds == nil && g.Carries == ""
	})
	files := m.NewClone(m.NullBlk("4k", harness.NullOptions{MiB: size / harness.MiB, Blocksize: 4096}), m.Missing("destfile"), m.Missing("metafile"))
	try("new files", files, func(g harness.DryFigures) bool { return g.New && g.ToCopy == size && g.Seconds != nil })
	m.MustRun("mkfs.ext4", "-q", dest.Path)
	refused("a file system on the destination", c, exit.Refused)
	try("forced over it", c, func(g harness.DryFigures) bool {
		return g.New && strings.Contains(g.Carries, "ext4") && strings.Contains(strings.Join(g.Warnings, " "), "overwritten")
	}, "--force")
	m.MustRun("wipefs", "-aq", dest.Path)
	refused("the same device twice", m.NewClone(source, source, m.Missing("meta")), exit.Refused)
	refused("no such source", m.NewClone(m.Missing("nosource"), dest, m.Missing("meta")), exit.Source)
	for _, directory := range []string{"/root", "/share"} { // overlay and FUSE: no file is made there, with or without a name
		untouchedDir(m, directory, func() {
			refused("a destination in "+directory, m.NewClone(source, &harness.Disk{M: &m.Devices, Path: directory + "/dest"}, m.Missing("meta")), exit.Refused)
		})
	}
	refused("--open of nothing", c, exit.Metadata, "--open")
	holder := m.Open(dest.Path, os.O_RDWR|os.O_EXCL)
	refused("the destination is held", c, exit.Busy)
	holder.Close()
	m.MountMaps("-t", "ramfs", "none")()
	refused("another file system has the place of the live maps", c, exit.Other)
	m.UnmountMaps()
	m.MustRun("rmmod", "ublk_drv")
	refused("no driver", c, exit.Feature)
	m.MustRun("modprobe", "ublk_drv")
	_ = os.RemoveAll(harness.RunDir) // of the adds that were refused
	m.UnmountMaps()

	c.Add()
	if got := c.DryRun(); !got.Unchanged {
		t.Errorf("it is up: %+v", got)
	}
	m.ExpectFailure(m.Try(harness.Command, append([]string{"add", c.Name, "--dry-run", "--queue-depth", "7"}, c.Args...)...), exit.Exists, "queue depth")
	w := harness.NewModel(size, 4*harness.KiB)
	w.Set(0, size, harness.Original)
	v := m.Open(c.Path, os.O_RDWR)
	for off := int64(0); off < size/4; off += 4096 {
		if err := w.Write(v, m.Buffer(4096), off, false); err != nil {
			t.Fatal(err)
		}
	}
	v.Close()
	quarter := func(g harness.DryFigures) bool { return !g.New && g.Hydrated == size/4 && g.ToCopy == size*3/4 }
	c.End(syscall.SIGKILL)
	c.M.WaitFor(harness.CleanLimit, "the dead daemon to be gone", func() error {
		if pids := harness.Daemons(); len(pids) > 0 {
			return fmt.Errorf("%v", pids)
		}
		return nil
	})
	var dead harness.DryFigures
	try("a dead daemon's", c, func(g harness.DryFigures) bool { dead = g; return g.Recover && quarter(g) })
	c.Recover()
	c.Del()
	try("it goes on", c, func(g harness.DryFigures) bool {
		return !g.Recover && quarter(g) && g.Memory == dead.Memory && g.ZeroCopy == dead.ZeroCopy
	})
	kept := m.Dir + "/meta.kept"
	if err := os.Rename(m.Dir+"/meta", kept); err != nil {
		t.Fatal(err)
	}
	refused("the metadata has vanished", c, exit.Refused)
	if err := os.Rename(kept, m.Dir+"/meta"); err != nil {
		t.Fatal(err)
	}
	c.Add()
	w.Check(m, c.Path)
	c.Del()
}

// TestDryRunFigures: what is said of memory, bytes and time holds in the run that follows. The time
// on the counting clock; by another, that the guest's neighbours move, it may be off by as much
// again.
func TestDryRunFigures(t *testing.T) {
	runs.On(t, "7.3", runs.CountingClock, runs.Sampled)
	m := harness.New(t)
	const size = 96 * harness.MiB
	paced := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB, MBps: 20})
	deep := m.NullBlk("deep", harness.NullOptions{MiB: size / harness.MiB, Latency: 20 * time.Millisecond, Depth: 4})
	dest := m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB})
	least := 1.0
	for _, c := range []struct {
		name   string
		source *harness.Disk
		args   []string
	}{
		{"one request at a time", paced, nil},
		{"four at a time", deep, nil},
		{"at a cap", paced, []string{"--rate", "8MiB/s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			least = min(least, figuresHold(m, t, m.NewClone(c.source, dest, m.Missing("meta"), c.args...)))
		})
	}
	if least > 0.05 {
		t.Errorf("every daemon was over the memory that the dry run said, by %.1f %% at least", 100*least)
	}
}

// heapStep is how much Go's heap grows at once, in bytes (runtime/mheap.go, go 1.26: a chunk of 512
// pages). A daemon in twenty has 3 MiB more than the others.
const heapStep = 4 * harness.MiB

// figuresHold runs what was said, and returns by how much the daemon's memory was more, as a
// fraction.
func figuresHold(m *harness.Machine, t *testing.T, c *harness.Clone) float64 {
	expected := c.DryRun()
	if expected.SourceRate == nil || expected.Seconds == nil {
		t.Fatalf("nothing was measured: %+v", expected)
	}
	rate := *expected.SourceRate
	if expected.RateCap > 0 {
		rate = min(rate, expected.RateCap)
	}
	from := time.Now()
	c.Add()
	resident := c.ProcessNumber("VmRSS")
	s := c.WaitHydrated()
	took := time.Since(from)
	t.Logf("source %d KiB/s, %d s; it took %v. %d KiB resident, %d expected", *expected.SourceRate/harness.KiB, *expected.Seconds, took, resident/harness.KiB, expected.Memory.Start/harness.KiB)
	if s.Bytes.Copied != expected.ToCopy {
		t.Errorf("%d bytes were copied, not %d", s.Bytes.Copied, expected.ToCopy)
	}
	if most := expected.Memory.Start*105/100 + heapStep; resident > most || resident < expected.Memory.Start*3/4 {
		t.Errorf("%d KiB are resident, the dry run said %d", resident/harness.KiB, expected.Memory.Start/harness.KiB)
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
	c.Del()
	if err := os.Remove(filepath.Join(m.Dir, "meta")); err != nil {
		t.Fatal(err)
	}
	return float64(resident)/float64(expected.Memory.Start) - 1
}

// TestDryRunOfSparseSource: holes of a source are not copied, and not counted.
func TestDryRunOfSparseSource(t *testing.T) {
	runs.On(t, "7.3")
	m := harness.New(t)
	source, dest := m.File("source", 32*harness.MiB), m.NullBlk("dst", harness.NullOptions{MiB: 32})
	m.MustRun("dd", "if=/dev/urandom", "of="+source.Path, "bs=1M", "seek=3", "count=5", "conv=notrunc", "status=none")
	m.MustRun("dd", "if=/dev/urandom", "of="+source.Path, "bs=4k", "seek=4101", "count=3", "conv=notrunc", "status=none")
	c := m.NewClone(source, dest, m.Missing("meta"), "--region-size", "64KiB", "--no-hydration")
	expected := c.DryRun()
	if expected.ToCopy != 5*harness.MiB+64*harness.KiB {
		t.Errorf("to be copied: %+v", expected)
	}
	c.Add()
	c.HydrateFast()
	if s := c.WaitHydrated(); s.Bytes.Copied != expected.ToCopy {
		t.Errorf("%d bytes were copied, not %d", s.Bytes.Copied, expected.ToCopy)
	}
	c.Del()
}

// TestDryRunOfSlowSource: a source that takes long for each read is not waited for, and its rate
// not made up.
func TestDryRunOfSlowSource(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	m.MustRun("modprobe", "dm-delay")
	under, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	source := m.Mapper("slow", fmt.Sprintf("0 %d delay %s 0 5000", 16*harness.MiB/harness.Sector, under.Path))
	c := m.NewClone(source, dest, m.Missing("meta"))
	got := c.DryRun()
	t.Logf("%+v", got)
	if got.SourceRate != nil || got.Seconds != nil || !strings.Contains(strings.Join(got.Warnings, " "), "not answered in time") {
		t.Errorf("%+v", got)
	}
}
