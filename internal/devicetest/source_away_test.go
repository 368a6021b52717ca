//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// A source that goes away and comes back (I11). Without it hydrated regions are served and whole
// ones can be written; `resume` finds it again, and no other in its place.

// awayBench is a clone whose source is a link, which a test can lead elsewhere.
type awayBench struct {
	*harness.Clone
	link  *harness.Disk
	dest  *harness.Disk
	model *harness.Model
}

const awayRegion = 64 * harness.KiB

// newAwayBench makes the clone of source, with region 1 written and 3 written in part.
func newAwayBench(m *harness.Machine, source *harness.Disk, args ...string) *awayBench {
	m.Helper()
	b := &awayBench{link: &harness.Disk{M: &m.Devices, Path: filepath.Join(m.Dir, "source"), Size: source.Size}}
	b.dest = m.NullBlk("dst", harness.NullOptions{MiB: source.Size / harness.MiB})
	m.FillDisk(source, harness.Original)
	m.FillDisk(b.dest, harness.Junk)
	b.model = harness.NewModel(source.Size, awayRegion)
	b.Clone = m.NewClone(b.link, b.dest, m.Missing("meta"),
		append(args, "--region-size", harness.KiBText(awayRegion), "--no-hydration", "--retries", "1")...)
	b.lead(source)
	b.Add()
	v, buf := m.Open(b.Path, os.O_RDWR), m.Buffer(int(awayRegion))
	defer v.Close()
	b.NoError(b.model.Write(v, buf, awayRegion, false))
	b.NoError(b.model.Write(v, buf[:harness.Sector], 3*awayRegion+harness.Sector, true))
	return b
}

// lead makes the link lead to d.
func (b *awayBench) lead(d *harness.Disk) {
	b.M.Helper()
	b.cut()
	if err := os.Symlink(d.Path, b.link.Path); err != nil {
		b.M.Fatal(err)
	}
}

func (b *awayBench) cut() {
	b.M.Helper()
	if err := os.Remove(b.link.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.M.Fatal(err)
	}
}

// served checks what a clone does while its source is away. Regions 1 and 3 are hydrated; region,
// which is not, is written whole.
func (b *awayBench) served(region int64) {
	b.M.Helper()
	v, buf := b.M.Open(b.Path, os.O_RDWR), b.M.Buffer(int(awayRegion))
	defer v.Close()
	b.NoError(b.model.Read(v, buf, awayRegion))
	b.NoError(b.model.Read(v, buf, 3*awayRegion))
	b.NoError(b.model.Write(v, buf, region*awayRegion, true))
	b.NoError(b.model.Read(v, buf, region*awayRegion))
	if err := v.Read(buf[:harness.Sector], 2*awayRegion); !errors.Is(err, unix.EIO) {
		b.M.Errorf("a read of what only the source has: %v, expected EIO", err)
	}
	if err := v.Write(buf[:harness.Sector], 2*awayRegion); !errors.Is(err, unix.EIO) {
		b.M.Errorf("a write to a part of what only the source has: %v, expected EIO", err)
	}
}

// stalled waits for the state, with this in its reason.
func (b *awayBench) stalled(reason string) {
	b.M.Helper()
	b.M.WaitFor(harness.HydrateLimit, "hydration to be stalled", func() error {
		if s := b.Status(); s.State != "stalled" || !strings.Contains(s.Reason, reason) {
			return fmt.Errorf("state %s: %s", s.State, s.Reason)
		}
		return nil
	})
	b.M.ExpectFailure(b.M.Try(harness.Command, "wait", b.Name), exit.Source, "stalled")
}

// refused leads the link to what is not the source: resume says so, and nothing changes.
func (b *awayBench) refused(d *harness.Disk, says string) {
	b.M.Helper()
	b.lead(d)
	b.M.ExpectFailure(b.M.Try(harness.Command, "resume", b.Name), exit.Source, says)
	if s := b.Status(); s.State != "stalled" {
		b.M.Errorf("after a resume that was refused it is %s", s.State)
	}
}

// finish hydrates the rest and compares the destination.
func (b *awayBench) finish() {
	b.M.Helper()
	b.model.Check(b.M, b.Path)
	b.HydrateFast()
	b.WaitHydrated()
	b.Del()
	b.model.Check(b.M, b.dest.Path)
}

func attach(d *harness.Disk) {
	d.M.Helper()
	d.M.WriteFile(filepath.Join(harness.NullBlkDir, d.Name, "power"), "1")
	d.M.Block(d.Path)
}

