//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A destination that fails writes, flushes, or has no space left. (A source that does is in
// source_errors_test.go.)

// TestDestWriteErrors: a write that the destination fails is the writer's to know, and marks
// nothing; hydration stalls there and nowhere else; when the destination is sound again, all goes
// on.
func TestDestWriteErrors(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	const region, size, bad, end = 64 * harness.KiB, 8 * harness.MiB, 2 * harness.MiB, 2*harness.MiB + 128*harness.KiB // two regions
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.FaultyDisk("dst", size/harness.MiB)
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest.Disk, harness.Junk)
	c := m.AddClone(source, dest.Disk, m.Missing("meta"), "--region-size", harness.KiBText(region), "--no-hydration", "--retries", "1")
	w := harness.NewModel(size, region)
	v, buf := m.Open(c.Path, os.O_RDWR), m.Buffer(int(region))
	c.NoError(w.Write(v, buf, bad, true))
	dest.Fail(bad, end)
	for what, err := range map[string]error{
		"a whole unhydrated region":   v.Write(buf, bad+region),
		"a part of one":               v.Write(buf[:harness.Sector], bad+region+harness.Sector),
		"a hydrated region":           v.Write(buf, bad),
		"zeroing of a hydrated one":   v.Zero(bad, region),
		"a region beside them, whole": w.Write(v, buf, end, false),
	} {
		if want := what != "a region beside them, whole"; errors.Is(err, unix.EIO) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	s := c.Status()
	if s.Mode != "rw" || len(s.Failed) != 1 || s.Failed[0].Side != "destination" || s.Failed[0].Requests < 4 {
		t.Errorf("mode %s, failed %+v", s.Mode, s.Failed)
	}
	c.Event("dest-error")
	w.CheckBut(m, c.Path, bad, bad+region) // the second bad region is the source's as before
	c.HydrateFast()
	c.WaitStalled(harness.BadRange{Offset: bad + region, Length: region})
	if s := c.Status(); !strings.Contains(s.Reason, "the destination: ") {
		t.Errorf("stalled: %s", s.Reason)
	}
	m.ExpectFailure(m.Try(harness.Command, "wait", c.Name), exit.Dest, "stalled")
	dest.Mend()
	w.Check(m, c.Path)
	c.NoError(w.Write(v, buf[:harness.Sector], bad+region, true))
	v.Close()
	m.MustRun(harness.Command, "resume", c.Name)
	c.WaitHydrated()
	w.Check(m, c.Path)
	c.Del()
	w.Check(m, dest.Path)
}

// TestDestFlushFails: a flush of the destination that fails, or a durable write, is a failure of
// the metadata (I10): what was written since the flush before is not known to be there, and a flush
// that succeeds later proves nothing.
func TestDestFlushFails(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	m.MustRun("modprobe", "dm-flakey")
	for _, fua := range []bool{false, true} {
		failFlush(m, fua)
	}
}

func failFlush(m *harness.Machine, fua bool) {
	const region, size = 64 * harness.KiB, 8 * harness.MiB
	role := map[bool]string{false: "flush", true: "fua"}[fua]
	source, under := m.NullBlk(role+"src", harness.NullOptions{MiB: size / harness.MiB}), m.NullBlk(role+"dst", harness.NullOptions{MiB: size / harness.MiB, Cache: 1})
	dest := m.Linear(role, under, size)
	m.FillDisk(source, harness.Original)
	c := m.AddClone(source, dest, m.Missing(role+"meta"), "--region-size", harness.KiBText(region), "--no-hydration")
	v, buf := m.Open(c.Path, os.O_RDWR), m.Buffer(int(region))
	w := harness.NewModel(size, region)
	c.NoError(w.Write(v, buf, 0, true))
	c.NoError(w.Write(v, buf, region, false))
	c.NoError(v.Flush())
	c.NoError(w.Write(v, buf, region, false)) // else a flush would not reach the destination
	m.Reload(role, fmt.Sprintf("0 %d flakey %s 0 0 3600 1 error_writes", size/harness.Sector, under.Path))
	provoke := v.Flush
	if fua {
		provoke = func() error { return v.WriteDurable(buf[:harness.Sector], region) }
	}
	if err := provoke(); !errors.Is(err, unix.EIO) {
		m.Fatalf("%s: %v, expected EIO", role, err)
	}
	m.Works(role, size, under)
	if s := c.Status(); s.Mode != "ro" || s.State != "failed" || !strings.Contains(s.Reason, "flush") {
		m.Errorf("%s: mode %s, state %s: %s", role, s.Mode, s.State, s.Reason)
	}
	for what, err := range map[string]error{"a flush": v.Flush(), "a write that needs a mark": v.Write(buf, 5*region)} {
		if !errors.Is(err, unix.EIO) {
			m.Errorf("%s: %s after it: %v, expected EIO", role, what, err)
		}
	}
	c.NoError(w.Write(v, buf, 0, false))
	v.Close()
	w.Check(m, c.Path)
	m.ExpectFailure(m.Try(harness.Command, "del", c.Name), exit.OK, "no clean flag")
	c.Path = ""
	o := m.Try(harness.Command, append([]string{"add", c.Name}, c.Args...)...)
	m.ExpectFailure(o, exit.OK, "A flush of the destination failed", "status "+c.Name)
	c.Path = harness.Opened(o.Stdout)
	if s := c.Status(); s.Mode != "ro" {
		m.Errorf("%s: mode %s after a restart", role, s.Mode)
	}
	w.Check(m, c.Path)
	m.ExpectFailure(m.Try(harness.Command, "del", c.Name), exit.OK, "no clean flag")
	c.Path = ""
	c.Args = append(c.Args, "--force")
	c.Add()
	c.HydrateFast()
	c.WaitHydrated()
	c.Del()
}

