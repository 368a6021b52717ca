//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The late write (I7): what a daemon had in flight when it died lands after the next one has begun,
// unless that waits. Here it lands exactly when the test says so. The daemon that is to die is put
// into a cgroup that may write two bytes a second: what it writes stays in the block layer, in
// front of the device, also when the process is gone; the next daemon is in no such group and would
// overtake. (dm-delay alone shows no harm: it keeps the order of writes, so one that is late lands
// before all that come after it.) Both devices are dm-delay besides, whose count of requests in
// flight shows that there are late ones.

// Delays of writes, in milliseconds.
const (
	destDelay     = 300
	metadataDelay = 100
)

// slowGroup is a cgroup whose members may be kept from writing to devices.
type slowGroup struct {
	m   *harness.Machine
	dir string
}

func newSlowGroup(m *harness.Machine) *slowGroup {
	m.Helper()
	root := m.MountGroups()
	m.WriteFile(filepath.Join(root, "cgroup.subtree_control"), "+io")
	g := &slowGroup{m: m, dir: filepath.Join(root, "slow")}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = os.Remove(g.dir) })
	return g
}

// hold keeps back what the process writes to d from now on, until release.
func (g *slowGroup) hold(pid int, d *harness.Disk) {
	g.m.Helper()
	g.limit(d, "2") // the least that there is
	g.m.Cleanup(func() { g.release(d) })
	g.m.WriteFile(filepath.Join(g.dir, "cgroup.procs"), fmt.Sprint(pid))
}

// release lets go what was held, also of a process that is dead.
func (g *slowGroup) release(d *harness.Disk) {
	g.m.Helper()
	g.limit(d, "max")
}

// limit sets the most bytes that may be written in a second.
func (g *slowGroup) limit(d *harness.Disk, bytes string) {
	g.m.Helper()
	number := strings.TrimSpace(g.m.ReadFile(filepath.Join("/sys/block", d.Name, "dev")))
	g.m.WriteFile(filepath.Join(g.dir, "io.max"), number+" wbps="+bytes)
}

// delayed is a device whose writes take so many milliseconds; reads and flushes take none.
func delayed(m *harness.Machine, name string, under *harness.Disk, ms int) *harness.Disk {
	m.Helper()
	return m.Mapper(name, fmt.Sprintf("0 %d delay %[2]s 0 0 %[2]s 0 %[3]d %[2]s 0 0", under.Size/harness.Sector, under.Path, ms))
}

// lateDisk is a device with late writes.
type lateDisk struct {
	*harness.Disk
	under *harness.Disk
}

func newLateDisk(m *harness.Machine, role string, mib int64, ms int) lateDisk {
	m.Helper()
	under := m.NullBlk(role, harness.NullOptions{MiB: mib})
	return lateDisk{delayed(m, "late"+role, under, ms), under}
}

// lateBench is a clone that is hydrated slowly, so that copies are in flight at any time.
type lateBench struct {
	*harness.Clone
	model          *harness.Model
	slow           *slowGroup
	dest, metadata lateDisk
	v              *harness.Volume
	buffers        [lateWriters][]byte
}

const (
	lateRegion  = 16 * harness.KiB
	lateWriters = 8 // half of them where the hydrator is at work
)

func newLateBench(t *testing.T, args ...string) *lateBench {
	m := harness.New(t)
	m.MustRun("modprobe", "dm-delay")
	const size = 64 * harness.MiB
	b := &lateBench{model: harness.NewModel(size, lateRegion), slow: newSlowGroup(m)}
	source := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB})
	b.dest, b.metadata = newLateDisk(m, "dst", size/harness.MiB, destDelay), newLateDisk(m, "meta", 1, metadataDelay)
	m.FillDisk(source, harness.Original)
	m.FillDisk(b.dest.under, harness.Junk)
	for i := range b.buffers { // before the clone: a writer may hang on to it
		b.buffers[i] = m.Buffer(4096)
	}
	b.Clone = m.AddClone(source, b.dest.Disk, b.metadata.Disk, append(args, "--region-size", harness.KiBText(lateRegion),
		"--no-hydration", "--rate", "32KiB/s", "--read-through=off")...) // fifty rounds do not complete it, however slow the machine
	b.v = m.Open(b.Path, os.O_RDWR)
	return b
}

