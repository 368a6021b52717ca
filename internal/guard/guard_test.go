package guard

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFatal runs itself: the process must say why and be dead by SIGKILL, also when nobody reads
// its standard error.
func TestFatal(t *testing.T) {
	if os.Getenv("UBLK_TEST_FATAL") != "" {
		defer Guard("queue 5", Fatal)
		panic("the cause")
	}
	for _, blocked := range []bool{false, true} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFatal$")
		cmd.Env = append(os.Environ(), "UBLK_TEST_FATAL=1")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = w
		if blocked {
			fillPipe(t, w)
		}
		begin := time.Now()
		err = cmd.Run()
		w.Close()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
			t.Errorf("blocked %v: ended with %v after %v, want SIGKILL", blocked, err, time.Since(begin))
		}
		var message [messageLimit]byte
		n, _ := r.Read(message[:])
		r.Close()
		if text := string(message[:n]); !blocked && !strings.Contains(text, "fatal: queue 5: panic: the cause\n") {
			t.Errorf("message %q", text)
		}
	}
}

// fillPipe leaves no room in w.
func fillPipe(t *testing.T, w *os.File) {
	t.Helper()
	fd := int(w.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	junk := make([]byte, 4096)
	for {
		if _, err := unix.Write(fd, junk); err == unix.EAGAIN {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
}
