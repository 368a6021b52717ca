//go:build device

package devicetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Limits of what a test waits for: they find what stands still. What is promised in seconds has a limit of its own.
const (
	waitInterval = 20 * time.Millisecond
	standLimit   = time.Minute
	cleanLimit   = standLimit // for what was given back to be gone
	hydrateLimit = 3 * time.Minute
)

// counting tells whether this is the counting guest (ICOUNT=1, scripts/vm).
func counting() bool { return os.Getenv("BENCH") == "1" }

// commandLimit is for any command. In the counting guest a wait for the host, as for the pages of a
// program, passes in leaps to the next timer: there the limit of the whole guest has to do.
func commandLimit() time.Duration {
	if counting() {
		return 24 * time.Hour
	}
	return time.Minute
}

// within measures, and fails the test if it takes longer than the limit: by the counting clock (TIMED=1), for which the
// CPU does 1 GIPS whatever else the machine has to do. By others the limit is that of what stands still.
func (m *machine) within(limit time.Duration, what string, measure func() time.Duration) {
	m.Helper()
	m.inTime(limit, what, measure())
}

// inTime is within, of what was measured.
func (m *machine) inTime(limit time.Duration, what string, took time.Duration) {
	m.Helper()
	m.Logf("%s took %v", what, took.Round(time.Millisecond))
	if os.Getenv("TIMED") != "1" {
		limit = max(limit, standLimit)
	}
	if took > limit {
		m.Errorf("%s took %v, the limit is %v", what, took, limit)
	}
}

// count is full with FULL=1, else reduced.
func count(reduced, full int) int {
	if os.Getenv("FULL") == "1" {
		return full
	}
	return reduced
}

// machine is the guest during one test.
type machine struct {
	*testing.T
	dir    string // an empty folder, on tmpfs
	kernel *kernelLog
	// spinner runs while commands do, but for those that measure.
	spinner spinner
}

// modules that the tests use, with their parameters.
var modules = [][]string{
	{"ublk_drv"}, {"null_blk", "nr_devices=0"}, {"loop", "max_loop=0"}, {"dm_mod"},
}

// newMachine loads the drivers and sees to it that the test leaves nothing.
func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{T: t, dir: t.TempDir()}
	for _, module := range modules {
		m.run("modprobe", module...)
	}
	if counting() {
		m.cachePrograms(command, "blkid", "fio", "dmsetup")
	}
	m.startSpinner()
	m.kernel = followKernelLog(t)
	if left := leftovers(); len(left) > 0 {
		t.Fatalf("left by an earlier test: %s", strings.Join(left, ", "))
	}
	t.Cleanup(func() {
		m.waitFor(cleanLimit, "nothing to be left behind", func() error {
			if left := leftovers(); len(left) > 0 {
				return errors.New(strings.Join(left, ", "))
			}
			return nil
		})
		m.kernel.check(t)
		unix.Close(m.kernel.fd)
	})
	return m
}

// seed is SEED, or 1.
func seed() uint64 {
	n, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		return 1
	}
	return n
}

// random is the test's source of randomness.
func (m *machine) random() *rand.Rand {
	m.Logf("seed %d", seed())
	return rand.New(rand.NewPCG(seed(), uint64(len(m.Name()))))
}

// leftovers names what no test may leave behind.
func leftovers() []string {
	var left []string
	for _, pattern := range []string{
		"/dev/ublkb*", "/dev/ublkc*", "/sys/block/ublkb*", runDir + "/*",
		"/sys/block/dm-*", "/sys/kernel/config/nullb/null*",
	} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	left = append(left, loops...)
	for _, pid := range daemons() {
		left = append(left, fmt.Sprintf("ublk-clone, process %d", pid))
	}
	return left
}

