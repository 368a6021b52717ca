package harness

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
)

// Limits of what a test waits for: they find what stands still. What is promised in seconds has a
// limit of its own.
const (
	WaitInterval = 20 * time.Millisecond
	StandLimit   = time.Minute
	CleanLimit   = StandLimit // for what was given back to be gone
	HydrateLimit = 3 * time.Minute
)

// Counting tells whether this is the counting guest (ICOUNT=1, scripts/vm).
func Counting() bool { return os.Getenv("BENCH") == "1" }

// CommandLimit is for any command. In the counting guest a wait for the host, as for the pages of a
// program, passes in leaps to the next timer: there the limit of the whole guest has to do.
func CommandLimit() time.Duration {
	if Counting() {
		return 24 * time.Hour
	}
	return time.Minute
}

// Within measures, and fails the test if it takes longer than the limit: by the counting clock
// (TIMED=1), for which the CPU does 1 GIPS whatever else the machine has to do. By others the limit
// is that of what stands still.
func (m *Guest) Within(limit time.Duration, what string, measure func() time.Duration) {
	m.Helper()
	m.InTime(limit, what, measure())
}

// InTime is within, of what was measured.
func (m *Guest) InTime(limit time.Duration, what string, took time.Duration) {
	m.Helper()
	m.Logf("%s took %v", what, took.Round(time.Millisecond))
	if os.Getenv("TIMED") != "1" {
		limit = max(limit, StandLimit)
	}
	if took > limit {
		m.Errorf("%s took %v, the limit is %v", what, took, limit)
	}
}

// Count is full with FULL=1, else reduced.
func Count(reduced, full int) int {
	if os.Getenv("FULL") == "1" {
		return full
	}
	return reduced
}

// Machine is the guest during one test, with devices and clones in it.
type Machine struct {
	Devices
	Kernel *KernelLog
	layers int // of clones
}

// Devices makes devices in the guest, which are gone when the test ends.
type Devices struct{ Contents }

// Contents fills, reads and compares devices.
type Contents struct{ Guest }

// Guest runs commands, and looks until something is so.
type Guest struct {
	*testing.T
	Dir string // an empty directory, on tmpfs
	// Spinner runs while commands do, but for those that measure.
	Spinner Spinner
}

// modules that the tests use, with their parameters.
var modules = [][]string{
	{"ublk_drv"}, {"null_blk", "nr_devices=0"}, {"loop", "max_loop=0"}, {"dm_mod"},
}

// New loads the drivers and sees to it that the test leaves nothing.
func New(t *testing.T) *Machine {
	t.Helper()
	m := &Machine{Devices: Devices{Contents{Guest{T: t, Dir: t.TempDir()}}}}
	for _, module := range modules {
		m.MustRun("modprobe", module...)
	}
	if Counting() {
		m.cachePrograms(Command, "blkid", "fio", "dmsetup")
	}
	m.startSpinner()
	m.Kernel = FollowKernelLog(t)
	if left := Leftovers(); len(left) > 0 {
		t.Fatalf("left by an earlier test: %s", strings.Join(left, ", "))
	}
	t.Cleanup(func() {
		m.WaitFor(CleanLimit, "nothing to be left behind", func() error {
			if left := Leftovers(); len(left) > 0 {
				return errors.New(strings.Join(left, ", "))
			}
			return nil
		})
		m.Kernel.Check(t)
		unix.Close(m.Kernel.FD)
	})
	return m
}

// Seed is SEED, or 1.
func Seed() uint64 {
	n, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		return 1
	}
	return n
}

// Random is the test's source of randomness.
func (m *Guest) Random() *rand.Rand {
	m.Logf("seed %d", Seed())
	return rand.New(rand.NewPCG(Seed(), uint64(len(m.Name()))))
}

