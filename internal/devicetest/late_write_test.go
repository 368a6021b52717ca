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

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// The late write (I7): what a daemon had in flight when it died lands after the next one has begun, unless that
// waits. Here it lands exactly when the test says so. The daemon that is to die is put into a cgroup that may
// write two bytes a second: what it writes stays in the block layer, in front of the device, also when the process
// is gone; the next daemon is in no such group and would overtake. (dm-delay alone shows no harm: it keeps the
// order of writes, so one that is late lands before all that come after it.) Both devices are dm-delay besides,
// whose count of requests in flight shows that there are late ones.

// Delays of writes, in milliseconds.
const (
	destDelay     = 300
	metadataDelay = 100
)

// slowGroup is a cgroup whose members may be kept from writing to devices.
type slowGroup struct {
	m      *machine
	folder string
}

// mountGroups mounts the cgroups (Documentation/admin-guide/cgroup-v2.rst) and returns where.
func (m *machine) mountGroups() string {
	m.Helper()
	root := filepath.Join(m.dir, "cgroup")
	if err := os.Mkdir(root, 0o755); err != nil {
		m.Fatal(err)
	}
	if err := unix.Mount("cgroup", root, "cgroup2", 0, ""); err != nil {
		m.Fatalf("mount cgroup2: %v", err)
	}
	m.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	return root
}

func (m *machine) slowGroup() *slowGroup {
	m.Helper()
	root := m.mountGroups()
	m.writeFile(filepath.Join(root, "cgroup.subtree_control"), "+io")
	g := &slowGroup{m: m, folder: filepath.Join(root, "slow")}
	if err := os.Mkdir(g.folder, 0o755); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { os.Remove(g.folder) })
	return g
}

// hold keeps back what the process writes to d from now on, until release.
func (g *slowGroup) hold(pid int, d *disk) {
	g.m.Helper()
	g.limit(d, "2") // the least that there is
	g.m.Cleanup(func() { g.release(d) })
	g.m.writeFile(filepath.Join(g.folder, "cgroup.procs"), fmt.Sprint(pid))
}

// release lets go what was held, also of a process that is dead.
func (g *slowGroup) release(d *disk) {
	g.m.Helper()
	g.limit(d, "max")
}

// limit sets the most bytes that may be written in a second.
func (g *slowGroup) limit(d *disk, bytes string) {
	g.m.Helper()
	number := strings.TrimSpace(g.m.readFile(filepath.Join("/sys/block", d.name, "dev")))
	g.m.writeFile(filepath.Join(g.folder, "io.max"), number+" wbps="+bytes)
}

// delayed is a device whose writes take so many milliseconds; reads and flushes take none.
func (m *machine) delayed(name string, under *disk, ms int) *disk {
	m.Helper()
	return m.mapper(name, fmt.Sprintf("0 %d delay %[2]s 0 0 %[2]s 0 %[3]d %[2]s 0 0", under.size/sector, under.path, ms))
}

// lateDisk is a device with late writes.
type lateDisk struct {
	*disk
	under *disk
}

func (m *machine) lateDisk(role string, mib int64, ms int) lateDisk {
	m.Helper()
	under := m.nullBlk(role, nullOptions{mib: mib})
	return lateDisk{m.delayed("late"+role, under, ms), under}
}

// lateBench is a clone that is hydrated slowly, so that copies are in flight at any time.
type lateBench struct {
	*clone
	model          *model
	slow           *slowGroup
	dest, metadata lateDisk
	v              *volume
	buffers        [lateWriters][]byte
}

const (
	lateRegion  = 16 * kib
	lateWriters = 8 // half of them where the hydrator is at work
)