// TestDestCutShort: a destination that becomes shorter under a complete clone is not called
// complete any more, and is not handed over.
func TestDestCutShort(t *testing.T) {
	runs.On(t, "6.12")
	m := harness.New(t)
	m.Dir = m.Ext4Dir(32)
	const size = 8 * harness.MiB
	half := strconv.FormatInt(size/2, 10)
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.Missing("dest")
	m.FillDisk(source, harness.Original)
	c := m.AddClone(source, dest, m.Missing("meta"))
	c.WaitHydrated()
	before := strconv.FormatUint(c.Status().LastEvent, 10)
	if err := os.Truncate(dest.Path, size/2); err != nil {
		t.Fatal(err)
	}
	m.WaitFor(harness.StandLimit, "the status to say so", func() error {
		if s := c.Status(); s.State != "failed" || !strings.Contains(s.Reason, "shorter") || !strings.Contains(s.Reason, half) {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	m.ExpectFailure(m.Try(harness.Command, "finish", c.Name), exit.Refused, half)
	m.ExpectFailure(m.Try(harness.Command, "wait", c.Name), exit.Dest, "shorter")
	if event := m.MustRun(harness.Command, "wait", c.Name, "--for", "event", "--after", before, "--timeout", "30s"); !strings.Contains(event, "dest-error") {
		t.Errorf("the event is %s", event)
	}
	c.Del()
}

var (
	ext3  = harness.FSKind{Name: "ext4", Mkfs: []string{"mkfs.ext4", "-q", "-F", "-O", "^extent,^64bit"}} // cannot reserve space
	tmpfs = harness.FSKind{Name: "tmpfs"}
)

// fullBench is a small file system for a destination, and what fills it up.
type fullBench struct {
	*harness.Machine
	kind   harness.FSKind
	root   string
	filler string
}

// newFullBench makes a file system of 64 MiB.
func newFullBench(t *testing.T, kind harness.FSKind) *fullBench {
	b := &fullBench{Machine: harness.New(t), kind: kind}
	tree := &harness.FileTree{M: b.Machine, Kind: kind}
	if kind.Name == tmpfs.Name {
		b.root = filepath.Join(b.Dir, "full")
		if err := errors.Join(os.Mkdir(b.root, 0o700), unix.Mount("tmpfs", b.root, "tmpfs", 0, "size=64m")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(b.root, 0) })
	} else {
		under := b.NullBlk("under", harness.NullOptions{MiB: 64})
		b.MustRun(kind.Mkfs[0], append(kind.Mkfs[1:], under.Path)...)
		tree.Mount(under.Path)
		b.root = tree.Root
	}
	b.filler = filepath.Join(b.root, "filler")
	return b
}

// fillUp leaves no space.
func (b *fullBench) fillUp() {
	b.Helper()
	f, err := os.OpenFile(b.filler, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for size := harness.MiB; size >= 4*harness.KiB; {
		if _, err := f.Write(make([]byte, size)); err == nil {
			err = f.Sync()
			if err == nil {
				continue
			}
		} else if !errors.Is(err, unix.ENOSPC) {
			b.Fatal(err)
		}
		size /= 4
	}
}

// free gives the space back.
func (b *fullBench) free() {
	b.Helper()
	if err := os.Remove(b.filler); err != nil {
		b.Fatal(err)
	}
	unix.Sync()
}

// TestDestTooLarge: a new destination that does not fit is refused, and nothing is left of it.
func TestDestTooLarge(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	for name, kind := range map[string]harness.FSKind{"Ext4": harness.Ext4, "XFS": harness.XFS, "Btrfs": harness.Btrfs, "Ext3": ext3, "Tmpfs": tmpfs} {
		t.Run(name, func(t *testing.T) {
			b := newFullBench(t, kind)
			source := b.NullBlk("src", harness.NullOptions{MiB: 128})
			dest := &harness.Disk{M: &b.Machine.Devices, Path: filepath.Join(b.root, "dest")}
			c := b.NewClone(source, dest, b.Missing("meta"))
			b.ExpectFailure(b.Try(harness.Command, append([]string{"add", c.Name}, c.Args...)...), exit.Dest, "no space left on device", dest.Path)
			for _, path := range []string{dest.Path, filepath.Join(b.Dir, "meta")} {
				if _, err := os.Stat(path); err == nil {
					t.Errorf("%s is left", path)
				}
			}
		})
	}
}

// TestDestReserved: a destination that was made has its space, whatever becomes of its file system.
func TestDestReserved(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	for name, kind := range map[string]harness.FSKind{"Ext4": harness.Ext4, "XFS": harness.XFS} {
		t.Run(name, func(t *testing.T) {
			b := newFullBench(t, kind)
			source := b.NullBlk("src", harness.NullOptions{MiB: 16})
			b.FillDisk(source, harness.Original)
			dest := &harness.Disk{M: &b.Machine.Devices, Path: filepath.Join(b.root, "dest")}
			c := b.AddClone(source, dest, b.Missing("meta"), "--no-hydration")
			b.fillUp()
			w := harness.NewModel(source.Size, 4*harness.KiB)
			v, buf := b.Open(c.Path, os.O_RDWR), b.Buffer(int(harness.MiB))
			c.NoError(w.Write(v, buf, harness.MiB, true))
			c.NoError(w.Write(v, buf, harness.MiB+harness.Sector, true))
			v.Close()
			c.HydrateFast()
			c.WaitHydrated()
			c.Del()
			w.Check(b.Machine, dest.Path)
		})
	}
}

// TestDestFull: where the destination's space was not reserved, its file system is full. Writers
// get ENOSPC and nothing is marked; hydration stalls and says so; with space again, resume goes on.
func TestDestFull(t *testing.T) {
	runs.On(t, "6.18", runs.Sampled)
	for name, kind := range map[string]harness.FSKind{"Ext4": harness.Ext4, "Btrfs": harness.Btrfs, "Tmpfs": tmpfs} {
		t.Run(name, func(t *testing.T) { testDestFull(t, kind) })
	}
}

func testDestFull(t *testing.T, kind harness.FSKind) {
	b := newFullBench(t, kind)
	const region, size = 64 * harness.KiB, 16 * harness.MiB
	source := b.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB, Blocksize: 4096}) // some of them have no smaller ones
	b.FillDisk(source, harness.Original)
	dest := &harness.Disk{M: &b.Machine.Devices, Path: filepath.Join(b.root, "dest"), Size: size}
	if err := errors.Join(os.WriteFile(dest.Path, nil, 0o600), os.Truncate(dest.Path, size)); err != nil {
		t.Fatal(err)
	}
	c := b.AddClone(source, dest, b.Missing("meta"), "--region-size", harness.KiBText(region), "--no-hydration")
	b.fillUp()
	w := harness.NewModel(size, region)
	v, buf := b.Open(c.Path, os.O_RDWR), b.Buffer(int(harness.MiB))
	if err := v.Write(buf, harness.MiB); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write without space: %v", err)
	}
	if err := v.WriteDurable(buf[:4096], 3*harness.MiB); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a durable write without space: %v", err)
	}
	w.Check(b.Machine, c.Path)
	c.HydrateFast()
	b.WaitFor(harness.HydrateLimit, "hydration to be stalled", func() error {
		if s := c.Status(); s.State != "stalled" || !strings.Contains(s.Reason, "no space left on device") {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	b.ExpectFailure(b.Try(harness.Command, "wait", c.Name), exit.Dest, "no space left on device", dest.Path)
	if s := c.Status(); s.Mode != "rw" {
		t.Errorf("mode %s", s.Mode)
	}
	b.free()
	c.NoError(w.Write(v, buf, harness.MiB, true))
	v.Close()
	b.MustRun(harness.Command, "resume", c.Name)
	c.WaitHydrated()
	w.Check(b.Machine, c.Path)
	c.Del()
	w.Check(b.Machine, dest.Path)
}
