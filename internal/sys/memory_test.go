package sys

import (
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestParseArea(t *testing.T) {
	for _, c := range []struct {
		line   string
		advice int
	}{
		{"00400000-0070f000 r-xp 00000000 00:19 10469638                           /p", unix.MADV_POPULATE_READ},
		{"00a9b000-00b17000 rw-p 0069b000 00:19 10469638                           /p", unix.MADV_POPULATE_WRITE},
		{"00b17000-02b4f000 rw-p 00000000 00:00 0 ", unix.MADV_POPULATE_WRITE},
		{"d768400000-d76c400000 rw-p 00000000 00:00 0 ", unix.MADV_POPULATE_WRITE},
		{"d76c400000-d76c500000 ---p 00000000 00:00 0 ", 0},
		{"7ff56d36d000-7ff56d370000 rw-s 00000000 00:26 2                          /run/a file", 0},
		{"7ff5b4177000-7ff5b417b000 r--p 00000000 00:00 0                          [vvar]", 0},
		{"7fff14d70000-7fff14d91000 rw-p 00000000 00:00 0                          [stack]", 0},
	} {
		m, err := parseArea(c.line)
		if err != nil || m.advice("/p") != c.advice {
			t.Errorf("%s: %+v, %v: advice %d, want %d", c.line, m, err, m.advice("/p"), c.advice)
		}
	}
	for _, line := range []string{"", "00400000-0070f000 r-xp", "x-y r-xp 0 0 0", "00400000 r-xp 0 0 0"} {
		if _, err := parseArea(line); err == nil {
			t.Errorf("no error for %q", line)
		}
	}
}

// TestTouchProgram: of a mapping that is in use in part, what follows that part comes into memory,
// and nothing else; a second call takes no more.
func TestTouchProgram(t *testing.T) {
	const size, used = 8 * behindRun, 4 * behindRun
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE) // a kernel without huge pages knows no such advice
	b[used] = 1
	page := os.Getpagesize()
	start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	for range 2 {
		if err := TouchProgram(); err != nil {
			t.Fatal(err)
		}
		present, err := area{start: start, end: start + size}.present()
		if err != nil {
			t.Fatal(err)
		}
		// A mapping of another that ends before this one may be joined to it.
		for i := behindRun / page; i < len(present); i++ {
			if want := i >= used/page && i <= (used+behind)/page; want != (present[i] == 1) {
				t.Fatalf("page %d of %d: in memory: %v, expected %v", i, len(present), present[i] == 1, want)
			}
		}
	}
}

func TestExtend(t *testing.T) {
	const page = behind / 2 // so that two follow a page or two, and 8 a run of these
	for _, c := range []struct{ used, want string }{
		{"", "[]"},
		{"....", "[]"},
		{"x...", "[{1 3}]"},
		{".x......x.", "[{2 4} {9 10}]"},
		{".x.x...x", "[{2 6}]"},
		{"x...x", "[{1 3}]"},
		{"xx..................", "[{2 10}]"},
		{"xx......x...........", "[{2 11}]"},
	} {
		used := make([]byte, len(c.used))
		for i := range used {
			used[i] = map[byte]byte{'.': 0, 'x': 1}[c.used[i]]
		}
		if got := fmt.Sprint(extend(used, page)); got != c.want {
			t.Errorf("%s: %s, expected %s", c.used, got, c.want)
		}
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
