package daemon

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
)

// TestReadyWithStatus: the service manager hears that the daemon is ready together with the status
// that holds then. Once it showed "Starting" for two seconds more, of a unit that had started.
func TestReadyWithStatus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	d := New(control.Dir(t.TempDir()), definition.Start{Definition: definition.Definition{Name: "c"}}, newFakeEngine(), zerolog.Nop())
	ready, ended := make(chan struct{}), make(chan struct{})
	left := make(chan struct{})
	go func() {
		(&Manager{log: zerolog.Nop()}).follow(d, ready, ended)
		close(left)
	}()
	next := func() string {
		t.Helper()
		b := make([]byte, 4096)
		if err := socket.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := next(); !strings.HasPrefix(got, "STATUS=Starting") {
		t.Errorf("first: %q", got)
	}
	d.life.enter(phaseUp)
	close(ready)
	if got := next(); !strings.HasPrefix(got, "READY=1\nSTATUS=") || strings.Contains(got, "Starting") {
		t.Errorf("when it is ready: %q", got)
	}
	close(ended)
	<-left
}
