//go:build device

package devicetest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// liveMapBench is a clone whose daemon was killed right after writes that nobody flushed.
type liveMapBench struct {
	*harness.Clone
	model    *harness.Model
	dest     *harness.Disk
	metadata *harness.Disk
	round    int64
}

func newLiveMapBench(t *testing.T) *liveMapBench {
	m := harness.New(t)
	m.DropLiveMaps() // of dead daemons that earlier tests have deleted the devices of, which leaves the map for the next add
	source, dest := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16})
	b := &liveMapBench{metadata: m.NullBlk("meta", harness.NullOptions{MiB: 1}), model: harness.NewModel(16*harness.MiB, 4*harness.KiB), dest: dest}
	m.FillDisk(source, harness.Original)
	m.FillDisk(dest, harness.Junk)
	b.model.Set(0, 16*harness.MiB, harness.Original)
	b.Clone = m.AddClone(source, dest, b.metadata, "--no-hydration", "--read-through=off")
	return b
}

// scatter writes, zeroes and discards here and there, and kills the daemon before a commit that
// nobody asked for is due, mostly.
func (b *liveMapBench) scatter() {
	b.M.Helper()
	v, buf := b.M.Open(b.Path, os.O_RDWR), b.M.Buffer(16*1024)
	defer v.Close()
	const step = 2 * harness.MiB
	b.round++
	b.KillAfter(func() {
		for off := b.round * 128 * harness.KiB; off < b.model.Size; off += step {
			err := errors.Join(b.model.Write(v, buf[:6*harness.KiB], off+harness.KiB, false), b.model.Zero(v, off+32*harness.KiB, 6*harness.KiB),
				b.model.Discard(v, off+64*harness.KiB, 8*harness.KiB))
			if err != nil {
				b.M.Fatal(err)
			}
		}
	})
}

// marked is how many regions the metadata says are hydrated or zero.
func (b *liveMapBench) marked() uint64 {
	b.M.Helper()
	durable := durableMap(b.M, b.metadata)
	return durable.NrHydrated() + durable.NrZero()
}

// TestKilledDaemonLosesNothing: what was acknowledged and not flushed is there when the clone is
// started again, and the next FLUSH makes it durable (I6).
func TestKilledDaemonLosesNothing(t *testing.T) {
	runs.On(t, "6.12", runs.Layered)
	b := newLiveMapBench(t)
	lost := uint64(0)
	for i := 0; i < harness.Count(3, 10) || lost == 0 && i < 20; i++ { // on a slow machine a kill may come after the commit
		b.scatter()
		durable := b.marked()
		b.Add()
		lost += b.Status().Regions.Hydrated - durable
		b.model.Check(b.M, b.Path)
	}
	t.Logf("%d regions were marked and not committed when the daemon was killed", lost)
	if lost == 0 {
		t.Error("all had been committed: the test shows nothing")
	}
	v := b.M.Open(b.Path, os.O_RDWR)
	if err := v.Flush(); err != nil {
		t.Error(err)
	}
	v.Close()
	if durable, s := b.marked(), b.Status(); durable != s.Regions.Hydrated {
		t.Errorf("%d regions are durable after a FLUSH, %d are hydrated", durable, s.Regions.Hydrated)
	}
	b.HydrateFast()
	b.WaitHydrated()
	b.Del()
	b.model.Check(b.M, b.dest.Path)
	if left, _ := filepath.Glob(harness.LiveMaps + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func (b *liveMapBench) removeLiveMap() {
	b.M.Helper()
	if err := os.Remove(b.liveMap()); err != nil {
		b.M.Fatal(err)
	}
}

// liveMap is the file of the clone's, the only one there is.
func (b *liveMapBench) liveMap() string {
	b.M.Helper()
	maps, err := filepath.Glob(harness.LiveMaps + "/*.map")
	if err != nil || len(maps) != 1 {
		b.M.Fatalf("live maps: %v, %v", maps, err)
	}
	return maps[0]
}

// TestLiveMapGone: without it nobody knows what was written since the last commit. The clone is not
// opened from there in silence.
func TestLiveMapGone(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	b.scatter()
	b.M.MustRun(harness.Command, "prune")
	b.removeLiveMap()
	b.M.ExpectFailure(b.M.Try(harness.Command, append([]string{"add", b.Name}, b.Args...)...), 10, "live map", "--force")
	b.Args = append(b.Args, "--force")
	b.Add()
	b.Del()
}

// TestLiveMapOfOtherMetadata: a map and metadata that do not belong together are refused, whichever
// is older.
func TestLiveMapOfOtherMetadata(t *testing.T) {
	runs.On(t, "6.18")
	b := newLiveMapBench(t)
	v := b.M.Open(b.Path, os.O_RDWR)
	if err := errors.Join(b.model.Write(v, b.M.Buffer(8192), 0, false), v.Flush()); err != nil {
		t.Fatal(err)
	}
	v.Close()
	old := b.M.ReadFile(b.metadata.Path)
	b.scatter()
	b.Add() // commits
	v = b.M.Open(b.Path, os.O_RDWR)
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	v.Close()
	b.Kill()
	b.M.MustRun(harness.Command, "prune")
	new := b.M.ReadFile(b.metadata.Path)
	b.M.WriteFile(b.metadata.Path, old)
	b.M.ExpectFailure(b.M.Try(harness.Command, append([]string{"add", b.Name}, b.Args...)...), 10, "older than its live map")
	b.M.WriteFile(b.metadata.Path, new)
	b.Add()
	b.model.Check(b.M, b.Path)
	b.Del()
}
