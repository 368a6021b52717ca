//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
	"golang.org/x/sys/unix"
)

// A source that goes away and comes back (I11). Without it hydrated regions are served and whole ones can be
// written; `resume` finds it again, and no other in its place.

// awayBench is a clone whose source is a link, which a test can lead elsewhere.
type awayBench struct {
	*clone
	link  *disk
	dest  *disk
	model *model
}

const awayRegion = 64 * kib

// newAwayBench makes the clone of source, with region 1 written and 3 written in part.
func (m *machine) newAwayBench(source *disk, args ...string) *awayBench {
	m.Helper()
	b := &awayBench{link: &disk{m: m, path: filepath.Join(m.dir, "source"), size: source.size}}
	b.dest = m.nullBlk("dst", nullOptions{mib: source.size / mib})
	m.fillDisk(source, original)
	m.fillDisk(b.dest, junk)
	b.model = newModel(source.size, awayRegion)
	b.clone = m.newClone(b.link, b.dest, m.missing("meta"),
		append(args, "--region-size", kibText(awayRegion), "--no-hydration", "--retries", "1")...)
	b.lead(source)
	b.add()
	v, buf := m.open(b.path, os.O_RDWR), m.buffer(int(awayRegion))
	defer v.close()
	b.noError(b.model.write(v, buf, awayRegion, false))
	b.noError(b.model.write(v, buf[:sector], 3*awayRegion+sector, true))
	return b
}

// lead makes the link lead to d.
func (b *awayBench) lead(d *disk) {
	b.m.Helper()
	b.cut()
	if err := os.Symlink(d.path, b.link.path); err != nil {
		b.m.Fatal(err)
	}
}

func (b *awayBench) cut() {
	b.m.Helper()
	if err := os.Remove(b.link.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.m.Fatal(err)
	}
}

// served checks what a clone does while its source is away. Regions 1 and 3 are hydrated; region, which is not, is
// written whole.
func (b *awayBench) served(region int64) {
	b.m.Helper()
	v, buf := b.m.open(b.path, os.O_RDWR), b.m.buffer(int(awayRegion))
	defer v.close()
	b.noError(b.model.read(v, buf, awayRegion))
	b.noError(b.model.read(v, buf, 3*awayRegion))
	b.noError(b.model.write(v, buf, region*awayRegion, true))
	b.noError(b.model.read(v, buf, region*awayRegion))
	if err := v.read(buf[:sector], 2*awayRegion); !errors.Is(err, unix.EIO) {
		b.m.Errorf("a read of what only the source has: %v, expected EIO", err)
	}
	if err := v.write(buf[:sector], 2*awayRegion); !errors.Is(err, unix.EIO) {
		b.m.Errorf("a write to a part of what only the source has: %v, expected EIO", err)
	}
}

