//go:build device

package devicetest

import (
	"bytes"
	"os"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// What a clone does when its metadata fails (I10).

// Metadata that cannot be written make the clone read-only. What was acknowledged stays visible,
// what needs no mark works, FLUSH fails; del sets no clean flag and says so; and what was flushed
// before is there afterwards.
func TestMetadataFail(t *testing.T) {
	runs.On(t, "6.18")
	m := harness.New(t)
	m.Kernel.Expect("I/O error")
	source, dest, under := m.NullBlk("src", harness.NullOptions{MiB: 16}), m.NullBlk("dst", harness.NullOptions{MiB: 16}), m.NullBlk("meta", harness.NullOptions{MiB: 16})
	m.FillDisk(source, harness.Original)
	const size = 8 * harness.MiB
	c := m.AddClone(source, dest, m.Linear("meta", under, size), "--no-hydration")
	v, buf := m.Open(c.Path, os.O_RDWR), m.Buffer(4096)
	write := func(region int64, b byte) error {
		copy(buf, bytes.Repeat([]byte{b}, len(buf)))
		return v.Write(buf, region*int64(len(buf)))
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
	must("flush", v.Flush())
	m.Fails("meta", size)
	must("write, acknowledged and never committed", write(1, 2))
	mustNot("FLUSH without metadata", v.Flush())
	if s := c.Status(); s.Mode != "ro" || s.State != "failed" {
		t.Errorf("status is %+v", s)
	}
	must("write of a hydrated region", write(1, 3))
	mustNot("a write that needs a mark", write(2, 4))
	must("read", v.Read(buf, int64(len(buf))))
	if buf[0] != 3 {
		t.Errorf("what was acknowledged reads as %d", buf[0])
	}
	v.Close()
	m.Works("meta", size, under)
	m.ExpectFailure(m.Try(harness.Command, "del", c.Name), 0, "no clean flag")
	c.Path = ""
	c.Add()
	holds := func(when, mode string) {
		t.Helper()
		v := m.Open(c.Path, os.O_RDWR)
		defer v.Close()
		for i, want := range []byte{1, 3} {
			must("read", v.Read(buf, int64(i*len(buf))))
			if buf[0] != want {
				t.Errorf("%s: region %d reads as %d, not %d", when, i, buf[0], want)
			}
		}
		if s := c.Status(); s.Mode != mode {
			t.Errorf("%s: mode %s, not %s", when, s.Mode, mode)
		}
	}
	holds("after a restart", "ro")
	m.ExpectFailure(m.Try(harness.Command, "del", c.Name), 0, "no clean flag")
	c.Path = ""
	c.Args = append(c.Args, "--force")
	c.Add()
	holds("after --force", "rw")
	c.Del()
	c.Add()
	holds("committed", "rw")
	c.Del()
}
