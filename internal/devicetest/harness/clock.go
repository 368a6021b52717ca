package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spinner is a program that has nothing to do and does it with the lowest priority. While it runs
// the CPU is never idle, so that a clock that skips idle time goes at the pace of the host: what
// waits for a file of the host, be it only to hear that there is none, would else find that hours
// have passed. It is stopped while something is measured.
type Spinner struct{ process *os.Process }

// spinnerStart is for the shell to reach its loop.
const spinnerStart = 100 * time.Millisecond

// outsideOfGuest says that the clock is the machine's own.
func outsideOfGuest() bool { return os.Getenv("BENCH_NATIVE") == "1" }

// startSpinner for the time of a test; it is stopped at first.
func (m *Guest) startSpinner() {
	m.Helper()
	if !Counting() || outsideOfGuest() {
		return
	}
	spin := exec.Command("sh", "-c", "while :; do :; done")
	if err := spin.Start(); err != nil {
		m.Fatal(err)
	}
	const schedIdle = 5 // SCHED_IDLE, include/uapi/linux/sched.h
	if err := unix.SchedSetAttr(spin.Process.Pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: schedIdle}, 0); err != nil {
		m.Fatal(err)
	}
	m.WaitFor(CommandLimit(), "the spinner", func() error { // it too waits for the host before it runs
		if text := m.ReadFile(fmt.Sprintf("/proc/%d/cmdline", spin.Process.Pid)); !strings.Contains(text, "while") {
			return errors.New(text)
		}
		return nil
	})
	time.Sleep(spinnerStart)
	_ = spin.Process.Signal(syscall.SIGSTOP)
	m.Spinner.process = spin.Process
	m.Cleanup(func() {
		m.Spinner.process = nil
		_ = spin.Process.Kill()
		_ = spin.Wait()
	})
}

// Spin until stop is called.
func (s *Spinner) Spin() (stop func()) {
	if s.process == nil {
		return func() {}
	}
	_ = s.process.Signal(syscall.SIGCONT)
	return func() { _ = s.process.Signal(syscall.SIGSTOP) }
}

// HasKernelClone loads dm-clone.
func (m *Guest) HasKernelClone() bool { return m.Try("modprobe", "dm-clone").Code == 0 }

// cachePrograms brings programs into the page cache: a wait for the host's files would leap over
// the time limits of the daemon.
func (m *Guest) cachePrograms(names ...string) {
	m.Helper()
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			_, err = os.ReadFile(path)
		}
		if err != nil {
			m.Fatal(err)
		}
		m.Try(name, "--version") // its libraries
	}
}
