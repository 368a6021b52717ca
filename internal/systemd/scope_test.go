package systemd

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
