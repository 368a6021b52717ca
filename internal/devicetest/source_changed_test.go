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

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"golang.org/x/sys/unix"
)

// A source file that somebody changes while it is cloned (I14): nothing of what it holds then is ever kept or shown.

// changeSize is the size of the file, of whose bytes a test waits for changeBefore to be hydrated.
const (
	changeSize   = 8 * mib
	changeBefore = mib / 2
	changeRegion = 64 * kib
)

// sourceChange is one way to change the file.
type sourceChange struct {
	name  string
	apply func(m *machine, path, copy string)
	// renamed: the file that is open is as it was, and resume goes on with it.
	renamed bool
	// back: the former bytes are in place again, so that resume goes on.
	back bool
	// recovers: a recovery, too, is to find that it has changed.
	recovers bool
}

var sourceChanges = []sourceChange{
	{name: "cp", back: true, apply: func(m *machine, path, copy string) { m.run("cp", copy, path) }},
	{name: "cp-p", back: true, apply: func(m *machine, path, copy string) { m.run("cp", "-p", copy, path) }},
	{name: "other-bytes", recovers: true, apply: func(m *machine, path, _ string) { m.fillFile(path, junk) }},
	{name: "shorter", apply: func(m *machine, path, _ string) { m.truncate(path, changeSize/2) }},
	{name: "odd-end", apply: func(m *machine, path, _ string) { m.truncate(path, changeSize-3000) }},
	{name: "down-and-up", recovers: true, apply: func(m *machine, path, _ string) {
		m.truncate(path, 0)
		m.truncate(path, changeSize)
	}},
	{name: "longer", apply: func(m *machine, path, _ string) { m.truncate(path, 2*changeSize) }},
	{name: "replaced", renamed: true, apply: func(m *machine, path, _ string) {
		m.fillFile(path+".new", junk)
		m.rename(path+".new", path)
	}},
	{name: "moved", back: true, apply: func(m *machine, path, _ string) {
		m.rename(path, path+".old")
		m.fillFile(path, junk)
	}},
}

func (m *machine) truncate(path string, size int64) {
	m.Helper()
	if err := os.Truncate(path, size); err != nil {
		m.Fatal(err)
	}
}

func (m *machine) rename(from, to string) {
	m.Helper()
	if err := os.Rename(from, to); err != nil {
		m.Fatal(err)
	}
}

// fillFile writes a file of changeSize over the one that is there.
func (m *machine) fillFile(path string, v version) {
	m.Helper()
	b := make([]byte, changeSize)
	fill(b, 0, v)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		m.Fatal(err)
	}
}

func TestSourceChangedExt4(t *testing.T) {
	runs.On(t, "6.18")
	testSourceChanged(t, "ext4", false)
}

func TestSourceChangedXFS(t *testing.T) {
	runs.On(t, "6.18")
	testSourceChanged(t, "xfs", false, "cp", "odd-end", "down-and-up", "replaced")
}

func TestSourceChangedTmpfs(t *testing.T) {
	runs.On(t, "7.3")
	testSourceChanged(t, "", false, "cp", "shorter", "down-and-up", "replaced")
}

// TestSourceChangedLoop: the same of a file behind a loop device, of which the block layer tells nothing.
func TestSourceChangedLoop(t *testing.T) {
	runs.On(t, "6.12")
	testSourceChanged(t, "", true, "cp", "shorter", "replaced")
}

// testSourceChanged makes the changes of these names, or all, to a file on such a file system; "" is tmpfs.
func testSourceChanged(t *testing.T, fs string, loop bool, names ...string) {
	m := newMachine(t)
	m.kernel.expect("I/O error")
	dir := m.dir
	if fs != "" {
		dir = m.sourceFS(fs)
	}
	for i, how := range sourceChanges {
		if len(names) == 0 && i%count(2, 1) == 0 || slices.Contains(names, how.name) {
			m.oneChange(dir, how, loop)
		}
	}
}

