package sys

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseArea(t *testing.T) {
	for _, c := range []struct {
		line   string
		advice int
		used   uintptr
	}{
		{"00400000-0070f000 r-xp 00000000 00:19 10469638                           /p", unix.MADV_POPULATE_READ, 0x30f000},
		{"00a9b000-00b17000 rw-p 0069b000 00:19 10469638                           /p", unix.MADV_POPULATE_WRITE, 0x7c000},
		{"00b17000-02b4f000 rw-p 00000000 00:00 0 ", unix.MADV_POPULATE_WRITE, beginning},
		{"d768400000-d76c400000 rw-p 00000000 00:00 0 ", unix.MADV_POPULATE_WRITE, 64 << 20},
		{"d76c400000-d76c500000 ---p 00000000 00:00 0 ", 0, 1 << 20},
		{"7ff56d36d000-7ff56d370000 rw-s 00000000 00:26 2                          /run/a file", 0, 0x3000},
		{"7ff5b4177000-7ff5b417b000 r--p 00000000 00:00 0                          [vvar]", 0, 0x4000},
		{"7fff14d70000-7fff14d91000 rw-p 00000000 00:00 0                          [stack]", 0, 0x21000},
	} {
		m, err := parseArea(c.line)
		if err != nil || m.advice("/p") != c.advice || m.used(0xd768400040) != c.used {
			t.Errorf("%s: %+v, %v: advice %d for %#x bytes, want %d for %#x", c.line, m, err, m.advice("/p"), m.used(0xd768400040), c.advice, c.used)
		}
	}
	for _, line := range []string{"", "00400000-0070f000 r-xp", "x-y r-xp 0 0 0", "00400000 r-xp 0 0 0"} {
		if _, err := parseArea(line); err == nil {
			t.Errorf("no error for %q", line)
		}
	}
}

func TestTouchProgram(t *testing.T) {
	if err := TouchProgram(); err != nil {
		t.Error(err)
	}
}

// TestInitMounts: where the test runs in the mount namespace of process 1, what is done there is
// done here.
func TestInitMounts(t *testing.T) {
	here, err := InInitMounts()
	if err != nil || !here {
		t.Skipf("not in the mount namespace of process 1 (%v): nothing to compare with", err)
	}
	var there Stat
	err = DoInInitMounts(func() (err error) {
		there, err = StatPath("/proc/1")
		return err
	})
	if want, errWant := StatPath("/proc/1"); err != nil || errWant != nil || there != want {
		t.Errorf("%+v (%v), expected %+v (%v)", there, err, want, errWant)
	}
	if wd, err := os.Getwd(); err != nil || wd == "/" {
		t.Errorf("the working directory has become %s, %v", wd, err)
	}
}
