package daemon

import (
	"os"
	"path"
	"strings"
	"time"

	manager "github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/systemd"
)

// Manager is the manager's side; nil for a daemon that none has started.
type Manager struct {
	unit     string        // ublk-clone@NAME.service
	watchdog time.Duration // the manager kills a daemon that is silent for so long; 0: never
	log      zerolog.Logger
}

// FindManager reads what the manager has put into the environment.
func FindManager(log zerolog.Logger) *Manager {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	watchdog, err := manager.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn().Err(err).Msg("read the watchdog's time from the environment")
	}
	return &Manager{unit: ownUnit(), watchdog: watchdog, log: log}
}

// ownUnit is the unit that this process is in: the last part of its control group.
func ownUnit() string {
	if unit := path.Base(systemd.ControlGroup()); strings.HasSuffix(unit, ".service") {
		return unit
	}
	return ""
}

// name is the unit's, "" without one.
func (s *Manager) name() string {
	if s == nil {
		return ""
	}
	return s.unit
}

// tell sends lines such as "STATUS=..." (sd_notify(3)).
func (s *Manager) tell(lines ...string) {
	if _, err := manager.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		s.log.Warn().Err(err).Msg("tell the service manager")
	}
}

// statusPause is how often the status line is sent.
const statusPause = 2 * time.Second

// follow tells how the daemon is until ended is closed. That it is ready, which ready says, comes
// with the status that holds then.
func (s *Manager) follow(d *daemon, ready, ended <-chan struct{}) {
	var lines []string
	last := ""
	for {
		if text := "STATUS=" + d.currentStatus().ServiceText(); text != last {
			lines, last = append(lines, text), text
		}
		if len(lines) > 0 {
			s.tell(lines...)
			lines = nil
		}
		select {
		case <-ended:
			return
		case <-ready:
			lines, ready = []string{manager.SdNotifyReady}, nil
		case <-time.After(statusPause):
		}
	}
}

// feed feeds the watchdog until ended is closed: only as long as every loop of the data path goes
// round when it is asked to. A timer alone would feed it for a daemon whose queues stand still.
func (s *Manager) feed(answers func() bool, ended <-chan struct{}) {
	if s.watchdog == 0 {
		return
	}
	for {
		if answers() {
			s.tell(manager.SdNotifyWatchdog)
		}
		select {
		case <-ended:
			return
		case <-time.After(s.watchdog / 4):
		}
	}
}
