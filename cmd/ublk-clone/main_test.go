package main

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestUnitStatus: what the unit takes for final is no status that the runtime of Go ends a process
// with, and is what the daemon of a unit ends with.
func TestUnitStatus(t *testing.T) {
	unit, err := os.ReadFile("../../packaging/systemd/ublk-clone@.service")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^RestartPreventExitStatus=(.*)$`).FindSubmatch(unit)
	if line == nil {
		t.Fatal("the unit has no RestartPreventExitStatus=")
	}
	var final []int
	for _, word := range strings.Fields(string(line[1])) {
		status, err := strconv.Atoi(word)
		if err != nil || status <= 5 {
			t.Errorf("the unit relies on status %s, which a fatal error of the runtime may have", word)
		}
		final = append(final, status)
	}
	args := []string{"ublk-clone", "add", "c", "--foreground"}
	for _, m := range exit.Meaning {
		t.Setenv("NOTIFY_SOCKET", "")
		if got := unitStatus(args, m.Code); got != m.Code {
			t.Errorf("without a manager code %d becomes %d", m.Code, got)
		}
		t.Setenv("NOTIFY_SOCKET", "/run/notify")
		if got := unitStatus([]string{"ublk-clone", "del", "c"}, m.Code); got != m.Code {
			t.Errorf("of a command that is no daemon code %d becomes %d", m.Code, got)
		}
		want := slices.Contains([]int{exit.Usage, exit.Exists, exit.Denied, exit.Feature, exit.Metadata, exit.Refused}, m.Code)
		if got := unitStatus(args, m.Code); slices.Contains(final, got) != want || m.Code == exit.OK && got != exit.OK {
			t.Errorf("code %d becomes %d, which the unit starts again: %v", m.Code, got, !slices.Contains(final, got))
		}
	}
	p := &program{out: &strings.Builder{}, errs: &strings.Builder{}, dir: control.Dir(t.TempDir())}
	if got := p.run([]string{"ublk-clone", "add", "c", "--foreground", "--no-such-flag"}); got != exit.ForUnit+exit.Usage {
		t.Errorf("a wrong flag ends the daemon of a unit with %d", got)
	}
}

// TestProcessThread: no goroutine runs on the process's own thread, whose name and CPUs a queue
// would change.
func TestProcessThread(t *testing.T) {
	const goroutines = 1000
	there := make(chan bool, goroutines)
	for range goroutines {
		go func() { there <- unix.Gettid() == unix.Getpid() }()
		if <-there {
			t.Fatal("a goroutine ran on the process's own thread")
		}
	}
}
