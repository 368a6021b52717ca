//go:build device

package devicetest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A source file that somebody changes while it is cloned (I14): nothing of what it holds then is
// ever kept or shown.

// changeSize is the size of the file, of whose bytes a test waits for changeBefore to be hydrated.
const (
	changeSize   = 8 * harness.MiB
	changeBefore = harness.MiB / 2
	changeRegion = 64 * harness.KiB
)

// sourceChange is one way to change the file.
type sourceChange struct {
	name  string
	apply func(m *harness.Machine, path, copy string)
	// renamed: the file that is open is as it was, and resume goes on with it.
	renamed bool
	// back: the former bytes are in place again, so that resume goes on.
	back bool
	// recovers: a recovery, too, is to find that it has changed.
	recovers bool
}

var sourceChanges = []sourceChange{
	{name: "cp", back: true, apply: func(m *harness.Machine, path, copy string) { m.MustRun("cp", copy, path) }},
	{name: "cp-p", back: true, apply: func(m *harness.Machine, path, copy string) { m.MustRun("cp", "-p", copy, path) }},
	{name: "other-bytes", recovers: true, apply: func(m *harness.Machine, path, _ string) { fillFile(m, path, harness.Junk) }},
	{name: "shorter", apply: func(m *harness.Machine, path, _ string) { truncate(m, path, changeSize/2) }},
	{name: "odd-end", apply: func(m *harness.Machine, path, _ string) { truncate(m, path, changeSize-3000) }},
	{name: "down-and-up", recovers: true, apply: func(m *harness.Machine, path, _ string) {
		truncate(m, path, 0)
		truncate(m, path, changeSize)
	}},
	{name: "longer", apply: func(m *harness.Machine, path, _ string) { truncate(m, path, 2*changeSize) }},
	{name: "replaced", renamed: true, apply: func(m *harness.Machine, path, _ string) {
		fillFile(m, path+".new", harness.Junk)
		rename(m, path+".new", path)
	}},
	{name: "moved", back: true, apply: func(m *harness.Machine, path, _ string) {
		rename(m, path, path+".old")
		fillFile(m, path, harness.Junk)
	}},
}

func truncate(m *harness.Machine, path string, size int64) {
	m.Helper()
	if err := os.Truncate(path, size); err != nil {
		m.Fatal(err)
	}
}

func rename(m *harness.Machine, from, to string) {
	m.Helper()
	if err := os.Rename(from, to); err != nil {
		m.Fatal(err)
	}
}

// fillFile writes a file of changeSize over the one that is there.
func fillFile(m *harness.Machine, path string, v harness.Version) {
	m.Helper()
	b := make([]byte, changeSize)
	harness.Fill(b, 0, v)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		m.Fatal(err)
	}
}

func TestSourceChangedExt4(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	testSourceChanged(t, "ext4", false)
}

func TestSourceChangedXFS(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	testSourceChanged(t, "xfs", false, "cp", "odd-end", "down-and-up", "replaced")
}

func TestSourceChangedTmpfs(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	testSourceChanged(t, "", false, "cp", "shorter", "down-and-up", "replaced")
}

// TestSourceChangedLoop: the same of a file behind a loop device, of which the block layer tells
// nothing.
func TestSourceChangedLoop(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	testSourceChanged(t, "", true, "cp", "shorter", "replaced")
}

// testSourceChanged makes the changes of these names, or all, to a file on such a file system; ""
// is tmpfs.
func testSourceChanged(t *testing.T, fs string, loop bool, names ...string) {
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	dir := m.Dir
	if fs != "" {
		dir = sourceFS(m, fs)
	}
	for i, how := range sourceChanges {
		if len(names) == 0 && i%harness.Count(2, 1) == 0 || slices.Contains(names, how.name) {
			oneChange(m, dir, how, loop)
		}
	}
}

// sourceFS mounts a file system on a null_blk device.
func sourceFS(m *harness.Machine, fs string) string {
	m.Helper()
	d := m.NullBlk("fs", harness.NullOptions{MiB: 512})
	args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q", "-f"}}[fs]
	m.MustRun("mkfs."+fs, append(args, d.Path)...)
	dir := filepath.Join(m.Dir, fs)
	if err := errors.Join(os.Mkdir(dir, 0o755), unix.Mount(d.Path, dir, fs, 0, "")); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { m.MustRun("umount", dir) })
	return dir
}

