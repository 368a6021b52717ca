package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// dryRun does the steps of a dry run, those before the driver, and sees that nothing under the folder is another
// afterwards. files.open does it too, before each start of a test.
func (f *files) dryRun(st start, after func(*cloneEngine) error) error {
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
	st := start{Definition: definition{Name: "c", Source: f.source, Dest: filepath.Join(f.dir, "new"), Metadata: f.metadata, Queues: 1, QueueDepth: 1}}
	err := f.dryRun(st, func(e *cloneEngine) error {
		sb := e.store.Superblock()
		if !e.created || !e.dest.Created() || e.dest.Size() != testMiB || sb.DeviceSize != testMiB || sb.RegionSize != defaultRegionSize ||
			e.meta.Size() < metadata.Size(sb.NrRegions) || e.meta.FoundSize() != 0 || e.dest.Carries() != "" {
			t.Errorf("created %t, destination of %d bytes, %+v", e.created, e.dest.Size(), sb)
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
	err := f.open(plain, func(e *cloneEngine) error {
		return e.store.Update(func(sb *metadata.Superblock) error { sb.Mode = metadata.ModeReadOnly; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	st := start{Definition: definition{Name: "c", Source: f.source, Dest: f.dest, Metadata: f.metadata, Queues: 1, QueueDepth: 1}, Force: true}
	err = f.dryRun(st, func(e *cloneEngine) error {
		if sb := e.store.Superblock(); sb.Mode != metadata.ModeReadWrite {
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

// TestReadRate: a source is measured, from the offset on, and one that fails or has nothing is not taken for fast.
func TestReadRate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "source")
	random := make([]byte, 4<<20)
	rng := rand.NewChaCha8([32]byte{})
	rng.Read(random)
	if err := os.WriteFile(path, random, 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := blockdev.Open(blockdev.Source, path, blockdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if rate, err := readRate(source, 1<<20, source.Size()); rate <= 0 || err != nil {
		t.Errorf("%d bytes a second, %v", rate, err)
	}
	if rate, err := readRate(source, source.Size(), source.Size()); rate != 0 || err == nil {
		t.Errorf("of nothing: %d bytes a second, %v", rate, err)
	}
	if rate, err := readRate(source, 0, 8<<20); rate <= 0 || err == nil { // it was larger before
		t.Errorf("beyond the end: %d bytes a second, %v", rate, err)
	}
	source.Close()
	if rate, err := readRate(source, 0, source.Size()); rate != 0 || err == nil {
		t.Errorf("of a closed file: %d bytes a second, %v", rate, err)
	}
}

// TestTrialText: what is not known is not printed as a figure.
func TestTrialText(t *testing.T) {
	rate, seconds := int64(100<<20), int64(200)
	full := trial{
		Name: "c", Source: part{Path: "/dev/sdb", Size: 20 << 30}, Dest: part{Path: "/dev/sdc", Size: 25 << 30}, Metadata: part{Path: "/var/lib/c.meta", Size: 0}, New: true,
		Size: 20 << 30, RegionSize: 4096, Regions: 5 << 20, MetadataBytes: 2 << 20, Memory: memoryNeed{Start: 56 << 20, Most: 57 << 20}, ZeroCopy: true,
		ToCopy: 15 << 30, Hydration: true, SourceRate: &rate, RateCap: 80 << 20, Seconds: &seconds, Warnings: []string{strings.Repeat("word ", 30)},
	}
	for _, c := range []struct {
		change func(*trial)
		says   []string
	}{
		{func(*trial) {}, []string{"be new", "carries nothing known", "5242880 of 4 KiB", "56 MiB", "15 GiB; the other 5 GiB", "100 MiB/s", "cap 80 MiB/s", "3m20s",
			"would have to be written", "Nothing was changed"}},
		{func(t *trial) { t.New, t.Hydrated = false, 5<<30 }, []string{"go on, with 25.0 % hydrated"}},
		{func(t *trial) { t.New, t.Recover = false, true }, []string{"recovered from its dead daemon"}},
		{func(t *trial) { t.SourceRate, t.Seconds = nil, nil }, []string{"rate unknown", "time unknown"}},
		{func(t *trial) { t.Hydration, t.Seconds = false, nil }, []string{"hydration is off"}},
		{func(t *trial) { t.ToCopy = 0 }, []string{"nothing to copy"}},
		{func(t *trial) { t.Carries = "ext4" }, []string{"carries ext4"}},
		{func(t *trial) { t.ZeroCopy = false }, []string{"copies of requests"}},
		{func(t *trial) { t.Unchanged = true }, []string{"add would change nothing"}},
	} {
		tr := full
		c.change(&tr)
		var b bytes.Buffer
		if err := tr.write(&b); err != nil {
			t.Fatal(err)
		}
		for _, says := range c.says {
			if !strings.Contains(strings.Join(strings.Fields(b.String()), " "), says) {
				t.Errorf("it does not say %q:\n%s", says, &b)
			}
		}
		for line := range strings.Lines(b.String()) {
			if len(line) > trialWidth+1 {
				t.Errorf("a line of %d columns: %s", len(line), line)
			}
		}
	}
}

// TestMemoryNeed: the figures that the README tells.
func TestMemoryNeed(t *testing.T) {
	def := definition{RegionSize: 4096, Queues: 1, QueueDepth: 64}
	near := func(what string, got, want int64) {
		t.Helper()
		if got < want*95/100 || got > want*105/100 {
			t.Errorf("%s: %s, the README says %s", what, formatSize(got), formatSize(want))
		}
	}
	small := uint64(1<<30) / 4096
	near("a clone", needOf(&def, small, false).Start, 60<<20)
	near("copied", needOf(&def, small, true).Start, (60+32)<<20)
	near("16 TiB", needOf(&def, 1<<32, false).Start, 140<<20)
	def.Queues = 2
	near("two queues", needOf(&def, small, false).Start, (60+17)<<20)
}

// TestDryRunBeforeTheProcess: what a command refuses before it starts anything.
func TestDryRunBeforeTheProcess(t *testing.T) {
	root := t.TempDir()
	source := filepath.Join(root, "source")
	if err := os.WriteFile(source, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	line := "add c --dry-run --source " + source + " --dest " + filepath.Join(root, "dest") + " --metadata " + filepath.Join(root, "meta")
	code, out, errs := command(t, line+" --queues 0")
	if code != exit.Usage {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
	var o, e bytes.Buffer
	p := &program{out: &o, errs: &e, dir: runDir(source)}
	if code := p.run(append([]string{"ublk-clone"}, strings.Fields(line)...)); code != exit.Other || !strings.Contains(e.String(), "not a directory") {
		t.Errorf("a run folder that is a file: exit code %d, %s", code, &e)
	}
	p.dir = runDir(filepath.Join(root, "run"))
	if err := p.dir.possible(); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadDir(root); err != nil || len(after) != 1 {
		t.Errorf("it has changed: %v, %v", after, err)
	}
}
