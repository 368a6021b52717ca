package engine

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
)

// sourceChanges are ways in which somebody changes the file under a clone.
var sourceChanges = map[string]func(path string, other []byte) error{
	"rewritten": func(path string, other []byte) error { return os.WriteFile(path, other, 0o600) }, // truncates first
	"in place": func(path string, other []byte) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(other, 0)
		return errors.Join(err, f.Close())
	},
	"in place, time put back": func(path string, other []byte) error {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		return errors.Join(os.WriteFile(path, other, 0o600), os.Chtimes(path, st.ModTime(), st.ModTime()))
	},
	"shorter": func(path string, _ []byte) error { return os.Truncate(path, assemblySize/2) },
	"shorter and longer": func(path string, _ []byte) error {
		return errors.Join(os.Truncate(path, 4096), os.Truncate(path, assemblySize))
	},
	"replaced": func(path string, other []byte) error {
		return errors.Join(os.WriteFile(path+".new", other, 0o600), os.Rename(path+".new", path))
	},
}

// TestSourceChangesUnderHydration: whatever happens to the file while it is read, no region holds
// and no READ gets anything but what the file held at first (I14).
func TestSourceChangesUnderHydration(t *testing.T) {
	for name, change := range sourceChanges {
		t.Run(name, func(t *testing.T) {
			for i := range 12 {
				changeUnderHydration(t, change, time.Duration(i)*200*time.Microsecond)
			}
		})
	}
}

func changeUnderHydration(t *testing.T, change func(string, []byte) error, after time.Duration) {
	t.Helper()
	first, other := make([]byte, assemblySize), bytes.Repeat([]byte{0xee}, assemblySize)
	fillSectors(first, 0, valueSource)
	dir := t.TempDir()
	path := filepath.Join(dir, "source")
	p := newAssemblyOfSectors(t, dir)
	changed := make(chan error, 1)
	time.AfterFunc(after, func() { changed <- change(path, other) })
	p.background.hydrator.Configure(assemblySettings(true))
	p.readRegions(first)
	p.must(<-changed)
	p.readRegions(first)
	if p.core.Regions().NrHydrated() < p.core.Geometry().Regions() && p.engine.Source.Away() == nil {
		t.Error("the change was not noticed")
	}
	p.hydratedAs(first)
	p.must(p.close())
}

// newAssemblyOfSectors has a source of valueSource in dir.
func newAssemblyOfSectors(t *testing.T, dir string) *assembly {
	t.Helper()
	content := make([]byte, assemblySize)
	fillSectors(content, 0, valueSource)
	if err := os.WriteFile(filepath.Join(dir, "source"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return newAssembly(t, dir, &faultPlan{kinds: map[string]int{}})
}

// readRegions reads region by region. It may fail, but not be wrong.
func (p *assembly) readRegions(want []byte) {
	p.t.Helper()
	l := p.users[0]
	for off := int64(0); off < assemblySize; off += assemblyRegion {
		n := min(assemblyRegion, assemblySize-off)
		if err := l.do(clone.OpRead, off, n, false); err == nil && !bytes.Equal(l.data[:n], want[off:off+n]) {
			p.t.Fatalf("a read at byte %d gets %x", off, l.data[:16])
		}
	}
}

// hydratedAs compares what is hydrated.
func (p *assembly) hydratedAs(want []byte) {
	p.t.Helper()
	var hydrated []uint64
	for r := range p.core.Geometry().Regions() {
		if p.core.Regions().State(r) == bitmap.Hydrated {
			hydrated = append(hydrated, r)
		}
	}
	got, err := os.ReadFile(p.engine.Dest.Path())
	p.must(err)
	for _, r := range hydrated {
		lo := int64(r) * assemblyRegion
		hi := min(lo+assemblyRegion, assemblySize)
		if !bytes.Equal(got[lo:hi], want[lo:hi]) {
			p.t.Fatalf("region %d holds %x", r, got[lo:lo+16])
		}
	}
}

// TestNoticed: what becomes of a source by what is noticed of it.
func TestNoticed(t *testing.T) {
	told := 0
	s := dataplane.Source{Noticed: func() { told++ }}
	s.Replace(testSourceOf(t, 1))
	defer s.Close()
	o := s.Take()
	defer o.Done()
	if err := os.Link(o.Device.Path(), o.Device.Path()+".link"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(o.Look(), o.Refusal(false)); err != nil || !dataplane.IsRenamed(s.Away()) || told != 1 {
		t.Errorf("linked: users %v, hydration %v, told %d times", err, s.Away(), told)
	}
	if err := os.Truncate(o.Device.Path(), 100); err != nil {
		t.Fatal(err)
	}
	if at, err := s.NextData(0); !dataplane.IsRenamed(err) {
		t.Errorf("a hole for hydration at %d, %v", at, err)
	}
	for range 2 {
		if err := o.Look(); !errors.Is(err, blockdev.ErrChanged) || told != 2 {
			t.Errorf("shorter: %v, told %d times", err, told)
		}
	}
	if err := o.Refusal(false); !errors.Is(err, blockdev.ErrChanged) {
		t.Errorf("refused to users: %v", err)
	}
	s.Replace(testSourceOf(t, 2))
	if err := s.Away(); err != nil {
		t.Errorf("another one: %v", err)
	}
}

// testSourceOf makes a file whose bytes are all fill, and opens it as a source.
func testSourceOf(t *testing.T, fill byte) *dataplane.OpenSource {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := blockdev.Open(blockdev.Source, path, blockdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o, err := dataplane.NewOpenSource(d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o
}
