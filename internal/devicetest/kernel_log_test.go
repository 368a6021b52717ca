//go:build device

package devicetest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestKernelLog: what the kernel complains of is found, and what is excused is that and no more.
func TestKernelLog(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	k := harness.FollowKernelLog(t)
	defer unix.Close(k.FD)
	for _, c := range []struct {
		name     string
		says     []string
		expected []string
		want     int
	}{
		{"nothing", []string{"all is well"}, nil, 0},
		{"an error", []string{"I/O error, dev x", "all is well"}, nil, 1},
		{"an error that is expected", []string{"I/O error, dev x"}, []string{"I/O error"}, 0},
		{"a warning", []string{"WARNING: a.c:1", " elsewhere+0x1/0x2"}, nil, 1},
		{"a warning that is excused", []string{"WARNING: a.c:1", " some_function+0x1/0x2"}, nil, 0},
		{"another warning too", []string{"WARNING: a.c:1", " some_function+0x1/0x2", "WARNING: b.c:2"}, nil, 1},
		{"another warning before it", []string{"WARNING: a.c:1", "WARNING: b.c:2", " some_function+0x1/0x2"}, nil, 1},
		{"not a warning", []string{"BUG: a.c:1", " some_function+0x1/0x2"}, nil, 1},
		{"no warning before it", []string{" some_function+0x1/0x2"}, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			k.Expected, k.Excused = c.expected, "some_function"
			for _, text := range c.says {
				if err := os.WriteFile("/dev/kmsg", []byte(text+"\n"), 0); err != nil {
					t.Fatal(err)
				}
			}
			if said := k.Complained(t); len(said) != c.want {
				t.Errorf("%d complaints: %q, not %d", len(said), said, c.want)
			}
		})
	}
}