// Leftovers names what no test may leave behind.
func Leftovers() []string {
	var left []string
	for _, pattern := range []string{
		"/dev/ublkb*", "/dev/ublkc*", "/sys/block/ublkb*", RunDir + "/*",
		"/sys/block/dm-*", "/sys/kernel/config/nullb/null*",
	} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	names, _ := filepath.Glob(NameDir + "/*")
	for _, name := range names {
		to, _ := os.Readlink(name)
		if _, err := os.Stat(name); err == nil && !strings.HasPrefix(to, "../mapper/") { // of a layer that outlives its clone
			left = append(left, name)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	left = append(left, loops...)
	for _, pid := range Daemons() {
		left = append(left, fmt.Sprintf("ublk-clone, process %d", pid))
	}
	return left
}

// Daemons are the processes of ublk-clone.
func Daemons() []int {
	var pids []int
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		exe, err := os.Readlink(link)
		var pid int
		if err == nil && strings.HasPrefix(filepath.Base(exe), Command) {
			_, _ = fmt.Sscanf(link, "/proc/%d/exe", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// Outcome of a command.
type Outcome struct {
	Code           int // exit status; -1 = killed, as by its limit
	Stdout, Stderr string
	Took           time.Duration
}

// Try runs a command that may fail.
func (m *Guest) Try(name string, args ...string) Outcome {
	m.Helper()
	return m.TryFor(CommandLimit(), name, args...)
}

// EndAnyway kills a program, which may have ended, and waits for it.
func EndAnyway(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it has ended
	_ = cmd.Wait()         // it was killed
}

// TryFor is try with another limit.
func (m *Guest) TryFor(limit time.Duration, name string, args ...string) Outcome {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // a daemon that kept the pipe must not hold the test
	if name != "fio" {
		defer m.Spinner.Spin()()
	}
	from := time.Now()
	err := cmd.Run()
	o := Outcome{Stdout: stdout.String(), Stderr: stderr.String(), Took: time.Since(from)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		o.Code = exit.ExitCode()
	case err != nil:
		m.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, o.Stderr)
	}
	return o
}

// MustRun runs a command that must succeed, and returns what it printed.
func (m *Guest) MustRun(name string, args ...string) string {
	m.Helper()
	return m.Must(m.Try(name, args...), name, args...)
}

// Must fails the test unless the command has succeeded.
func (m *Guest) Must(o Outcome, name string, args ...string) string {
	m.Helper()
	if o.Code != 0 {
		m.Fatalf("%s %s: exit status %d after %v\n%s%s", name, strings.Join(args, " "), o.Code, o.Took.Round(time.Millisecond), o.Stdout, o.Stderr)
	}
	return o.Stdout
}

// WaitFor looks until check is content, at most for limit.
func (m *Guest) WaitFor(limit time.Duration, what string, check func() error) {
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
		time.Sleep(WaitInterval)
	}
}

// KernelLog is the kernel's messages since the test began.
type KernelLog struct {
	FD       int
	Expected []string // of the complaints, which the test provokes
	Excused  string   // a function of the kernel
}

// FollowKernelLog begins at the end of the log.
func FollowKernelLog(t *testing.T) *KernelLog {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Seek(fd, 0, unix.SEEK_END)
	}
	if err != nil {
		t.Fatalf("follow the kernel's log: %v", err)
	}
	return &KernelLog{FD: fd}
}

// Expect lets the kernel say what a test provokes.
func (k *KernelLog) Expect(complaints ...string) { k.Expected = complaints }

// traceLines is how much of what follows a complaint is shown: its registers and stack.
const traceLines = 40

// Excuse lets the kernel give a warning within that function of its own.
func (k *KernelLog) Excuse(function string) { k.Excused = function }

// Check fails the test if the kernel has complained since the last look. What it has complained of
// comes last: the end is what is left of a long log.
func (k *KernelLog) Check(t *testing.T) {
	t.Helper()
	for _, text := range k.Complained(t) {
		t.Errorf("the kernel says: %s", text)
	}
}

// Complained is what the kernel has complained of since the last look, with its traces in the
// test's log.
func (k *KernelLog) Complained(t *testing.T) (said []string) {
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
		if k.Excused != "" && strings.Contains(text, k.Excused) && strings.Contains(said[len(said)-1], "WARNING:") {
			t.Log("                 excused")
			said = said[:len(said)-1]
			shown = traceLines
		}
	}
}

// next is the next message, false at the end.
func (k *KernelLog) next() (string, bool) {
	record := make([]byte, 8192)
	n, err := unix.Read(k.FD, record)
	for err == unix.EPIPE { // overwritten meanwhile: on with the oldest that is left
		n, err = unix.Read(k.FD, record)
	}
	if err != nil || n <= 0 {
		return "", false
	}
	_, text, _ := strings.Cut(string(record[:n]), ";")
	text, _, _ = strings.Cut(text, "\n")
	return text, true
}

// complains says whether the message is a complaint that the test does not expect.
func (k *KernelLog) complains(text string) bool {
	return slices.ContainsFunc(Complaints, func(complaint string) bool {
		return !slices.Contains(k.Expected, complaint) && strings.Contains(text, complaint)
	})
}