// sourceFS mounts a file system on a null_blk device.
func (m *machine) sourceFS(fs string) string {
	m.Helper()
	d := m.nullBlk("fs", nullOptions{mib: 512})
	args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q", "-f"}}[fs]
	m.run("mkfs."+fs, append(args, d.path)...)
	dir := filepath.Join(m.dir, fs)
	if err := errors.Join(os.Mkdir(dir, 0o755), unix.Mount(d.path, dir, fs, 0, "")); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { m.run("umount", dir) })
	return dir
}

// oneChange clones a file, changes it while it is hydrated, and looks at all that is there then.
func (m *machine) oneChange(dir string, how sourceChange, loop bool) {
	m.Helper()
	m.Log("-- " + how.name)
	path, copied := filepath.Join(dir, how.name), filepath.Join(dir, how.name+".copy")
	m.fillFile(path, original)
	m.run("cp", "-p", path, copied)
	source := &disk{m: m, path: path, size: changeSize}
	dest := m.nullBlk(how.name, nullOptions{mib: changeSize / mib})
	m.fillDisk(dest, junk)
	if loop {
		source.path = strings.TrimSpace(m.run("losetup", "-f", "--show", "--direct-io=on", "-r", path))
		m.Cleanup(func() { m.run("losetup", "-d", source.path) })
	}
	c := &clone{m: m, name: "test", args: addArgs(source, dest, &disk{m: m, path: filepath.Join(m.dir, how.name+".meta")},
		"--region-size", kibText(changeRegion), "--rate", "512KiB/s", "--min-rate", "none", "--retries", "1")}
	m.Cleanup(c.abandon)
	c.add()
	m.waitFor(hydrateLimit, "a beginning", func() error {
		if s := c.status(); s.Bytes.Hydrated < changeBefore {
			return fmt.Errorf("%d bytes", s.Bytes.Hydrated)
		}
		return nil
	})
	after := c.status().LastEvent
	how.apply(m, path, copied)
	from := time.Now()
	m.waitFor(standLimit, "the change to be noticed", func() error {
		if s := c.status(); s.State != "stalled" || s.LastEvent <= after {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	m.inTime(3*time.Second, how.name+": notice of the change", time.Since(from))
	c.event("stalled")
	c.onlyOriginal(how.renamed)
	m.run(command, "set", c.name, "rate=none")
	if how.back || how.renamed {
		m.run(command, "resume", c.name)
		c.waitHydrated()
		c.del()
		newModel(changeSize, changeRegion).check(m, dest.path)
		return
	}
	m.expectFailure(m.try(command, "resume", c.name), exit.Source) // and not another one
	if how.recovers {
		c.end(syscall.SIGKILL)
		m.run(command, "recover", c.name)
		if s := c.status(); s.State != "stalled" {
			m.Errorf("after a recovery it is %s: %s", s.State, s.Reason)
		}
		c.onlyOriginal(false)
	}
	m.run("cp", copied, path)
	m.run(command, "resume", c.name)
	c.waitHydrated()
	c.del()
	newModel(changeSize, changeRegion).check(m, dest.path)
}

// onlyOriginal: every region reads as the source's first contents, or not at all, unless all can be read.
func (c *clone) onlyOriginal(readable bool) {
	c.m.Helper()
	v, buf, want := c.m.open(c.path, os.O_RDONLY), c.m.buffer(int(changeRegion)), make([]byte, changeRegion)
	defer v.close()
	failed := 0
	for off := int64(0); off < changeSize; off += changeRegion {
		fill(want, off, original)
		err := v.read(buf, off)
		switch {
		case errors.Is(err, unix.EIO):
			failed++
		case err != nil:
			c.m.Fatal(err)
		case !bytes.Equal(buf, want):
			c.m.Fatalf("the region at byte %d holds %x", off, buf[:16])
		}
	}
	if s := c.status(); failed == 0 != (readable || s.Bytes.Remaining == 0) {
		c.m.Errorf("%d regions cannot be read, of %+v", failed, s.Bytes)
	}
}