// oneChange clones a file, changes it while it is hydrated, and looks at all that is there then.
func oneChange(m *harness.Machine, dir string, how sourceChange, loop bool) {
	m.Helper()
	m.Log("-- " + how.name)
	path, copied := filepath.Join(dir, how.name), filepath.Join(dir, how.name+".copy")
	fillFile(m, path, harness.Original)
	m.MustRun("cp", "-p", path, copied)
	source := &harness.Disk{M: &m.Devices, Path: path, Size: changeSize}
	dest := m.NullBlk(how.name, harness.NullOptions{MiB: changeSize / harness.MiB})
	m.FillDisk(dest, harness.Junk)
	if loop {
		source.Path = strings.TrimSpace(m.MustRun("losetup", "-f", "--show", "--direct-io=on", "-r", path))
		m.Cleanup(func() { m.MustRun("losetup", "-d", source.Path) })
	}
	c := &harness.Clone{M: m, Name: "test", Args: harness.AddArgs(source, dest, &harness.Disk{M: &m.Devices, Path: filepath.Join(m.Dir, how.name+".meta")},
		"--region-size", harness.KiBText(changeRegion), "--rate", "512KiB/s", "--min-rate", "none", "--retries", "1")}
	m.Cleanup(c.Abandon)
	c.Add()
	m.WaitFor(harness.HydrateLimit, "a beginning", func() error {
		if s := c.Status(); s.Bytes.Hydrated < changeBefore {
			return fmt.Errorf("%d bytes", s.Bytes.Hydrated)
		}
		return nil
	})
	after := c.Status().LastEvent
	how.apply(m, path, copied)
	from := time.Now()
	m.WaitFor(harness.StandLimit, "the change to be noticed", func() error {
		if s := c.Status(); s.State != "stalled" || s.LastEvent <= after {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	m.InTime(3*time.Second, how.name+": notice of the change", time.Since(from))
	c.Event("stalled")
	onlyOriginal(c, how.renamed)
	m.MustRun(harness.Command, "set", c.Name, "rate=none")
	if how.back || how.renamed {
		m.MustRun(harness.Command, "resume", c.Name)
		c.WaitHydrated()
		c.Del()
		harness.NewModel(changeSize, changeRegion).Check(m, dest.Path)
		return
	}
	m.ExpectFailure(m.Try(harness.Command, "resume", c.Name), exit.Source) // and not another one
	if how.recovers {
		c.End(syscall.SIGKILL)
		m.MustRun(harness.Command, "recover", c.Name)
		if s := c.Status(); s.State != "stalled" {
			m.Errorf("after a recovery it is %s: %s", s.State, s.Reason)
		}
		onlyOriginal(c, false)
	}
	m.MustRun("cp", copied, path)
	m.MustRun(harness.Command, "resume", c.Name)
	c.WaitHydrated()
	c.Del()
	harness.NewModel(changeSize, changeRegion).Check(m, dest.Path)
}

// onlyOriginal: every region reads as the source's first contents, or not at all, unless all can be
// read.
func onlyOriginal(c *harness.Clone, readable bool) {
	c.M.Helper()
	v, buf, want := c.M.Open(c.Path, os.O_RDONLY), c.M.Buffer(int(changeRegion)), make([]byte, changeRegion)
	defer v.Close()
	failed := 0
	for off := int64(0); off < changeSize; off += changeRegion {
		harness.Fill(want, off, harness.Original)
		err := v.Read(buf, off)
		switch {
		case errors.Is(err, unix.EIO):
			failed++
		case err != nil:
			c.M.Fatal(err)
		case !bytes.Equal(buf, want):
			c.M.Fatalf("the region at byte %d holds %x", off, buf[:16])
		}
	}
	if s := c.Status(); failed == 0 != (readable || s.Bytes.Remaining == 0) {
		c.M.Errorf("%d regions cannot be read, of %+v", failed, s.Bytes)
	}
}
