//go:build device

package devicetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// liveMaps is where the daemons keep the maps that outlive them.
const liveMaps = "/run/ublk-clone-maps"

// kill ends the clone's daemon as nothing can prevent, and waits for it to be gone.
func (c *clone) kill() {
	c.m.Helper()
	c.killAfter(func() {})
}

// killAfter kills the daemon right after work.
func (c *clone) killAfter(work func()) {
	c.m.Helper()
	pid := c.status().PID
	work()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.m.Fatal(err)
	}
	c.path = ""
	c.m.waitFor(cleanLimit, "the daemon to end", func() error {
		if n := len(daemons()); n > 0 {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
}

// liveMapBench is a clone whose daemon was killed right after writes that nobody flushed.
type liveMapBench struct {
	*clone
	model    *model
	dest     *disk
	metadata *disk
	round    int64
}

func newLiveMapBench(t *testing.T) *liveMapBench {
	m := newMachine(t)
	m.dropLiveMaps() // of dead daemons that earlier tests have deleted the devices of, which leaves the map for the next add
	source, dest := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16})
	b := &liveMapBench{metadata: m.nullBlk("meta", nullOptions{mib: 1}), model: newModel(16*mib, 4*kib), dest: dest}
	m.fillDisk(source, original)
	m.fillDisk(dest, junk)
	b.model.set(0, 16*mib, original)
	b.clone = m.addClone(source, dest, b.metadata, "--no-hydration", "--read-through=off")
	return b
}

// scatter writes, zeroes and discards here and there, and kills the daemon before a commit that nobody asked
// for is due, mostly.
func (b *liveMapBench) scatter() {
	b.m.Helper()
	v, buf := b.m.open(b.path, os.O_RDWR), b.m.buffer(16*1024)
	defer v.close()
	const step = 2 * mib
	b.round++
	b.killAfter(func() {
		for off := b.round * 128 * kib; off < b.model.size; off += step {
			err := errors.Join(b.model.write(v, buf[:6*kib], off+kib, false), b.model.zero(v, off+32*kib, 6*kib),
				b.model.discard(v, off+64*kib, 8*kib))
			if err != nil {
				b.m.Fatal(err)
			}
		}
	})
}

// marked is how many regions the metadata say are hydrated or zero.
func (b *liveMapBench) marked() uint64 {
	b.m.Helper()
	durable := b.m.durableMap(b.metadata)
	return durable.NrHydrated() + durable.NrZero()
}

// TestKilledDaemonLosesNothing: what was acknowledged and not flushed is there when the clone is started again,
// and the next FLUSH makes it durable (I6).
func TestKilledDaemonLosesNothing(t *testing.T) {
	runs.On(t, "6.12")
	b := newLiveMapBench(t)
	lost := uint64(0)
	for i := 0; i < count(3, 10) || lost == 0 && i < 20; i++ { // on a slow machine a kill may come after the commit
		b.scatter()
		durable := b.marked()
		b.add()
		lost += b.status().Regions.Hydrated - durable
		b.model.check(b.m, b.path)
	}
	t.Logf("%d regions were marked and not committed when the daemon was killed", lost)
	if lost == 0 {
		t.Error("all had been committed: the test shows nothing")
	}
	v := b.m.open(b.path, os.O_RDWR)
	if err := v.flush(); err != nil {
		t.Error(err)
	}
	v.close()
	if durable, s := b.marked(), b.status(); durable != s.Regions.Hydrated {
		t.Errorf("%d regions are durable after a FLUSH, %d are hydrated", durable, s.Regions.Hydrated)
	}
	b.hydrateFast()
	b.waitHydrated()
	b.del()
	b.model.check(b.m, b.dest.path)
	if left, _ := filepath.Glob(liveMaps + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func (b *liveMapBench) removeLiveMap() {
	b.m.Helper()
	if err := os.Remove(b.liveMap()); err != nil {
		b.m.Fatal(err)
	}
}

// liveMap is the file of the clone's, the only one there is.
func (b *liveMapBench) liveMap() string {
	b.m.Helper()
	maps, err := filepath.Glob(liveMaps + "/*.map")
	if err != nil || len(maps) != 1 {
		b.m.Fatalf("live maps: %v, %v", maps, err)
	}
	return maps[0]
}

// dropLiveMaps removes what daemons have left for their successors, at the end of a test in which none comes.
func (m *machine) dropLiveMaps() {
	m.Helper()
	maps, _ := filepath.Glob(liveMaps + "/*")
	for _, path := range maps {
		if err := os.Remove(path); err != nil {
			m.Error(err)
		}
	}
}

// TestLiveMapGone: without it nobody knows what was written since the last commit. The clone is not opened from
// there in silence.
func TestLiveMapGone(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	b.scatter()
	b.m.run(command, "prune")
	b.removeLiveMap()
	b.m.expectFailure(b.m.try(command, append([]string{"add", b.name}, b.args...)...), 10, "live map", "--force")
	b.args = append(b.args, "--force")
	b.add()
	b.del()
}

// TestLiveMapOfOtherMetadata: a map and metadata that do not belong together are refused, whichever is older.
func TestLiveMapOfOtherMetadata(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	v := b.m.open(b.path, os.O_RDWR)
	if err := errors.Join(b.model.write(v, b.m.buffer(8192), 0, false), v.flush()); err != nil {
		t.Fatal(err)
	}
	v.close()
	old := b.m.readFile(b.metadata.path)
	b.scatter()
	b.add() // commits
	v = b.m.open(b.path, os.O_RDWR)
	if err := v.flush(); err != nil {
		t.Fatal(err)
	}
	v.close()
	b.kill()
	b.m.run(command, "prune")
	new := b.m.readFile(b.metadata.path)
	b.m.writeFile(b.metadata.path, old)
	b.m.expectFailure(b.m.try(command, append([]string{"add", b.name}, b.args...)...), 10, "older than its live map")
	b.m.writeFile(b.metadata.path, new)
	b.add()
	b.model.check(b.m, b.path)
	b.del()
}
