package engine

import (
	"errors"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// TestEndAfterRepairInVain: in mode ro with all marks committed a repair fails, and the slots that
// it has written keep the store from setting the clean flag. The user knows that the metadata has
// failed; the end itself is in order.
func TestEndAfterRepairInVain(t *testing.T) {
	geo, err := clone.NewGeometry(16*clone.MinRegionSize, clone.MinRegionSize)
	if err != nil {
		t.Fatal(err)
	}
	disk := fakedisk.New(metadata.Size(geo.Regions()), 1)
	store, err := metadata.Create(disk, &metadata.Superblock{
		UUID: metadata.UUID{1}, Geometry: metadata.Geometry{RegionSize: geo.RegionSize(), DeviceSize: geo.Size(), LogicalBlockSize: 512},
	}, metadata.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	regions := bitmap.New(geo.Regions(), make([]bitmap.Page, 1))
	setClean := func(clean bool) error {
		return store.Update(func(sb *metadata.Superblock) error { sb.Clean = clean; return nil })
	}
	if err := errors.Join(store.Load(regions.Load), setClean(false)); err != nil {
		t.Fatal(err)
	}
	live, err := livemap.Create(t.TempDir(), livemap.Identity{Regions: geo.Regions()}, livemap.State{})
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	uncommitted := bitmap.NewDelta(1, 1)
	regions.Mark(bitmap.PlaneHydrated, 0, 3, uncommitted)
	core := clone.New(clone.Config{Geometry: geo, Map: regions, Uncommitted: uncommitted, Kick: func() {}})
	commit := func() error { return core.Commit(nothingToFlush{}, mapStore{store, live}) }
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	core.SetMode(clone.ReadOnly)
	failed := errors.New("the metadata cannot be flushed")
	disk.SetFault(func(c fakedisk.Call) *fakedisk.Fault {
		if c.Op == fakedisk.OpFlush {
			return &fakedisk.Fault{Err: failed}
		}
		return nil
	})
	if err := core.Repair(nothingToFlush{}, mapStore{store, live}, func() error { return nil }); !errors.Is(err, failed) || toldBefore(err) {
		t.Fatalf("repair: %v, told before: %t", err, toldBefore(err))
	}
	disk.SetFault(nil)
	if err := commit(); err != nil {
		t.Fatalf("there is nothing to commit: %v", err)
	}
	if err := setClean(true); err == nil || !toldBefore(err) {
		t.Errorf("clean flag: %v, told before: %t", err, toldBefore(err))
	}
}

// nothingToFlush is a destination whose flushes succeed.
type nothingToFlush struct{}

func (nothingToFlush) Flush() error { return nil }
