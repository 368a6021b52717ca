package devices

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/steps"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// sourceBench opens the devices of a clone of files as a daemon does, without a driver.
type sourceBench struct {
	t       *testing.T
	def     definition.Definition
	records records.Dir
	devices *Devices
	steps   steps.List
}

// newSourceBench has a source that was opened once, and metadata of it.
func newSourceBench(t *testing.T) *sourceBench {
	t.Helper()
	dir := t.TempDir()
	b := &sourceBench{t: t, records: records.Dir(t.TempDir()), def: definition.Definition{
		Name: "c", Source: filepath.Join(dir, "source"), Dest: filepath.Join(dir, "dest"), Metadata: filepath.Join(dir, "meta"),
		Queues: 1, QueueDepth: 2,
	}}
	b.put(b.def.Source, 's')
	b.must(b.open(true))
	b.close()
	return b
}

func (b *sourceBench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// put makes a file of one MiB.
func (b *sourceBench) put(path string, fill byte) {
	b.t.Helper()
	b.must(os.WriteFile(path, bytes.Repeat([]byte{fill}, 1<<20), 0o600))
}

func (b *sourceBench) open(create bool) error {
	b.devices = New(NewShared(definition.Start{Definition: b.def, Create: create}, zerolog.Nop()), b.records)
	b.devices.Source.Save = func(context.Context) error { return nil }
	return b.steps.Run(context.Background(), b.devices.Steps())
}

func (b *sourceBench) close() {
	b.t.Helper()
	b.must(b.steps.Stop())
}

// move takes the source away, or brings it back.
func (b *sourceBench) move(from, to string) {
	b.t.Helper()
	b.must(os.Rename(b.def.Source+from, b.def.Source+to))
}

// TestOpenStepsWithoutSource: metadata that is there stands in for a source that is not (I11); one
// that is there has to be the right one, and a new clone needs one.
func TestOpenStepsWithoutSource(t *testing.T) {
	b := newSourceBench(t)
	b.move("", ".away")
	if err := b.open(true); exit.Code(err) != exit.Source {
		t.Errorf("create without a source: %v", err)
	}
	b.must(b.open(false))
	if d, why := b.devices.Source.Device(), b.devices.Source.Away(); d != nil || !errors.Is(why, os.ErrNotExist) {
		t.Errorf("source %v, away for %v", d, why)
	}
	if b.devices.Dest.Geometry.Size != 1<<20 || b.devices.Meta.Store == nil {
		t.Errorf("geometry %+v", b.devices.Dest.Geometry)
	}
	b.close()

	b.put(b.def.Source, 'x')
	if err := b.open(false); exit.Code(err) != exit.Metadata || !errors.Is(err, metadata.ErrMismatch) {
		t.Errorf("open with another source: %v", err)
	}
	b.move(".away", "")
	b.must(b.open(false))
	if b.devices.Source.Device() == nil {
		t.Error("the source was not opened")
	}
	b.close()
	b.must(os.Remove(b.def.Metadata))
	b.move("", ".away")
	b.must(os.RemoveAll(string(b.records)))
	if err := b.open(false); exit.Code(err) != exit.Source {
		t.Errorf("a new clone without a source: %v", err)
	}
	if _, err := os.Stat(b.def.Metadata); err == nil {
		t.Error("metadata was left")
	}
}

// TestOpenStepsComplete: the source of a complete clone is not looked at, whatever is in its place.
func TestOpenStepsComplete(t *testing.T) {
	b := newSourceBench(t)
	b.must(b.open(false))
	b.must(b.devices.Meta.Store.Update(func(sb *metadata.Superblock) error { sb.Complete = true; return nil }))
	b.close()
	b.must(os.Remove(b.def.Source))
	for range 2 { // missing, then another file
		b.must(b.open(false))
		if b.devices.Source.Device() != nil {
			t.Error("the source is open")
		}
		b.close()
		b.put(b.def.Source, 'x')
	}
}

// TestFindSource: resume takes back the source and no other, and keeps one that works.
func TestFindSource(t *testing.T) {
	b := newSourceBench(t)
	b.move("", ".away")
	b.must(b.open(false))
	defer b.close()
	s := &b.devices.Source
	if err := s.Find(); exit.Code(err) != exit.Source || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is none: %v", err)
	}
	b.put(b.def.Source, 'x')
	if err := s.Find(); exit.Code(err) != exit.Source || !errors.Is(err, metadata.ErrMismatch) {
		t.Errorf("another file: %v", err)
	}
	b.must(os.Truncate(b.def.Source, 4096))
	if err := s.Find(); exit.Code(err) != exit.Source {
		t.Errorf("a short file: %v", err)
	}
	if s.Device() != nil {
		t.Fatal("another source was taken")
	}
	b.move(".away", "")
	b.must(s.Find())
	first := s.Device()
	if first == nil || s.Away() != nil {
		t.Fatal("the source was not taken back")
	}
	b.must(s.Find())
	if s.Device() != first {
		t.Error("a source that works was exchanged")
	}
	if got := b.devices.Happened.LastSeq(); got != 1 {
		t.Errorf("%d events, want one", got)
	}
	s.reopening.Lock()
	if err := s.Find(); exit.Code(err) != exit.Busy {
		t.Errorf("beside another: %v", err)
	}
	time.AfterFunc(letGoTime/4, s.reopening.Unlock) // as letGo, whom nobody has asked
	if err := s.Find(); err != nil {
		t.Errorf("beside one that is soon done: %v", err)
	}
}

// TestOneLookAtASource: while one look at a source that hangs is under way no second one begins,
// which would keep another thread.
func TestOneLookAtASource(t *testing.T) {
	b := newSourceBench(t)
	b.must(b.open(false))
	defer b.close()
	s := &b.devices.Source
	b.must(s.lookAtPath.begin(b.def.Source)) // as openAgain, which waits
	if d, err := s.openAgain(); exit.Code(err) != exit.Busy || d != nil || !strings.Contains(err.Error(), "still waits") {
		t.Errorf("beside a look at the path: %v, %v", d, err)
	}
	s.lookAtPath.end()
	b.must(s.lookAtOpen.begin(b.def.Source))          // as works
	if found, err := s.works(); found || err != nil { // a file is opened again by its path
		t.Errorf("beside a look at the open source: %t, %v", found, err)
	}
	s.lookAtOpen.end()
	if found, err := s.works(); !found || err != nil {
		t.Errorf("afterwards: %t, %v", found, err)
	}
	d, err := s.openAgain()
	b.must(err)
	b.must(d.Close())
}
