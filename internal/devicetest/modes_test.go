//go:build device

package devicetest

import (
	"bytes"
	"os"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// What a clone does when its metadata fail (I10).

// Metadata that cannot be written make the clone read-only. What was acknowledged stays visible, what needs
// no mark works, FLUSH fails; del sets no clean mark and says so; and what was flushed before is there afterwards.
func TestMetadataFail(t *testing.T) {
	runs.On(t, "6.18")
	m := newMachine(t)
	m.kernel.expect("I/O error")
	source, dest, under := m.nullBlk("src", nullOptions{mib: 16}), m.nullBlk("dst", nullOptions{mib: 16}), m.nullBlk("meta", nullOptions{mib: 16})
	m.fillDisk(source, original)
	const size = 8 * mib
	c := m.addClone(source, dest, m.linear("meta", under, size), "--no-hydration")
	v, buf := m.open(c.path, os.O_RDWR), m.buffer(4096)
	write := func(region int64, b byte) error {
		copy(buf, bytes.Repeat([]byte{b}, len(buf)))
		return v.write(buf, region*int64(len(buf)))
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	mustNot := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s succeeds", what)
		}
	}
	must("write", write(0, 1))
	must("flush", v.flush())
	m.fails("meta", size)
	must("write, acknowledged and never committed", write(1, 2))
	mustNot("FLUSH without metadata", v.flush())
	if s := c.status(); s.Mode != "ro" || s.State != "failed" {
		t.Errorf("status is %+v", s)
	}
	must("write of a hydrated region", write(1, 3))
	mustNot("a write that needs a mark", write(2, 4))
	must("read", v.read(buf, int64(len(buf))))
	if buf[0] != 3 {
		t.Errorf("what was acknowledged reads as %d", buf[0])
	}
	v.close()
	m.works("meta", size, under)
	m.expectFailure(m.try(command, "del", c.name), 0, "no clean mark")
	c.path = ""
	c.add()
	holds := func(when, mode string) {
		t.Helper()
		v := m.open(c.path, os.O_RDWR)
		defer v.close()
		for i, want := range []byte{1, 3} {
			must("read", v.read(buf, int64(i*len(buf))))
			if buf[0] != want {
				t.Errorf("%s: region %d reads as %d, not %d", when, i, buf[0], want)
			}
		}
		if s := c.status(); s.Mode != mode {
			t.Errorf("%s: mode %s, not %s", when, s.Mode, mode)
		}
	}
	holds("after a restart", "ro")
	m.expectFailure(m.try(command, "del", c.name), 0, "no clean mark")
	c.path = ""
	c.args = append(c.args, "--force")
	c.add()
	holds("after --force", "rw")
	c.del()
	c.add()
	holds("committed", "rw")
	c.del()
}