func newLateBench(t *testing.T) *lateBench {
	m := newMachine(t)
	m.run("modprobe", "dm-delay")
	const size = 64 * mib
	b := &lateBench{model: newModel(size, lateRegion), slow: m.slowGroup()}
	source := m.nullBlk("src", nullOptions{mib: size / mib})
	b.dest, b.metadata = m.lateDisk("dst", size/mib, destDelay), m.lateDisk("meta", 1, metadataDelay)
	m.fillDisk(source, original)
	m.fillDisk(b.dest.under, junk)
	for i := range b.buffers { // before the clone: a writer may hang on to it
		b.buffers[i] = m.buffer(4096)
	}
	b.clone = m.addClone(source, b.dest.disk, b.metadata.disk, "--region-size", kibText(lateRegion),
		"--no-hydration", "--rate", "32KiB/s", "--read-through=off") // fifty rounds do not complete it, however slow the machine
	b.v = m.open(b.path, os.O_RDWR)
	return b
}

// places are where the writers of a round write: in regions of their own, half of them the next to be copied.
func (b *lateBench) places(rng *rand.Rand) []int64 {
	b.m.Helper()
	durable := b.m.durableMap(b.metadata.disk)
	regions, seen := b.model.size/lateRegion, map[int64]bool{}
	var places []int64
	take := func(region int64) {
		if !seen[region] {
			seen[region] = true
			places = append(places, region*lateRegion+rng.Int64N(lateRegion/sector-8)*sector)
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

// round is a death with writes in flight of the destination, the metadata or both, and all that follows.
func (b *lateBench) round(rng *rand.Rand, late ...lateDisk) {
	b.m.Helper()
	places := b.places(rng)
	b.write(rng) // something to commit
	pid := b.status().PID
	b.message("enable_hydration")
	for _, d := range late {
		b.slow.hold(pid, d.under)
	}
	served := make(chan struct{})
	wait := b.start(places, served)
	for _, d := range late {
		b.m.waitFor(hydrateLimit, "writes in flight of "+d.path, func() error { return d.busier(b.expected(d)) })
	}
	b.die(pid)
	for _, d := range late {
		if err := d.busier(b.expected(d)); err != nil {
			b.m.Errorf("none is late: %v", err)
		}
	}
	b.recoverBehind(pid, late, served)
	b.message("disable_hydration")
	wait()
	if err := b.v.flush(); err != nil {
		b.m.Fatal(err)
	}
	b.settle(late)
	b.verify(places)
}

// expected is how many writes of d are in flight at least when the daemon is killed: those of the writers that no
// copy keeps waiting, and a copy; or the page of a commit.
func (b *lateBench) expected(d lateDisk) int {
	if d == b.dest {
		return lateWriters/2 + 1
	}
	return 1
}

// busier fails unless n writes of d are in flight.
func (d lateDisk) busier(n int) error {
	d.m.Helper()
	if got := d.writing(); got < n {
		return fmt.Errorf("%d writes of %s are in flight, not %d", got, d.path, n)
	}
	return nil
}

// write makes one write that is acknowledged.
func (b *lateBench) write(rng *rand.Rand) {
	b.m.Helper()
	off := rng.Int64N(b.model.size/lateRegion) * lateRegion
	if err := b.model.write(b.v, b.buffers[0], off, false); err != nil {
		b.m.Fatal(err)
	}
}

// start begins a FLUSH, and writers that overwrite what they wrote when the device serves again.
func (b *lateBench) start(places []int64, served <-chan struct{}) (wait func()) {
	b.m.Helper()
	var group sync.WaitGroup
	group.Go(func() {
		if err := b.v.flush(); err != nil {
			b.m.Errorf("FLUSH: %v", err)
		}
	})
	for i, off := range places {
		buf := b.buffers[i]
		group.Go(func() {
			err := b.model.write(b.v, buf, off, false)
			<-served
			if err = errors.Join(err, b.model.write(b.v, buf, off, false)); err != nil {
				b.m.Errorf("write at %d: %v", off, err)
			}
		})
	}
	return group.Wait
}

// die kills the daemon and waits until nothing is left of it but threads that wait for a write to land. That may be
// any of them, the one by which the process is listed too.
func (b *lateBench) die(pid int) {
	b.m.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		b.m.Fatal(err)
	}
	b.m.waitFor(cleanLimit, "the daemon to end", func() error {
		if left := threadStates(pid); strings.Trim(left, "DZX") != "" {
			return fmt.Errorf("its threads are in the states %s", left)
		}
		return nil
	})
}

// threadStates are those of a process's threads, a letter each (proc_pid_stat(5)): D waits in the kernel whatever
// signal there is, Z and X have ended.
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

// recoverBehind starts the recovery and lets the late writes land as soon as it says that it waits for them. One
// that serves before that does no harm here: the harm must show. A daemon that was killed while it wrote metadata,
// which it does with pwrite, has not ended before that has; then the recovery waits for its end, and says nothing.
func (b *lateBench) recoverBehind(pid int, late []lateDisk, served chan<- struct{}) {
	b.m.Helper()
	log := filepath.Join(runDir, b.name+".log")
	if err := os.Truncate(log, 0); err != nil {
		b.m.Fatal(err)
	}
	done := make(chan outcome, 1)
	go func() { done <- b.m.try(command, "recover", b.name) }()
	begin := time.Now()
	b.m.waitFor(commandLimit(), "the recovery to wait or to serve", func() error {
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
		b.m.Log("served with late writes in flight")
	} else {
		b.releaseAll(late)
	}
	b.m.must(<-done, command, "recover", b.name)
	close(served)
}

func (b *lateBench) releaseAll(late []lateDisk) {
	b.m.Helper()
	for _, d := range late {
		b.slow.release(d.under)
	}
}

// settle lets everything land that is late still.
func (b *lateBench) settle(late []lateDisk) {
	b.m.Helper()
	b.releaseAll(late)
	for _, d := range late {
		b.m.waitFor(hydrateLimit, "the writes of "+d.path, func() error {
			if n := d.writing(); n > 0 {
				return fmt.Errorf("%d are in flight", n)
			}
			return nil
		})
	}
}

// verify: the writers' blocks hold the newest data, and what the last FLUSH has made durable would be there after
// a power cut now.
func (b *lateBench) verify(places []int64) {
	b.m.Helper()
	b.m.dropCaches()
	durable := b.m.durableMap(b.metadata.disk)
	for _, off := range places {
		if err := b.model.read(b.v, b.buffers[0], off); err != nil {
			b.m.Errorf("late write of the destination: %v", err)
		}
		if st := durable.State(uint64(off / lateRegion)); st != bitmap.Hydrated {
			b.m.Errorf("late write of the metadata: region %d was flushed and is %v in the metadata", off/lateRegion, st)
		}
	}
	if b.m.Failed() {
		b.m.FailNow()
	}
}

// TestLateWrite kills the daemon with copies, writes or a commit in flight, brings it back, overwrites, lets
// everything land, and finds the new data.
func TestLateWrite(t *testing.T) {
	runs.On(t, "6.12", runs.OwnGuestInFull)
	b := newLateBench(t)
	rng := b.m.random()
	kinds := [][]lateDisk{{b.dest}, {b.metadata}, {b.dest, b.metadata}}
	for i := range count(len(kinds), 50) {
		b.round(rng, kinds[i%len(kinds)]...)
	}
	b.model.check(b.m, b.path)
	b.v.close()
	b.setting("rate=none")
	b.hydrateFast()
	b.waitHydrated()
	b.del()
	b.model.check(b.m, b.dest.path)
}

// TestMetadataLocked: metadata that a daemon has are not opened for another clone.
func TestMetadataLocked(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	metadata := m.nullBlk("meta", nullOptions{mib: 1})
	c := m.addClone(m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16}), metadata, "--no-hydration")
	other := addArgs(m.nullBlk("src2", nullOptions{mib: 16}), m.nullBlk("dst2", nullOptions{mib: 16}), metadata)
	m.expectFailure(m.try(command, append([]string{"add", "other"}, other...)...), exit.Busy, metadata.path)
	c.del()
}