// daemons are the processes of ublk-clone.
func daemons() []int {
	var pids []int
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		exe, err := os.Readlink(link)
		var pid int
		if err == nil && strings.HasPrefix(filepath.Base(exe), command) {
			fmt.Sscanf(link, "/proc/%d/exe", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// outcome of a command.
type outcome struct {
	code           int // exit status; -1 = killed, as by its limit
	stdout, stderr string
	took           time.Duration
}

// try runs a command that may fail.
func (m *machine) try(name string, args ...string) outcome {
	m.Helper()
	return m.tryFor(commandLimit(), name, args...)
}

// tryFor is try with another limit.
func (m *machine) tryFor(limit time.Duration, name string, args ...string) outcome {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // a daemon that kept the pipe must not hold the test
	if name != "fio" {
		defer m.spinner.spin()()
	}
	from := time.Now()
	err := cmd.Run()
	o := outcome{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(from)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		o.code = exit.ExitCode()
	case err != nil:
		m.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, o.stderr)
	}
	return o
}

// run runs a command that must succeed, and returns what it printed.
func (m *machine) run(name string, args ...string) string {
	m.Helper()
	return m.must(m.try(name, args...), name, args...)
}

// must fails the test unless the command has succeeded.
func (m *machine) must(o outcome, name string, args ...string) string {
	m.Helper()
	if o.code != 0 {
		m.Fatalf("%s %s: exit status %d after %v\n%s%s", name, strings.Join(args, " "), o.code, o.took.Round(time.Millisecond), o.stdout, o.stderr)
	}
	return o.stdout
}

// waitFor looks until check is content, at most for limit.
func (m *machine) waitFor(limit time.Duration, what string, check func() error) {
	m.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(waitInterval)
	}
}

// kernelLog is the kernel's messages since the test began.
type kernelLog struct {
	fd       int
	expected []string // of the complaints, which the test provokes
	excused  string   // a function of the kernel
}

// followKernelLog begins at the end of the log.
func followKernelLog(t *testing.T) *kernelLog {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Seek(fd, 0, unix.SEEK_END)
	}
	if err != nil {
		t.Fatalf("follow the kernel's log: %v", err)
	}
	return &kernelLog{fd: fd}
}

// expect lets the kernel say what a test provokes.
func (k *kernelLog) expect(complaints ...string) { k.expected = complaints }

// traceLines is how much of what follows a complaint is shown: its registers and stack.
const traceLines = 40

// excuse lets the kernel give a warning within that function of its own.
func (k *kernelLog) excuse(function string) { k.excused = function }

// check fails the test if the kernel has complained since the last look. What it has complained of comes last: the
// end is what is left of a long log.
func (k *kernelLog) check(t *testing.T) {
	t.Helper()
	for _, text := range k.complained(t) {
		t.Errorf("the kernel says: %s", text)
	}
}

// complained is what the kernel has complained of since the last look, with its traces in the test's log.
func (k *kernelLog) complained(t *testing.T) (said []string) {
	t.Helper()
	shown := traceLines
	for {
		text, ok := k.next()
		if !ok {
			return said
		}
		if k.complains(text) {
			said = append(said, text)
			shown = 0
		}
		if shown == traceLines {
			continue
		}
		shown++
		t.Logf("                 %s", text)
		if k.excused != "" && strings.Contains(text, k.excused) && strings.Contains(said[len(said)-1], "WARNING:") {
			t.Log("                 excused")
			said = said[:len(said)-1]
			shown = traceLines
		}
	}
}

// next is the next message, false at the end.
func (k *kernelLog) next() (string, bool) {
	record := make([]byte, 8192)
	n, err := unix.Read(k.fd, record)
	for err == unix.EPIPE { // overwritten meanwhile: on with the oldest that is left
		n, err = unix.Read(k.fd, record)
	}
	if err != nil || n <= 0 {
		return "", false
	}
	_, text, _ := strings.Cut(string(record[:n]), ";")
	text, _, _ = strings.Cut(text, "\n")
	return text, true
}

// complains says whether the message is a complaint that the test does not expect.
func (k *kernelLog) complains(text string) bool {
	return slices.ContainsFunc(Complaints, func(complaint string) bool {
		return !slices.Contains(k.expected, complaint) && strings.Contains(text, complaint)
	})
}

// TestKernelLog: what the kernel complains of is found, and what is excused is that and no more.
func TestKernelLog(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	k := followKernelLog(t)
	defer unix.Close(k.fd)
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
			k.expected, k.excused = c.expected, "some_function"
			for _, text := range c.says {
				if err := os.WriteFile("/dev/kmsg", []byte(text+"\n"), 0); err != nil {
					t.Fatal(err)
				}
			}
			if said := k.complained(t); len(said) != c.want {
				t.Errorf("%d complaints: %q, not %d", len(said), said, c.want)
			}
		})
	}
}
