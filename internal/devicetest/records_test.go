//go:build device

package devicetest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

func records(m *harness.Machine) []string {
	m.Helper()
	all, err := filepath.Glob(harness.RecordDir + "/*")
	if err != nil {
		m.Fatal(err)
	}
	return all
}

// TestRecords: a destination that is partly hydrated is known, so that metadata that vanish, or
// that are an older copy, are not taken for a new clone's. The record outlives daemon and deletion,
// and goes when the destination stands alone.
func TestRecords(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	m := harness.New(t)
	_ = os.RemoveAll(harness.RecordDir)
	const size = 16 * harness.MiB
	source, metadata := m.NullBlk("src", harness.NullOptions{MiB: size / harness.MiB}), m.Missing("meta")
	dest := m.Known("dst", m.NullBlk("dst", harness.NullOptions{MiB: size / harness.MiB}), size)
	m.FillDisk(source, harness.Original)
	w := harness.NewModel(size, 4*harness.KiB)
	c := m.AddClone(source, dest, metadata, "--no-hydration")
	one := func(when string) {
		t.Helper()
		if all := records(m); len(all) != 1 || !strings.Contains(m.ReadFile(all[0]), c.Status().UUID) {
			t.Errorf("%s: records %v", when, all)
		}
	}
	write := func(off int64) {
		t.Helper()
		v := m.Open(c.Path, os.O_RDWR)
		defer v.Close()
		if err := errors.Join(w.Write(v, m.Buffer(4096), off, false), v.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	one("as added")
	old := m.ReadFile(metadata.Path)
	c.End(syscall.SIGKILL)
	if all := records(m); len(all) != 1 {
		t.Errorf("records after the daemon's death: %v", all)
	}
	c.Recover()
	one("recovered")
	c.Del()
	c.Add() // another session: what was copied is older now
	write(harness.MiB)
	c.Del()

	refused := func(what string, says ...string) {
		t.Helper()
		t.Log(what)
		m.ExpectFailure(m.Try(harness.Command, append([]string{"add", c.Name}, c.Args...)...), exit.Refused, says...)
		if all := records(m); len(all) != 1 {
			t.Errorf("%s: records %v", what, all)
		}
	}
	kept := metadata.Path + ".kept"
	if err := os.Rename(metadata.Path, kept); err != nil {
		t.Fatal(err)
	}
	refused("metadata has vanished", metadata.Path, "partly hydrated", "--force")
	if _, err := os.Stat(metadata.Path); err == nil {
		t.Error("the refused add has left metadata")
	}
	if err := os.WriteFile(metadata.Path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("metadata is an older copy", "old copy", "--force")
	if err := os.Rename(kept, metadata.Path); err != nil {
		t.Fatal(err)
	}
	c.Add()
	one("added again")
	w.Check(m, c.Path)
	c.HydrateFast()
	c.WaitHydrated()
	m.WaitFor(harness.CleanLimit, "the record to go", func() error {
		if all := records(m); len(all) != 0 {
			return errors.New(strings.Join(all, ", "))
		}
		return nil
	})
	c.Del()
	w.Check(m, dest.Path)
	if all := records(m); len(all) != 0 {
		t.Errorf("records of a complete destination: %v", all)
	}
}
