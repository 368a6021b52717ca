package engine

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
)

// TestToCopy: regions that are hydrated, zero, or in a hole whole are not copied; those that touch
// data are, whole.
func TestToCopy(t *testing.T) {
	const region, size = 64 << 10, 1<<20 - 4096 // the tail is shorter
	path := filepath.Join(t.TempDir(), "source")
	file, err := os.Create(path)
	if err == nil {
		err = file.Truncate(1 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, off := range []int64{3 * region, 8*region + 4096, 15*region + 4096} {
		if _, err := file.WriteAt(bytes.Repeat([]byte{1}, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	source, err := blockdev.Open(blockdev.Source, path, blockdev.Options{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	geo, err := clone.NewGeometry(size, region)
	if err != nil {
		t.Fatal(err)
	}
	regions := bitmap.New(geo.Regions(), make([]bitmap.Page, bitmap.PagesFor(geo.Regions())))
	check := func(what string, wantFirst, want, hydrated int64) {
		t.Helper()
		if first, got := toCopy(geo, regions, source); first != wantFirst || got != want || hydratedBytes(geo, regions) != hydrated {
			t.Errorf("%s: %d bytes from %d on, %d hydrated; expected %d, %d, %d", what, got, first, hydratedBytes(geo, regions), want, wantFirst, hydrated)
		}
	}
	marks := bitmap.NewDelta(regions.NrPages(), 1)
	check("new", 3*region, 3*region-4096, 0)
	if first, all := toCopy(geo, regions, nil); first != 0 || all != size {
		t.Errorf("without holes %d bytes from %d on", all, first)
	}
	regions.Mark(bitmap.PlaneHydrated, 2, 4, marks)
	check("the first hydrated", 8*region, 2*region-4096, 2*region)
	regions.Mark(bitmap.PlaneZero, 8, 9, marks)
	check("the next zero", 15*region, region-4096, 3*region)
	regions.Mark(bitmap.PlaneHydrated, 15, 16, marks)
	check("all", 0, 0, 4*region-4096)
}