// places are where the writers of a round write: in regions of their own, half of them the next to
// be copied.
func (b *lateBench) places(rng *rand.Rand) []int64 {
	b.M.Helper()
	durable := durableMap(b.M, b.metadata.Disk)
	regions, seen := b.model.Size/lateRegion, map[int64]bool{}
	var places []int64
	take := func(region int64) {
		if !seen[region] {
			seen[region] = true
			places = append(places, region*lateRegion+rng.Int64N(lateRegion/harness.Sector-8)*harness.Sector)
		}
	}
	for r := int64(0); r < regions && len(places) < lateWriters/2; r++ {
		if durable.State(uint64(r)) != bitmap.Hydrated {
			take(r)
		}
	}
	for len(places) < lateWriters {
		take(rng.Int64N(regions))
	}
	return places
}

// round is a death with writes in flight of the destination, the metadata or both, and all that
// follows.
func (b *lateBench) round(rng *rand.Rand, late ...lateDisk) {
	b.M.Helper()
	places := b.places(rng)
	b.write(rng) // something to commit
	pid := b.Status().PID
	b.Message("enable_hydration")
	for _, d := range late {
		b.slow.hold(pid, d.under)
	}
	served := make(chan struct{})
	wait := b.start(places, served)
	for _, d := range late {
		b.M.WaitFor(harness.HydrateLimit, "writes in flight of "+d.Path, func() error { return d.busier(b.expected(d)) })
	}
	b.die(pid)
	for _, d := range late {
		if err := d.busier(b.expected(d)); err != nil {
			b.M.Errorf("none is late: %v", err)
		}
	}
	b.recoverBehind(pid, late, served)
	b.Message("disable_hydration")
	wait()
	if err := b.v.Flush(); err != nil {
		b.M.Fatal(err)
	}
	b.landAll(late)
	b.verify(places)
}

// expected is how many writes of d are in flight at least when the daemon is killed: those of the
// writers that no copy keeps waiting, and a copy; or the page of a commit.
func (b *lateBench) expected(d lateDisk) int {
	if d == b.dest {
		return lateWriters/2 + 1
	}
	return 1
}

// busier fails unless n writes of d are in flight.
func (d lateDisk) busier(n int) error {
	d.M.Helper()
	if got := d.Writing(); got < n {
		return fmt.Errorf("%d writes of %s are in flight, not %d", got, d.Path, n)
	}
	return nil
}

// write makes one write that is acknowledged.
func (b *lateBench) write(rng *rand.Rand) {
	b.M.Helper()
	off := rng.Int64N(b.model.Size/lateRegion) * lateRegion
	if err := b.model.Write(b.v, b.buffers[0], off, false); err != nil {
		b.M.Fatal(err)
	}
}

// start begins a FLUSH, and writers that overwrite what they wrote when the device serves again.
func (b *lateBench) start(places []int64, served <-chan struct{}) (wait func()) {
	b.M.Helper()
	var group sync.WaitGroup
	group.Go(func() {
		if err := b.v.Flush(); err != nil {
			b.M.Errorf("FLUSH: %v", err)
		}
	})
	for i, off := range places {
		buf := b.buffers[i]
		group.Go(func() {
			err := b.model.Write(b.v, buf, off, false)
			<-served
			if err = errors.Join(err, b.model.Write(b.v, buf, off, false)); err != nil {
				b.M.Errorf("write at %d: %v", off, err)
			}
		})
	}
	return group.Wait
}

// die kills the daemon and waits until nothing is left of it but threads that wait for a write to
// land. That may be any of them, the one by which the process is listed too.
func (b *lateBench) die(pid int) {
	b.M.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		b.M.Fatal(err)
	}
	b.M.WaitFor(harness.CleanLimit, "the daemon to end", func() error {
		if left := threadStates(pid); strings.Trim(left, "DZX") != "" {
			return fmt.Errorf("its threads are in the states %s", left)
		}
		return nil
	})
}

// threadStates are those of a process's threads, a letter each (proc_pid_stat(5)): D waits in the
// kernel whatever signal there is, Z and X have ended.
func threadStates(pid int) (states string) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, path := range tasks {
		if text, err := os.ReadFile(path); err == nil {
			_, rest, _ := strings.Cut(string(text), ") ")
			states += rest[:min(1, len(rest))]
		}
	}
	return states
}

// timeForHarm is what a recovery gets to serve too early where it does not say that it waits.
const timeForHarm = 2 * time.Second