// TestSourceComesBack: a device was removed and made again; in between, others stood in its place.
func TestSourceComesBack(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	const size = 8
	source := m.NullBlk("src", harness.NullOptions{MiB: size})
	other, small := m.NullBlk("oth", harness.NullOptions{MiB: size}), m.NullBlk("sml", harness.NullOptions{MiB: size / 2})
	b := newAwayBench(m, source)
	m.FillDisk(other, harness.Junk)
	source.Removed()
	b.HydrateFast()
	b.stalled("source")
	b.served(5)
	m.ExpectFailure(m.Try(harness.Command, "resume", b.Name), exit.Source, "no such file")
	b.refused(other, "source sample")
	b.refused(small, "bytes")
	attach(source)
	b.lead(source)
	m.MustRun(harness.Command, "resume", b.Name)
	b.finish()
}

// TestSourceRescanned: a SCSI disk was deleted and found again under another name.
func TestSourceRescanned(t *testing.T) {
	runs.On(t, "7.3")
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	m.MustRun("modprobe", "sd_mod")
	m.MustRun("modprobe", "scsi_debug", "dev_size_mb=8", "delay=0")
	t.Cleanup(func() { m.MustRun("modprobe", "-r", "scsi_debug") })
	source := scsiDebug(m)
	b := newAwayBench(m, source)
	m.WriteFile(filepath.Join("/sys/block", source.Name, "device/delete"), "1")
	b.HydrateFast()
	b.stalled("source")
	b.served(5)
	hosts, err := filepath.Glob("/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/scsi_host/host*/scan")
	if err != nil || len(hosts) != 1 {
		t.Fatalf("hosts of scsi_debug: %v (%v)", hosts, err)
	}
	m.WriteFile(hosts[0], "- - -")
	b.lead(scsiDebug(m))
	m.MustRun(harness.Command, "resume", b.Name)
	b.finish()
}

// scsiDebug waits for the disk of scsi_debug.
func scsiDebug(m *harness.Machine) *harness.Disk {
	m.Helper()
	var found []string
	m.WaitFor(harness.CleanLimit, "the disk of scsi_debug", func() error {
		found, _ = filepath.Glob("/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*")
		if len(found) != 1 {
			return fmt.Errorf("%v", found)
		}
		return nil
	})
	return m.Block("/dev/" + filepath.Base(found[0]))
}

