package devices

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// dryRun does the steps of a dry run, those before the driver, and sees that nothing under the
// directory is another afterwards. files.open does it too, before each start of a test.
func (f *files) dryRun(st definition.Start, after func(*Devices) error) error {
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

// everything describes all that is under the directory.
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
	err := f.dryRun(st, func(d *Devices) error {
		sb := d.Meta.Store.Superblock()
		if !d.Meta.Created || !d.Dest.Created() || d.Dest.Size() != testMiB || sb.DeviceSize != testMiB || sb.RegionSize != definition.DefaultRegionSize ||
			d.Meta.File.Size() < metadata.Size(sb.NrRegions) || d.Meta.File.FoundSize() != 0 || d.Dest.Carries() != "" {
			t.Errorf("created %t, destination of %d bytes, %+v", d.Meta.Created, d.Dest.Size(), sb)
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
	err := f.open(plain, func(d *Devices) error {
		return d.Meta.Store.Update(func(sb *metadata.Superblock) error { sb.Mode = metadata.ModeReadOnly; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	st := definition.Start{Definition: definition.Definition{Name: "c", Source: f.source, Dest: f.dest, Metadata: f.metadata, Queues: 1, QueueDepth: 1}, Force: true}
	err = f.dryRun(st, func(d *Devices) error {
		if sb := d.Meta.Store.Superblock(); sb.Mode != metadata.ModeReadWrite {
			t.Errorf("the mode would be %v", sb.Mode)
		}
		return nil
	})
	st.Create = true
	if err := errors.Join(err, f.dryRun(st, nothing)); err != nil {
		t.Fatal(err)
	}
}
