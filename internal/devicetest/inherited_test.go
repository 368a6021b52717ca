//go:build device

package devicetest

import (
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// burdened runs the command from a shell that has twenty descriptors open, one of them a lock's and
// one the device's, and another umask, limits, signals, nice value, CPU and environment than a
// daemon is to have.
func burdened(m *harness.Machine, dir, device string, args ...string) {
	m.Helper()
	script := `cd "$1"; device=$2; shift 2
exec 27< <(exec sleep 1000 >/dev/null 2>&1)
for i in $(seq 10 25); do eval "exec $i>file$i"; done
exec 26>lock; flock 26
[ -z "$device" ] || exec 28<"$device"
umask 0; ulimit -n 100; ulimit -f 1000000; ulimit -c unlimited; ulimit -t 1000; trap '' TSTP USR1 HUP INT QUIT TERM
export BURDEN=1 GOGC=7 LD_LIBRARY_PATH="$PWD"
exec nice -n 7 taskset 1 "$@"`
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: its signal mask is what the shell begins with
		var set unix.Sigset_t
		set.Val[0] = 1<<(syscall.SIGUSR2-1) | 1<<(syscall.SIGURG-1) | 1<<(syscall.SIGTERM-1)
		_ = unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
		cmd := exec.Command("bash", append([]string{"-c", script, "bash", dir, device, harness.Command}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		m.Fatal(err)
	}
}

// procField is a line of a file of /proc that begins so.
func procField(m *harness.Machine, path, name string) string {
	for line := range strings.Lines(m.ReadFile(path)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.Join(strings.Fields(rest), " ")
		}
	}
	return ""
}

// freeOfBurden looks at what a daemon has.
func freeOfBurden(m *harness.Machine, what string, pid int, dir string) {
	m.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	fds, _ := filepath.Glob(proc + "/fd/*")
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		if n, _ := strconv.Atoi(filepath.Base(fd)); strings.HasPrefix(to, dir) || strings.HasPrefix(to, "/dev/ublkb") || n == 0 && to != "/dev/null" || n > 2 && strings.HasPrefix(to, "pipe:") {
			m.Errorf("%s: descriptor %s leads to %s", what, filepath.Base(fd), to)
		}
	}
	for name, want := range map[string]string{"Umask:": "0077", "Cpus_allowed:": procField(m, "/proc/self/status", "Cpus_allowed:")} {
		if got := procField(m, proc+"/status", name); got != want {
			m.Errorf("%s: %s %s, want %s", what, name, got, want)
		}
	}
	threads, _ := filepath.Glob(proc + "/task/*/status")
	watchers := 0 // threads that block nearly all: Go's own, that waits for signals (ensureSigM, runtime/signal_unix.go)
	for _, status := range threads {
		blocked, err := strconv.ParseUint(procField(m, status, "SigBlk:"), 16, 64)
		switch {
		case err != nil || strings.HasPrefix(procField(m, status, "Name:"), "iou-"): // the kernel's, which blocks all
		case bits.OnesCount64(blocked) > 32 && watchers == 0:
			watchers++
		case blocked != 0:
			m.Errorf("%s: %s: blocked signals %x", what, status, blocked)
		}
	}
	const mayIgnore = 1<<(syscall.SIGHUP-1) | 1<<(syscall.SIGPIPE-1)
	if ignored, err := strconv.ParseUint(procField(m, proc+"/status", "SigIgn:"), 16, 64); err != nil || ignored&^mayIgnore != 0 {
		m.Errorf("%s: ignored signals %x, %v", what, ignored, err)
	}
	for name, want := range map[string]string{"Max file size": "unlimited unlimited bytes", "Max open files": "4096 4096 files", "Max core file size": "0 0 bytes", "Max cpu time": "unlimited unlimited seconds"} {
		if got := procField(m, proc+"/limits", name); got != want {
			m.Errorf("%s: %s is %s", what, name, got)
		}
	}
	for _, v := range []string{"BURDEN", "GOGC", "LD_LIBRARY_PATH"} {
		if strings.Contains("\x00"+m.ReadFile(proc+"/environ"), "\x00"+v+"=") {
			m.Errorf("%s: %s is in its environment", what, v)
		}
	}
	if nice, err := unix.Getpriority(unix.PRIO_PROCESS, pid); err != nil || nice != 20 { // 20 - nice value
		m.Errorf("%s: nice value %d, %v", what, 20-nice, err)
	}
	if cwd, _ := os.Readlink(proc + "/cwd"); cwd != "/" {
		m.Errorf("%s: it is in %s", what, cwd)
	}
	if o := m.Try("flock", "-n", filepath.Join(dir, "lock"), "true"); o.Code != 0 {
		m.Errorf("%s: the lock is held", what)
	}
}

// TestNothingInherited: a daemon has nothing of the shell that has started it.
func TestNothingInherited(t *testing.T) {
	runs.On(t, "6.12", runs.Sampled)
	c, _ := smallClone(t, "--no-hydration")
	m := c.M
	dir := m.TempDir()
	c.Del()
	burdened(m, dir, "", append([]string{"add", c.Name}, c.Args...)...)
	s := c.Status()
	c.Path = s.Device
	freeOfBurden(m, "add", s.PID, dir)
	c.End(syscall.SIGKILL)
	burdened(m, dir, c.Path, "recover", c.Name)
	freeOfBurden(m, "recover", c.Status().PID, dir)
	burdened(m, dir, c.Path, "restart", c.Name)
	freeOfBurden(m, "restart", c.Status().PID, dir)
	c.Del() // nobody has it open

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		burdened(m, dir, "", append([]string{"add", c.Name, "--foreground"}, c.Args...)...)
	}()
	m.WaitFor(harness.CleanLimit, "the clone in the foreground", func() error {
		if o := m.Try(harness.Command, "status", c.Name, "-o", "dm"); o.Code != 0 {
			return os.ErrNotExist
		}
		return nil
	})
	s = c.Status()
	c.Path = s.Device
	freeOfBurden(m, "add --foreground", s.PID, dir)
	c.Del()
	<-ended
}