// stalled waits for the state, with this in its reason.
func (b *awayBench) stalled(reason string) {
	b.m.Helper()
	b.m.waitFor(hydrateLimit, "hydration to be stalled", func() error {
		if s := b.status(); s.State != "stalled" || !strings.Contains(s.Reason, reason) {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	b.m.expectFailure(b.m.try(command, "wait", b.name), exit.Source, "stalled")
}

// refused leads the link to what is not the source: resume says so, and nothing changes.
func (b *awayBench) refused(d *disk, says string) {
	b.m.Helper()
	b.lead(d)
	b.m.expectFailure(b.m.try(command, "resume", b.name), exit.Source, says)
	if s := b.status(); s.State != "stalled" {
		b.m.Errorf("after a resume that was refused it is %s", s.State)
	}
}

// event waits for an event of that kind since the daemon's start.
func (c *clone) event(kind string) {
	c.m.Helper()
	for after := range 8 {
		ev := c.m.run(command, "wait", c.name, "--for", "event", "--after", strconv.Itoa(after), "--timeout", "30s")
		if strings.Contains(ev, kind) {
			return
		}
	}
	c.m.Errorf("no event %s among the first 8", kind)
}

// finish hydrates the rest and compares the destination.
func (b *awayBench) finish() {
	b.m.Helper()
	b.model.check(b.m, b.path)
	b.hydrateFast()
	b.waitHydrated()
	b.del()
	b.model.check(b.m, b.dest.path)
}

// removed takes a null_blk device away from whoever uses it, and attach makes it anew: another device to the kernel,
// of the same name, number and contents.
func (d *disk) removed() {
	d.m.Helper()
	d.m.writeFile(filepath.Join(nullBlkFolder, d.name, "power"), "0")
}

func (d *disk) attach() {
	d.m.Helper()
	d.m.writeFile(filepath.Join(nullBlkFolder, d.name, "power"), "1")
	d.m.block(d.path)
}

// TestSourceComesBack: a device was removed and made again; in between, others stood in its place.
func TestSourceComesBack(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	const size = 8
	source := m.nullBlk("src", nullOptions{mib: size})
	other, small := m.nullBlk("oth", nullOptions{mib: size}), m.nullBlk("sml", nullOptions{mib: size / 2})
	b := m.newAwayBench(source)
	m.fillDisk(other, junk)
	source.removed()
	b.hydrateFast()
	b.stalled("source")
	b.served(5)
	m.expectFailure(m.try(command, "resume", b.name), exit.Source, "no such file")
	b.refused(other, "source sample")
	b.refused(small, "bytes")
	source.attach()
	b.lead(source)
	m.run(command, "resume", b.name)
	b.finish()
}

// TestSourceRescanned: a SCSI disk was deleted and found again under another name.
func TestSourceRescanned(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	m.run("modprobe", "sd_mod")
	m.run("modprobe", "scsi_debug", "dev_size_mb=8", "delay=0")
	t.Cleanup(func() { m.run("modprobe", "-r", "scsi_debug") })
	source := m.scsiDebug()
	b := m.newAwayBench(source)
	m.writeFile(filepath.Join("/sys/block", source.name, "device/delete"), "1")
	b.hydrateFast()
	b.stalled("source")
	b.served(5)
	hosts, err := filepath.Glob("/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/scsi_host/host*/scan")
	if err != nil || len(hosts) != 1 {
		t.Fatalf("hosts of scsi_debug: %v (%v)", hosts, err)
	}
	m.writeFile(hosts[0], "- - -")
	b.lead(m.scsiDebug())
	m.run(command, "resume", b.name)
	b.finish()
}

// scsiDebug waits for the disk of scsi_debug.
func (m *machine) scsiDebug() *disk {
	m.Helper()
	var found []string
	m.waitFor(cleanLimit, "the disk of scsi_debug", func() error {
		found, _ = filepath.Glob("/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*")
		if len(found) != 1 {
			return fmt.Errorf("%v", found)
		}
		return nil
	})
	return m.block("/dev/" + filepath.Base(found[0]))
}

// TestSourceReplacedUnderReads: the old source hangs with reads in flight. resume finds another way to it, new reads
// go there; the old ones end when they end, and the old one is then closed.
func TestSourceReplacedUnderReads(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	under := m.nullBlk("src", nullOptions{mib: 8})
	old, next := m.linear("old", under, under.size), m.linear("next", under, under.size)
	b := m.newAwayBench(old, "--queues", "2")
	hung := &faultyDisk{disk: old, mapper: "old", under: under}
	hung.hold()
	var readers sync.WaitGroup
	const inFlight = 16
	for i := range int64(inFlight) {
		v, buf := m.open(b.path, os.O_RDONLY), m.buffer(4096)
		readers.Go(func() {
			b.noError(b.model.read(v, buf, 10*awayRegion+i*2*4096))
			v.close()
		})
	}
	release := sync.OnceFunc(func() {
		hung.release()
		readers.Wait()
	})
	m.Cleanup(release) // of a test that fails: before the readers' buffers go
	m.waitFor(cleanLimit, "reads in flight", func() error {
		if n := m.block(b.path).reading(); n != inFlight {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	b.lead(next)
	b.message("hydration_threshold", "0")
	m.run(command, "resume", b.name)
	v, buf := m.open(b.path, os.O_RDONLY), m.buffer(4096)
	b.noError(b.model.read(v, buf, 20*awayRegion))
	v.close()
	if n := m.block(b.path).reading(); n != inFlight {
		t.Errorf("%d reads are in flight, %d were", n, inFlight)
	}
	if m.openCount("old") == 0 {
		t.Error("the old source was closed with reads in flight")
	}
	release()
	m.waitFor(cleanLimit, "the old source to be closed", func() error {
		if n := m.openCount("old"); n != 0 {
			return fmt.Errorf("it is open %d times", n)
		}
		return nil
	})
	b.finish()
}

// openCount is how often a device-mapper device is open.
func (m *machine) openCount(name string) (n int) {
	m.Helper()
	out := m.run("dmsetup", "info", "--columns", "--noheadings", "-o", "open", name)
	if _, err := fmt.Sscan(out, &n); err != nil {
		m.Fatalf("open count of %s: %q", name, out)
	}
	return n
}

// reading is how many reads are in flight.
func (d *disk) reading() (reads int) {
	d.m.Helper()
	if _, err := fmt.Sscan(d.m.readFile(filepath.Join("/sys/block", d.name, "inflight")), &reads); err != nil {
		d.m.Fatal(err)
	}
	return reads
}

// TestOpenWithoutSource: add of a clone that is there, and recover, go on without the source; a new clone is not made
// without one.
func TestOpenWithoutSource(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	source, other := m.nullBlk("src", nullOptions{mib: 8}), m.nullBlk("oth", nullOptions{mib: 8})
	b := m.newAwayBench(source)
	m.fillDisk(other, junk)
	b.del()
	b.cut()

	fresh := m.newClone(b.link, m.nullBlk("new", nullOptions{mib: 8}), m.missing("newmeta"))
	m.expectFailure(m.try(command, append([]string{"add", fresh.name}, fresh.args...)...), exit.Source, b.link.path)
	if _, err := os.Stat(filepath.Join(m.dir, "newmeta")); err == nil {
		t.Error("metadata were made without a source")
	}
	m.expectFailure(m.try(command, append([]string{"add", b.name}, append(b.args, "--create", "--force")...)...), exit.Source, b.link.path)

	o := m.try(command, append([]string{"add", b.name}, b.args...)...)
	b.path = strings.TrimSpace(m.must(o, "add"))
	if !strings.Contains(o.stderr, "warning: going on without the source") {
		t.Errorf("add says %q", o.stderr)
	}
	b.stalled("no such file")
	b.event("stalled")
	b.served(5)
	b.end(syscall.SIGKILL)
	o = m.try(command, "recover", b.name)
	if m.must(o, "recover"); !strings.Contains(o.stderr, "warning: going on without the source") {
		t.Errorf("recover says %q", o.stderr)
	}
	b.stalled("no such file")
	b.served(6)
	b.refused(other, "source sample")
	b.del()
	m.expectFailure(m.try(command, append([]string{"add", b.name}, b.args...)...), exit.Metadata, "source")
	b.cut()
	b.add()
	b.lead(source)
	m.run(command, "resume", b.name)
	if s := b.status(); strings.Contains(strings.Join(s.Warnings, " "), "without the source") {
		t.Errorf("warnings of a clone that has its source: %q", s.Warnings)
	}
	b.finish()
}

// TestCompleteNeedsNoSource: a clone that is complete does not open its source, be it gone or used by somebody else.
func TestCompleteNeedsNoSource(t *testing.T) {
	runs.On(t, "7.3")
	m := newMachine(t)
	source := m.nullBlk("src", nullOptions{mib: 8})
	b := m.newAwayBench(source)
	b.hydrateFast()
	b.waitHydrated()
	b.del()
	b.cut()
	for _, there := range []bool{false, true} {
		if there {
			b.lead(source)
			m.linear("holder", source, source.size)
		}
		o := m.try(command, append([]string{"add", b.name}, b.args...)...)
		b.path = strings.TrimSpace(m.must(o, "add"))
		if s := b.status(); s.State != "hydrated" || strings.Contains(o.stderr, "source") {
			t.Errorf("source there: %t: state %s, add says %q", there, s.State, o.stderr)
		}
		m.run(command, "resume", b.name)
		b.model.check(m, b.path)
		b.end(syscall.SIGKILL)
		m.run(command, "recover", b.name)
		b.model.check(m, b.path)
		b.del()
	}
}

// TestReadsBesideBadBlock: of many reads around a bad block, in flight together, only those fail that cover it,
// though the kernel makes one request of neighbours and the device fails that as a whole.
func TestReadsBesideBadBlock(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	const size, block, bad, reads = 8 * mib, 4096, 4 * mib, 32
	source := m.nullBlk("src", nullOptions{mib: size / mib, latency: 2 * time.Millisecond, depth: 1})
	b := m.newAwayBench(source)
	source.badBlocks(bad, bad+block)
	m.writeFile(filepath.Join("/sys/block", m.block(b.path).name, "queue/nomerges"), "2") // requests stay those of their readers
	failed, wrong := make([]int, reads), make([]error, reads)
	var readers sync.WaitGroup
	for i := range reads {
		v, buf := m.open(b.path, os.O_RDONLY), m.buffer(block)
		readers.Go(func() {
			for range count(20, 400) {
				err := b.model.read(v, buf, bad+int64(i-reads/2)*block)
				if errors.Is(err, unix.EIO) {
					failed[i]++
				} else if err != nil {
					wrong[i] = err
				}
			}
			v.close()
		})
	}
	readers.Wait()
	for i := range reads {
		want := 0
		if i == reads/2 {
			want = count(20, 400)
		}
		if failed[i] != want || wrong[i] != nil {
			t.Errorf("block %+d: %d of its reads failed, not %d (%v)", i-reads/2, failed[i], want, wrong[i])
		}
	}
	b.del()
}
