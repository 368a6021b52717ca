package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// A daemon that no unit has started begins in the control group of whoever ran the command: a login
// session, a timer's service, the updater of the package. systemd kills such a group as a whole
// when its unit ends. So where systemd runs the daemon moves to a scope of its own before it opens
// anything.

// Paths of systemd: the directory that says it is process 1 (sd_booted(3)), and the socket on which
// it answers root also when no message bus runs.
const systemdDir = "/run/systemd/system"

var systemdSocket = "/run/systemd/private"

// scopeLimit is how long systemd may take. A start waits no longer for it: users may be waiting for
// the clone.
const scopeLimit = 5 * time.Second

// scopePause is between two looks whether the process is in its scope.
const scopePause = 50 * time.Millisecond

// scopeName is the scope's of the daemon with that process number.
func scopeName(clone string, pid int) string {
	return fmt.Sprintf("ublk-clone-%s-%d.scope", clone, pid)
}

// EnterScope moves this process to a scope of its own, where systemd runs. With an error it is
// where it was.
func EnterScope(clone string) error {
	_, err := os.Stat(systemdDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = askForScope(clone, os.Getpid())
	}
	if err != nil {
		return fmt.Errorf("move the daemon to a scope of its own: %w", err)
	}
	return nil
}

// askForScope has systemd make the scope, and waits until the process is in it.
func askForScope(clone string, pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), scopeLimit)
	defer cancel()
	manager, err := systemd.NewConnection(func() (*dbus.Conn, error) { return dialSystemd(ctx) })
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", orLate(ctx, err))
	}
	defer manager.Close()
	name := scopeName(clone, pid)
	if _, err := manager.StartTransientUnitContext(ctx, name, "fail", scopeProperties(clone, pid), nil); err != nil {
		return fmt.Errorf("start %s: %w", name, orLate(ctx, err))
	}
	for {
		if path.Base(ControlGroup()) == name {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w", name, orLate(ctx, ctx.Err()))
		case <-time.After(scopePause):
		}
	}
}

// scopeProperties are those of the scope. Without default dependencies it is not stopped when the
// machine goes down: the daemon serves until file systems are unmounted, and ends by the signal
// that systemd sends to whatever is left then. Its name is free again as soon as it has ended.
func scopeProperties(clone string, pid int) []systemd.Property {
	return []systemd.Property{
		systemd.PropDescription("Daemon of the clone " + clone),
		systemd.PropSlice("system.slice"),
		systemd.PropPids(uint32(pid)),
		{Name: "DefaultDependencies", Value: dbus.MakeVariant(false)},
		{Name: "CollectMode", Value: dbus.MakeVariant("inactive-or-failed")},
	}
}

// dialSystemd connects to systemd itself, as root.
func dialSystemd(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.Dial("unix:path="+systemdSocket, dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(fmt.Sprint(os.Getuid()))}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// orLate is err, or that the limit has passed, which then is its cause.
func orLate(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("no answer within %s", scopeLimit)
	}
	return err
}

// ControlGroup is that of this process in systemd's hierarchy, "" if there is none.
func ControlGroup() string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	return systemdGroup(string(b))
}

// systemdGroup finds the group in the lines "number:controllers:path" of proc_pid_cgroup(5):
// systemd's is the hierarchy without a number or, where there are several, the one called after it.
func systemdGroup(lines string) (group string) {
	for line := range strings.Lines(lines) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && (fields[1] == "name=systemd" || fields[0] == "0" && group == "") {
			group = fields[2]
		}
	}
	return group
}
