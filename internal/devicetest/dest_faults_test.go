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

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"golang.org/x/sys/unix"
)

// A destination that fails writes, flushes, or has no space left. (A source that does is in source_errors_test.go.)

// TestDestWriteErrors: a write that the destination fails is the writer's to know, and marks nothing; hydration
// stalls there and nowhere else; when the destination is sound again, all goes on.
func TestDestWriteErrors(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	const region, size, bad, end = 64 * kib, 8 * mib, 2 * mib, 2*mib + 128*kib // two regions
	source, dest := m.nullBlk("src", nullOptions{mib: size / mib}), m.faultyDisk("dst", size/mib)
	m.fillDisk(source, original)
	m.fillDisk(dest.disk, junk)
	c := m.addClone(source, dest.disk, m.missing("meta"), "--region-size", kibText(region), "--no-hydration", "--retries", "1")
	w := newModel(size, region)
	v, buf := m.open(c.path, os.O_RDWR), m.buffer(int(region))
	c.noError(w.write(v, buf, bad, true))
	dest.fail(bad, end)
	for what, err := range map[string]error{
		"a whole unhydrated region":   v.write(buf, bad+region),
		"a part of one":               v.write(buf[:sector], bad+region+sector),
		"a hydrated region":           v.write(buf, bad),
		"zeroing of a hydrated one":   v.zero(bad, region),
		"a region beside them, whole": w.write(v, buf, end, false),
	} {
		if want := what != "a region beside them, whole"; errors.Is(err, unix.EIO) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	s := c.status()
	if s.Mode != "rw" || len(s.Failed) != 1 || s.Failed[0].Side != "destination" || s.Failed[0].Requests < 4 {
		t.Errorf("mode %s, failed %+v", s.Mode, s.Failed)
	}
	c.event("dest-error")
	w.checkBut(m, c.path, bad, bad+region) // the second bad region is the source's as before
	c.hydrateFast()
	c.waitStalled(badRange{Offset: bad + region, Length: region})
	if s := c.status(); !strings.Contains(s.Reason, "the destination: ") {
		t.Errorf("stalled: %s", s.Reason)
	}
	m.expectFailure(m.try(command, "wait", c.name), exit.Dest, "stalled")
	dest.mend()
	w.check(m, c.path)
	c.noError(w.write(v, buf[:sector], bad+region, true))
	v.close()
	m.run(command, "resume", c.name)
	c.waitHydrated()
	w.check(m, c.path)
	c.del()
	w.check(m, dest.path)
}

// TestDestFlushFails: a flush of the destination that fails, or a durable write, is a failure of the metadata (I10):
// what was written since the flush before is not known to be there, and a flush that succeeds later proves nothing.
func TestDestFlushFails(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	m.run("modprobe", "dm-flakey")
	for _, fua := range []bool{false, true} {
		m.failFlush(fua)
	}
}

func (m *machine) failFlush(fua bool) {
	const region, size = 64 * kib, 8 * mib
	role := map[bool]string{false: "flush", true: "fua"}[fua]
	source, under := m.nullBlk(role+"src", nullOptions{mib: size / mib}), m.nullBlk(role+"dst", nullOptions{mib: size / mib, cache: 1})
	dest := m.linear(role, under, size)
	m.fillDisk(source, original)
	c := m.addClone(source, dest, m.missing(role+"meta"), "--region-size", kibText(region), "--no-hydration")
	v, buf := m.open(c.path, os.O_RDWR), m.buffer(int(region))
	w := newModel(size, region)
	c.noError(w.write(v, buf, 0, true))
	c.noError(w.write(v, buf, region, false))
	c.noError(v.flush())
	m.reload(role, fmt.Sprintf("0 %d flakey %s 0 0 3600 1 error_writes", size/sector, under.path))
	provoke := v.flush
	if fua {
		provoke = func() error { return v.writeDurable(buf[:sector], region) }
	}
	if err := provoke(); !errors.Is(err, unix.EIO) {
		m.Fatalf("%s: %v, expected EIO", role, err)
	}
	m.works(role, size, under)
	if s := c.status(); s.Mode != "ro" || s.State != "failed" || !strings.Contains(s.Reason, "flush") {
		m.Errorf("%s: mode %s, state %s: %s", role, s.Mode, s.State, s.Reason)
	}
	for what, err := range map[string]error{"a flush": v.flush(), "a write that needs a mark": v.write(buf, 5*region)} {
		if !errors.Is(err, unix.EIO) {
			m.Errorf("%s: %s after it: %v, expected EIO", role, what, err)
		}
	}
	c.noError(w.write(v, buf, 0, false))
	v.close()
	w.check(m, c.path)
	m.expectFailure(m.try(command, "del", c.name), exit.OK, "no clean mark")
	c.path = ""
	o := m.try(command, append([]string{"add", c.name}, c.args...)...)
	m.expectFailure(o, exit.OK, "A flush of the destination failed", "status "+c.name)
	c.path = strings.TrimSpace(o.stdout)
	if s := c.status(); s.Mode != "ro" {
		m.Errorf("%s: mode %s after a restart", role, s.Mode)
	}
	w.check(m, c.path)
	m.expectFailure(m.try(command, "del", c.name), exit.OK, "no clean mark")
	c.path = ""
	c.args = append(c.args, "--force")
	c.add()
	c.hydrateFast()
	c.waitHydrated()
	c.del()
}

// TestDestCutShort: a destination that becomes shorter under a complete clone is not called complete any more, and is not
// handed over.
func TestDestCutShort(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	m.dir = m.ext4Folder(32)
	const size = 8 * mib
	half := strconv.FormatInt(size/2, 10)
	source, dest := m.nullBlk("src", nullOptions{mib: size / mib}), m.missing("dest")
	m.fillDisk(source, original)
	c := m.addClone(source, dest, m.missing("meta"))
	c.waitHydrated()
	before := strconv.FormatUint(c.status().LastEvent, 10)
	if err := os.Truncate(dest.path, size/2); err != nil {
		t.Fatal(err)
	}
	m.waitFor(standLimit, "the status to say so", func() error {
		if s := c.status(); s.State != "failed" || !strings.Contains(s.Reason, "shorter") || !strings.Contains(s.Reason, half) {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	m.expectFailure(m.try(command, "finish", c.name), exit.Refused, half)
	m.expectFailure(m.try(command, "wait", c.name), exit.Dest, "shorter")
	if event := m.run(command, "wait", c.name, "--for", "event", "--after", before, "--timeout", "30s"); !strings.Contains(event, "dest-error") {
		t.Errorf("the event is %s", event)
	}
	c.del()
}

var (
	ext3  = fsKind{"ext4", []string{"mkfs.ext4", "-q", "-F", "-O", "^extent,^64bit"}, nil} // cannot reserve space
	tmpfs = fsKind{name: "tmpfs"}
)

// fullBench is a small file system for a destination, and what fills it up.
type fullBench struct {
	*machine
	kind   fsKind
	root   string
	filler string
}

// newFullBench makes a file system of 64 MiB.
func newFullBench(t *testing.T, kind fsKind) *fullBench {
	b := &fullBench{machine: newMachine(t), kind: kind}
	tree := &fileTree{m: b.machine, kind: kind}
	if kind.name == tmpfs.name {
		b.root = filepath.Join(b.dir, "full")
		if err := errors.Join(os.Mkdir(b.root, 0o700), unix.Mount("tmpfs", b.root, "tmpfs", 0, "size=64m")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(b.root, 0) })
	} else {
		under := b.nullBlk("under", nullOptions{mib: 64})
		b.run(kind.mkfs[0], append(kind.mkfs[1:], under.path)...)
		tree.mount(under.path)
		b.root = tree.root
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
	for size := mib; size >= 4*kib; {
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
	runs.On(t, "7.3")
	for name, kind := range map[string]fsKind{"Ext4": ext4, "XFS": xfs, "Btrfs": btrfs, "Ext3": ext3, "Tmpfs": tmpfs} {
		t.Run(name, func(t *testing.T) {
			b := newFullBench(t, kind)
			source := b.nullBlk("src", nullOptions{mib: 128})
			dest := &disk{m: b.machine, path: filepath.Join(b.root, "dest")}
			c := b.newClone(source, dest, b.missing("meta"))
			b.expectFailure(b.try(command, append([]string{"add", c.name}, c.args...)...), exit.Dest, "no space left on device", dest.path)
			for _, path := range []string{dest.path, filepath.Join(b.dir, "meta")} {
				if _, err := os.Stat(path); err == nil {
					t.Errorf("%s is left", path)
				}
			}
		})
	}
}

// TestDestReserved: a destination that was made has its space, whatever becomes of its file system.
func TestDestReserved(t *testing.T) {
	runs.On(t, "6.12")
	for name, kind := range map[string]fsKind{"Ext4": ext4, "XFS": xfs} {
		t.Run(name, func(t *testing.T) {
			b := newFullBench(t, kind)
			source := b.nullBlk("src", nullOptions{mib: 16})
			b.fillDisk(source, original)
			dest := &disk{m: b.machine, path: filepath.Join(b.root, "dest")}
			c := b.addClone(source, dest, b.missing("meta"), "--no-hydration")
			b.fillUp()
			w := newModel(source.size, 4*kib)
			v, buf := b.open(c.path, os.O_RDWR), b.buffer(int(mib))
			c.noError(w.write(v, buf, mib, true))
			c.noError(w.write(v, buf, mib+sector, true))
			v.close()
			c.hydrateFast()
			c.waitHydrated()
			c.del()
			w.check(b.machine, dest.path)
		})
	}
}

// TestDestFull: where the destination's space was not reserved, its file system is full. Writers get ENOSPC and
// nothing is marked; hydration stalls and says so; with space again, resume goes on.
func TestDestFull(t *testing.T) {
	runs.On(t, "6.18")
	for name, kind := range map[string]fsKind{"Ext4": ext4, "Btrfs": btrfs, "Tmpfs": tmpfs} {
		t.Run(name, func(t *testing.T) { testDestFull(t, kind) })
	}
}

func testDestFull(t *testing.T, kind fsKind) {
	b := newFullBench(t, kind)
	const region, size = 64 * kib, 16 * mib
	source := b.nullBlk("src", nullOptions{mib: size / mib, blocksize: 4096}) // some of them have no smaller ones
	b.fillDisk(source, original)
	dest := &disk{m: b.machine, path: filepath.Join(b.root, "dest"), size: size}
	if err := errors.Join(os.WriteFile(dest.path, nil, 0o600), os.Truncate(dest.path, size)); err != nil {
		t.Fatal(err)
	}
	c := b.addClone(source, dest, b.missing("meta"), "--region-size", kibText(region), "--no-hydration")
	b.fillUp()
	w := newModel(size, region)
	v, buf := b.open(c.path, os.O_RDWR), b.buffer(int(mib))
	if err := v.write(buf, mib); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write without space: %v", err)
	}
	if err := v.writeDurable(buf[:4096], 3*mib); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a durable write without space: %v", err)
	}
	w.check(b.machine, c.path)
	c.hydrateFast()
	b.waitFor(hydrateLimit, "hydration to be stalled", func() error {
		if s := c.status(); s.State != "stalled" || !strings.Contains(s.Reason, "no space left on device") {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	b.expectFailure(b.try(command, "wait", c.name), exit.Dest, "no space left on device", dest.path)
	if s := c.status(); s.Mode != "rw" {
		t.Errorf("mode %s", s.Mode)
	}
	b.free()
	c.noError(w.write(v, buf, mib, true))
	v.close()
	b.run(command, "resume", c.name)
	c.waitHydrated()
	w.check(b.machine, c.path)
	c.del()
	w.check(b.machine, dest.path)
}