// TestSourceReplacedUnderReads: the old source hangs with reads in flight. resume finds another way
// to it, new reads go there; the old ones end when they end, and the old one is then closed.
func TestSourceReplacedUnderReads(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	under := m.NullBlk("src", harness.NullOptions{MiB: 8})
	old, next := m.Linear("old", under, under.Size), m.Linear("next", under, under.Size)
	b := newAwayBench(m, old, "--queues", "2")
	hung := &harness.FaultyDisk{Disk: old, Mapper: "old", Under: under}
	hung.Hold()
	var readers sync.WaitGroup
	const inFlight = 16
	for i := range int64(inFlight) {
		v, buf := m.Open(b.Path, os.O_RDONLY), m.Buffer(4096)
		readers.Go(func() {
			b.NoError(b.model.Read(v, buf, 10*awayRegion+i*2*4096))
			v.Close()
		})
	}
	release := sync.OnceFunc(func() {
		hung.Release()
		readers.Wait()
	})
	m.Cleanup(release) // of a test that fails: before the readers' buffers go
	m.WaitFor(harness.CleanLimit, "reads in flight", func() error {
		if n := reading(m.Block(b.Path)); n != inFlight {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	b.lead(next)
	b.Message("hydration_threshold", "0")
	m.MustRun(harness.Command, "resume", b.Name)
	v, buf := m.Open(b.Path, os.O_RDONLY), m.Buffer(4096)
	b.NoError(b.model.Read(v, buf, 20*awayRegion))
	v.Close()
	if n := reading(m.Block(b.Path)); n != inFlight {
		t.Errorf("%d reads are in flight, %d were", n, inFlight)
	}
	if m.OpenCount("old") == 0 {
		t.Error("the old source was closed with reads in flight")
	}
	release()
	m.WaitFor(harness.CleanLimit, "the old source to be closed", func() error {
		if n := m.OpenCount("old"); n != 0 {
			return fmt.Errorf("it is open %d times", n)
		}
		return nil
	})
	b.finish()
}

// reading is how many reads are in flight.
func reading(d *harness.Disk) (reads int) {
	d.M.Helper()
	if _, err := fmt.Sscan(d.M.ReadFile(filepath.Join("/sys/block", d.Name, "inflight")), &reads); err != nil {
		d.M.Fatal(err)
	}
	return reads
}

// TestOpenWithoutSource: add of a clone that is there, and recover, go on without the source; a new
// clone is not made without one.
func TestOpenWithoutSource(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	source, other := m.NullBlk("src", harness.NullOptions{MiB: 8}), m.NullBlk("oth", harness.NullOptions{MiB: 8})
	b := newAwayBench(m, source)
	m.FillDisk(other, harness.Junk)
	b.Del()
	b.cut()

	fresh := m.NewClone(b.link, m.NullBlk("new", harness.NullOptions{MiB: 8}), m.Missing("newmeta"))
	m.ExpectFailure(m.Try(harness.Command, append([]string{"add", fresh.Name}, fresh.Args...)...), exit.Source, b.link.Path)
	if _, err := os.Stat(filepath.Join(m.Dir, "newmeta")); err == nil {
		t.Error("metadata was made without a source")
	}
	m.ExpectFailure(m.Try(harness.Command, append([]string{"add", b.Name}, append(b.Args, "--create", "--force")...)...), exit.Source, b.link.Path)

	o := m.Try(harness.Command, append([]string{"add", b.Name}, b.Args...)...)
	b.Path = harness.Opened(m.Must(o, "add"))
	if !strings.Contains(o.Stderr, "warning: going on without the source") {
		t.Errorf("add says %q", o.Stderr)
	}
	b.stalled("no such file")
	b.Event("stalled")
	b.served(5)
	b.End(syscall.SIGKILL)
	o = m.Try(harness.Command, "recover", b.Name)
	if m.Must(o, "recover"); !strings.Contains(o.Stderr, "warning: going on without the source") {
		t.Errorf("recover says %q", o.Stderr)
	}
	b.stalled("no such file")
	b.served(6)
	b.refused(other, "source sample")
	b.Del()
	m.ExpectFailure(m.Try(harness.Command, append([]string{"add", b.Name}, b.Args...)...), exit.Metadata, "source")
	b.cut()
	b.Add()
	b.lead(source)
	m.MustRun(harness.Command, "resume", b.Name)
	if s := b.Status(); strings.Contains(strings.Join(s.Warnings, " "), "without the source") {
		t.Errorf("warnings of a clone that has its source: %q", s.Warnings)
	}
	b.finish()
}

// TestCompleteNeedsNoSource: a clone that is complete does not open its source, be it gone or used
// by somebody else.
func TestCompleteNeedsNoSource(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	m := harness.New(t)
	source := m.NullBlk("src", harness.NullOptions{MiB: 8})
	b := newAwayBench(m, source)
	b.HydrateFast()
	b.WaitHydrated()
	b.Del()
	b.cut()
	for _, there := range []bool{false, true} {
		if there {
			b.lead(source)
			m.Linear("holder", source, source.Size)
		}
		o := m.Try(harness.Command, append([]string{"add", b.Name}, b.Args...)...)
		b.Path = harness.Opened(m.Must(o, "add"))
		if s := b.Status(); s.State != "hydrated" || strings.Contains(o.Stderr, "source") {
			t.Errorf("source there: %t: state %s, add says %q", there, s.State, o.Stderr)
		}
		m.MustRun(harness.Command, "resume", b.Name)
		b.model.Check(m, b.Path)
		b.End(syscall.SIGKILL)
		m.MustRun(harness.Command, "recover", b.Name)
		b.model.Check(m, b.Path)
		b.Del()
	}
}

// TestReadsBesideBadBlock: of many reads around a bad block, in flight together, only those fail
// that cover it, though the kernel makes one request of neighbours and the device fails that as a
// whole.
func TestReadsBesideBadBlock(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	const size, block, bad, reads = 8 * harness.MiB, 4096, 4 * harness.MiB, 32
	source := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB, Latency: 2 * time.Millisecond, Depth: 1})
	b := newAwayBench(m, source)
	source.BadBlocks(bad, bad+block)
	m.WriteFile(filepath.Join("/sys/block", m.Block(b.Path).Name, "queue/nomerges"), "2") // requests stay those of their readers
	failed, wrong := make([]int, reads), make([]error, reads)
	var readers sync.WaitGroup
	for i := range reads {
		v, buf := m.Open(b.Path, os.O_RDONLY), m.Buffer(block)
		readers.Go(func() {
			for range harness.Count(20, 400) {
				err := b.model.Read(v, buf, bad+int64(i-reads/2)*block)
				if errors.Is(err, unix.EIO) {
					failed[i]++
				} else if err != nil {
					wrong[i] = err
				}
			}
			v.Close()
		})
	}
	readers.Wait()
	for i := range reads {
		want := 0
		if i == reads/2 {
			want = harness.Count(20, 400)
		}
		if failed[i] != want || wrong[i] != nil {
			t.Errorf("block %+d: %d of its reads failed, not %d (%v)", i-reads/2, failed[i], want, wrong[i])
		}
	}
	b.Del()
}
