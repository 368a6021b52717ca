//go:build device

package devicetest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// recordDir has a record for each destination that is partly hydrated.
const recordDir = "/var/lib/ublk-clone"

func (m *machine) records() []string {
	m.Helper()
	all, err := filepath.Glob(recordDir + "/*")
	if err != nil {
		m.Fatal(err)
	}
	return all
}

// TestRecords: a destination that is partly hydrated is known, so that metadata that vanish, or that are an older
// copy, are not taken for a new clone's. The record outlives daemon and deletion, and goes when the
// destination stands alone.
func TestRecords(t *testing.T) {
	runs.On(t, "6.12")
	m := newMachine(t)
	os.RemoveAll(recordDir)
	const size = 16 * mib
	source, metadata := m.nullBlk("src", nullOptions{mib: size / mib}), m.missing("meta")
	dest := m.known("dst", m.nullBlk("dst", nullOptions{mib: size / mib}), size)
	m.fillDisk(source, original)
	w := newModel(size, 4*kib)
	c := m.addClone(source, dest, metadata, "--no-hydration")
	one := func(when string) {
		t.Helper()
		if all := m.records(); len(all) != 1 || !strings.Contains(m.readFile(all[0]), c.status().UUID) {
			t.Errorf("%s: records %v", when, all)
		}
	}
	write := func(off int64) {
		t.Helper()
		v := m.open(c.path, os.O_RDWR)
		defer v.close()
		if err := errors.Join(w.write(v, m.buffer(4096), off, false), v.flush()); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	one("as added")
	old := m.readFile(metadata.path)
	c.end(syscall.SIGKILL)
	if all := m.records(); len(all) != 1 {
		t.Errorf("records after the daemon's death: %v", all)
	}
	c.recover()
	one("recovered")
	c.del()
	c.add() // another session: what was copied is older now
	write(mib)
	c.del()

	refused := func(what string, says ...string) {
		t.Helper()
		t.Log(what)
		m.expectFailure(m.try(command, append([]string{"add", c.name}, c.args...)...), exit.Refused, says...)
		if all := m.records(); len(all) != 1 {
			t.Errorf("%s: records %v", what, all)
		}
	}
	kept := metadata.path + ".kept"
	if err := os.Rename(metadata.path, kept); err != nil {
		t.Fatal(err)
	}
	refused("metadata have vanished", metadata.path, "partly hydrated", "--force")
	if _, err := os.Stat(metadata.path); err == nil {
		t.Error("the refused add has left metadata")
	}
	if err := os.WriteFile(metadata.path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("metadata are an older copy", "old copy", "--force")
	if err := os.Rename(kept, metadata.path); err != nil {
		t.Fatal(err)
	}
	c.add()
	one("added again")
	w.check(m, c.path)
	c.hydrateFast()
	c.waitHydrated()
	m.waitFor(cleanLimit, "the record to go", func() error {
		if all := m.records(); len(all) != 0 {
			return errors.New(strings.Join(all, ", "))
		}
		return nil
	})
	c.del()
	w.check(m, dest.path)
	if all := m.records(); len(all) != 0 {
		t.Errorf("records of a complete destination: %v", all)
	}
}
