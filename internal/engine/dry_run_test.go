package engine

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// dryRun does the steps of a dry run, those before the driver, and sees that nothing under the folder is another
// afterwards. files.open does it too, before each start of a test.
func (f *files) dryRun(st definition.Start, after func(*devices) error) error {
	f.t.Helper()
	before := f.everything()
	st.DryRun = true
	refused, err := f.run(st, after)
	if after := f.everything(); !slices.Equal(before, after) {
		f.t.Errorf("a dry run has changed\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if refused == nil && err != nil {
		f.t.Errorf("after a dry run: %v", err)
	}
	return refused
}

// everything describes all that is under the folder.
func (f *files) everything() (all []string) {
	f.t.Helper()
	err := filepath.WalkDir(f.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var b []byte
		if info.Mode().IsRegular() && info.Size() <= 16*testMiB {
			b, err = os.ReadFile(path)
		}
		all = append(all, fmt.Sprint(path, info.Mode(), info.Size(), info.ModTime(), sha256.Sum256(b)))
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return all
}

// TestDryRunOfNewFiles: what would be made is known as if it were there, and is not.
func TestDryRunOfNewFiles(t *testing.T) {
	f := newFiles(t)
	st := definition.Start{Definition: definition.Definition{Name: "c", Source: f.source, Dest: filepath.Join(f.dir, "new"), Metadata: f.metadata, Queues: 1, QueueDepth: 1}}
	err := f.dryRun(st, func(d *devices) error {
		sb := d.meta.store.Superblock()
		if !d.meta.created || !d.dest.Created() || d.dest.Size() != testMiB || sb.DeviceSize != testMiB || sb.RegionSize != definition.DefaultRegionSize ||
			d.meta.file.Size() < metadata.Size(sb.NrRegions) || d.meta.file.FoundSize() != 0 || d.dest.Carries() != "" {
			t.Errorf("created %t, destination of %d bytes, %+v", d.meta.created, d.dest.Size(), sb)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(f.dir, "large")
	f.make(large, 1<<40) // more than is free
	st.Definition.Source = large
	f.expect("no space", f.dryRun(st, nothing), exit.Dest, "no space left", "bytes are free")
	f.make(f.metadata, 0) // there and empty, and it stays so
	st.Definition.Source = f.source
	f.expect("empty metadata", f.dryRun(st, nothing), exit.OK)
}

// TestDryRunOfForce: what force overrides is told and stays as it is.
func TestDryRunOfForce(t *testing.T) {
	f := newFiles(t)
	if err := f.use(1, plain); err != nil {
		t.Fatal(err)
	}
	err := f.open(plain, func(d *devices) error {
		return d.meta.store.Update(func(sb *metadata.Superblock) error { sb.Mode = metadata.ModeReadOnly; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	st := definition.Start{Definition: definition.Definition{Name: "c", Source: f.source, Dest: f.dest, Metadata: f.metadata, Queues: 1, QueueDepth: 1}, Force: true}
	err = f.dryRun(st, func(d *devices) error {
		if sb := d.meta.store.Superblock(); sb.Mode != metadata.ModeReadWrite {
			t.Errorf("the mode would be %v", sb.Mode)
		}
		return nil
	})
	st.Create = true
	if err := errors.Join(err, f.dryRun(st, nothing)); err != nil {
		t.Fatal(err)
	}
}

// TestToCopy: regions that are hydrated, zero, or in a hole whole are not copied; those that touch data are, whole.
func TestToCopy(t *testing.T) {
	f := newFiles(t)
	const region, size = 64 << 10, testMiB - 4096 // the tail is shorter
	file, err := os.OpenFile(f.source, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, off := range []int64{3 * region, 8*region + 4096, 15*region + 4096} {
		if _, err := file.WriteAt(bytes.Repeat([]byte{1}, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	source, err := blockdev.Open(blockdev.Source, f.source, blockdev.Options{})
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
