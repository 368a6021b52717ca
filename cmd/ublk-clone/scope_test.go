package main

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestScopeOfSilentSystemd: a service manager that does not answer keeps no daemon from its clone.
func TestScopeOfSilentSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close() // it accepts in the kernel's queue, and nobody reads
	was := systemdSocket
	systemdSocket = path
	defer func() { systemdSocket = was }()
	begin := time.Now()
	err = askForScope("c", os.Getpid())
	if took := time.Since(begin); took > 2*scopeLimit {
		t.Errorf("it took %v", took)
	}
	if err == nil || !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("the error is %v", err)
	}
	socket.Close()
	if err := askForScope("c", os.Getpid()); err == nil || !strings.Contains(err.Error(), "connect to systemd") {
		t.Errorf("without a listener the error is %v", err)
	}
}

func TestSystemdGroup(t *testing.T) {
	for lines, want := range map[string]string{
		"0::/system.slice/x.scope\n": "/system.slice/x.scope",
		"12:cpu:/\n1:name=systemd:/a.slice/y.service\n0::/a.slice/z.service\n":   "/a.slice/y.service",
		"0::/a.slice/z.service\n2:name=systemd:/a.slice/y.service\n3:memory:/\n": "/a.slice/y.service",
		"": "", "nonsense\n": "",
	} {
		if got := systemdGroup(lines); got != want {
			t.Errorf("%q: %q, not %q", lines, got, want)
		}
	}
}

// TestUnitStatus: what the unit takes for final is no status that the runtime of Go ends a process with, and is what the
// daemon of a unit ends with.
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
	p := &program{out: &strings.Builder{}, errs: &strings.Builder{}, dir: runDir(t.TempDir())}
	if got := p.run([]string{"ublk-clone", "add", "c", "--foreground", "--no-such-flag"}); got != exit.ForUnit+exit.Usage {
		t.Errorf("a wrong flag ends the daemon of a unit with %d", got)
	}
}