// recoverBehind starts the recovery and lets the late writes land as soon as it says that it waits
// for them. One that serves before that does no harm here: the harm must show. A daemon that was
// killed while it wrote metadata, which it does with pwrite, has not ended before that has; then
// the recovery waits for its end, and says nothing.
func (b *lateBench) recoverBehind(pid int, late []lateDisk, served chan<- struct{}) {
	b.M.Helper()
	log := filepath.Join(harness.RunDir, b.Name+".log")
	if err := os.Truncate(log, 0); err != nil {
		b.M.Fatal(err)
	}
	done := make(chan harness.Outcome, 1)
	go func() { done <- b.M.Try(harness.Command, "recover", b.Name) }()
	begin := time.Now()
	b.M.WaitFor(harness.CommandLimit(), "the recovery to wait or to serve", func() error {
		text, err := os.ReadFile(log)
		_, ended := os.Stat(fmt.Sprintf("/proc/%d", pid))
		switch {
		case len(done) > 0, strings.Contains(string(text), "waiting for the last requests"):
			return nil
		case ended == nil && time.Since(begin) > timeForHarm:
			return nil
		}
		return fmt.Errorf("its log (%v): %q", err, text)
	})
	if len(done) > 0 {
		b.M.Log("served with late writes in flight")
	} else {
		b.releaseAll(late)
	}
	b.M.Must(<-done, harness.Command, "recover", b.Name)
	close(served)
}

func (b *lateBench) releaseAll(late []lateDisk) {
	b.M.Helper()
	for _, d := range late {
		b.slow.release(d.under)
	}
}

// landAll lets everything land that is late still.
func (b *lateBench) landAll(late []lateDisk) {
	b.M.Helper()
	b.releaseAll(late)
	for _, d := range late {
		b.M.WaitFor(harness.HydrateLimit, "the writes of "+d.Path, func() error {
			if n := d.Writing(); n > 0 {
				return fmt.Errorf("%d are in flight", n)
			}
			return nil
		})
	}
}

// verify: the writers' blocks hold the newest data, and what the last FLUSH has made durable would
// be there after a power cut now.
func (b *lateBench) verify(places []int64) {
	b.M.Helper()
	b.M.DropCaches()
	durable := durableMap(b.M, b.metadata.Disk)
	for _, off := range places {
		if err := b.model.Read(b.v, b.buffers[0], off); err != nil {
			b.M.Errorf("late write of the destination: %v", err)
		}
		if st := durable.State(uint64(off / lateRegion)); st != bitmap.Hydrated {
			b.M.Errorf("late write of the metadata: region %d was flushed and is %v in the metadata", off/lateRegion, st)
		}
	}
	if b.M.Failed() {
		b.M.FailNow()
	}
}

// TestLateWrite kills the daemon with copies, writes or a commit in flight, brings it back,
// overwrites, lets everything land, and finds the new data.
func TestLateWrite(t *testing.T) {
	runs.On(t, "6.12", runs.OwnGuestInFull, runs.Sampled)
	b := newLateBench(t)
	b.rounds([][]lateDisk{{b.dest}, {b.metadata}, {b.dest, b.metadata}})
}

// TestLateWriteLayer: the lock of the destination is that of the device over it.
func TestLateWriteLayer(t *testing.T) {
	runs.On(t, "7.3", runs.Sampled)
	b := newLateBench(t, "--dm", harness.LayerName)
	b.rounds([][]lateDisk{{b.dest}, {b.dest, b.metadata}})
}

func (b *lateBench) rounds(kinds [][]lateDisk) {
	b.M.Helper()
	rng := b.M.Random()
	for i := range harness.Count(len(kinds), 50) {
		b.round(rng, kinds[i%len(kinds)]...)
	}
	b.model.Check(b.M, b.Path)
	b.v.Close()
	b.Setting("rate=none")
	b.HydrateFast()
	b.WaitHydrated()
	b.Del()
	b.model.Check(b.M, b.dest.Path)
}

// TestMetadataLocked: metadata that a daemon has are not opened for another clone.
func TestMetadataLocked(t *testing.T) {
	runs.On(t, "6.12")
	m := harness.New(t)
	metadata := m.NullBlk("meta", harness.NullOptions{MiB: 1})
	c := m.AddClone(m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16}), metadata, "--no-hydration")
	other := harness.AddArgs(m.NullBlk("src2", harness.NullOptions{MiB: 16}), m.NullBlk("dst2", harness.NullOptions{MiB: 16}), metadata)
	m.ExpectFailure(m.Try(harness.Command, append([]string{"add", "other"}, other...)...), exit.Busy, metadata.Path)
	f, err := os.OpenFile(metadata.Path, os.O_RDWR|os.O_EXCL, 0) // what asks no clone, as mkfs
	if err == nil {
		f.Close()
	}
	if !errors.Is(err, syscall.EBUSY) {
		t.Errorf("the metadata can be opened exclusively: %v", err)
	}
	c.Del()
}
