package systemd

import (
	"fmt"
	"os/exec"
	"strings"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// systemctlLimit is for a command of the service manager, which waits for the daemon's start.
const systemctlLimit = "330s"

// ByUnit has the service manager do something with a clone's unit: a daemon that this command
// started would not be the unit's.
func ByUnit(verb, unit, name string) error {
	var said strings.Builder
	cmd := exec.Command("timeout", systemctlLimit, "systemctl", verb, unit)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return &exit.Error{Code: exit.Other, Doing: verb + " the unit of", Object: name,
			Cause: fmt.Errorf("systemctl %s %s: %w: %s", verb, unit, err, strings.TrimSpace(said.String())),
			Next:  "See `systemctl status " + unit + "` and `journalctl -u " + unit + "`."}
	}
	return nil
}

// StateLimit leaves time for the rest within the unit's TimeoutStopSec=. Twenty clones that stop at
// once on two slow cores, with the host busy, waited for more than 5 s.
const StateLimit = "30s"

// ManagerUp is the service manager's states while the machine is not being shut down (systemctl(1),
// is-system-running).
var ManagerUp = []string{"initializing", "starting", "running", "degraded", "maintenance"}

// ManagerState is the service manager's state: "stopping" while the machine is being shut down; "",
// "unknown" or "offline" if it does not answer.
func ManagerState() string {
	out, _ := exec.Command("timeout", StateLimit, "systemctl", "is-system-running").Output() // fails unless it is "running"
	return strings.TrimSpace(string(out))
}
