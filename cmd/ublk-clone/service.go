package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	manager "github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// A daemon that is the main process of a systemd unit (packaging/systemd/ublk-clone@.service): it takes over what
// serves the clone now, tells the manager how it is, and feeds the watchdog from the data path.

// service is the manager's side; nil for a daemon that none has started.
type service struct {
	unit     string        // ublk-clone@NAME.service
	watchdog time.Duration // the manager kills a daemon that is silent for so long; 0: never
	log      zerolog.Logger
}

// theService reads what the manager has put into the environment.
func theService(log zerolog.Logger) *service {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	watchdog, err := manager.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn().Err(err).Msg("read the watchdog's time from the environment")
	}
	return &service{unit: ownUnit(), watchdog: watchdog, log: log}
}

// ownUnit is the unit that this process is in: the last part of its control group.
func ownUnit() string {
	if unit := path.Base(controlGroup()); strings.HasSuffix(unit, ".service") {
		return unit
	}
	return ""
}

// name is the unit's, "" without one.
func (s *service) name() string {
	if s == nil {
		return ""
	}
	return s.unit
}

// tell sends lines such as "STATUS=..." (sd_notify(3)).
func (s *service) tell(lines ...string) {
	if _, err := manager.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		s.log.Warn().Err(err).Msg("tell the service manager")
	}
}

// statusPause is how often the status line is sent.
const statusPause = 2 * time.Second

// follow tells how the daemon is until ended is closed. That it is ready, which ready says, comes with the status that
// holds then.
func (s *service) follow(d *daemon, ready, ended <-chan struct{}) {
	var lines []string
	last := ""
	for {
		if text := "STATUS=" + d.currentStatus().serviceText(); text != last {
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

// serviceText is the status in a line.
func (s *cloneStatus) serviceText() string {
	switch {
	case !s.serves():
		return capital(s.State) + ": " + s.Reason
	case s.State == stateHydrated:
		return "Hydrated: " + s.Device + " is complete in " + s.Dest
	}
	text := fmt.Sprintf("%s: %s of %s", capital(s.State), s.doneText(" "), formatSize(s.Size))
	if s.State != stateHydrating && s.State != stateYielding {
		return text + ". " + s.Reason
	}
	return text + fmt.Sprintf(", %s, ETA %s", rateText(s.Rate), etaText(s.ETA))
}

// feed feeds the watchdog until ended is closed: only as long as every loop of the data path goes round when it is
// asked to. A timer alone would feed it for a daemon whose queues stand still.
func (s *service) feed(answers func() bool, ended <-chan struct{}) {
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

// systemctlLimit is for a command of the service manager, which waits for the daemon's start.
const systemctlLimit = "330s"

// byUnit has the service manager do something with a clone's unit: a daemon that this command started would not be the
// unit's.
func byUnit(verb, unit, name string) error {
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

// delDead ends a clone whose daemon is dead. Its unit would begin it anew meanwhile, and is stopped first; if the clone
// stays, so does what its unit does for it.
func (p *program) delDead(def *definition, c clearing) error {
	if def.Unit == "" {
		return p.left().clearDead(def, c)
	}
	was, _ := exec.Command("timeout", stateLimit, "systemctl", "is-active", def.Unit).Output() // fails unless it is "active"
	if err := byUnit("stop", def.Unit, def.Name); err != nil {                                 // as when the unit is not there any more
		fmt.Fprintln(p.errs, "ublk-clone: warning:", err)
	}
	err := p.left().clearDead(def, c)
	if err != nil && slices.Contains([]string{"active", "activating"}, strings.TrimSpace(string(was))) {
		err = errors.Join(err, byUnit("start", def.Unit, def.Name))
	}
	return err
}

// The hidden commands of a unit: ExecStartPre, outside of the sandbox, and ExecStop.
const (
	unitPrepareCommand = "unit-prepare"
	unitStopCommand    = "unit-stop"
)

// unitPrepare makes what the daemon needs outside of its sandbox: the folders that it writes to, and the tmpfs of the
// live maps.
func (p *program) unitPrepare(c *cli.Context) error {
	name, err := named(c)
	if err != nil {
		return err
	}
	if err := p.needRoot("prepare for the unit of " + name); err != nil {
		return err
	}
	if err := p.dir.create(); err != nil {
		return err
	}
	if err := file.MakeFolder(string(theRecordDir()), 0o700); err != nil {
		// The record is a second guard, and the daemon warns of its absence.
		fmt.Fprintf(p.errs, "ublk-clone: warning: make folder %s: %v\n", theRecordDir(), err)
	}
	// A command of a unit is in a mount namespace of its own, also where the sandbox does not hold.
	if err := sys.DoInInitMounts(func() error { return livemap.Mount(livemap.Folder) }); err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the live maps", Object: livemap.Folder, Cause: err}
	}
	p.collect()
	return p.endFinish(name)
}

// endFinish does what is left of a finish whose daemon was killed when its users were on the destination already. There
// is nothing to start then: it fails.
func (p *program) endFinish(name string) error {
	there, err := p.dir.load(name)
	if exit.Code(err) == exit.NoClone || err == nil && p.dir.alive(name) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, yes, err := there.switched(); !yes || err != nil {
		return err
	}
	_, err = p.left().finishDead(there, there.KeepMetadata)
	return errors.Join(err, &exit.Error{Code: exit.Refused, Doing: "start", Object: name, Cause: errors.New("it is finished: " + there.finishedText()),
		Next: "`systemctl disable ublk-clone@" + name + "`: its unit is not needed any more."})
}

// unitStop is the unit's ExecStop. A stop of the unit alone needs nothing: the manager's SIGTERM makes the daemon leave the
// device to the next one. When the machine goes down there is no next one, and whoever looks at the device then, as LVM's
// services do, would wait for ever, and the machine with it: it is deleted. If somebody still has it open, a file system
// that could not be unmounted, the daemon serves until the end, for the last sync.
//
// A manager that does not answer is one with a lot to do, as when the machine goes down. It is taken for that: if it was a
// stop, what nobody has open is added again by the next start, and who has it open notices nothing.
func (p *program) unitStop(c *cli.Context) error {
	name, err := named(c)
	if err != nil {
		return err
	}
	if slices.Contains(managerUp, managerState()) {
		return nil
	}
	_, err = p.dir.ask(name, request{Verb: verbStop, WaitMS: releaseLimit.Milliseconds()}, releaseLimit+stopLimit)
	if exit.Code(err) == exit.Busy {
		_, err = p.dir.ask(name, request{Verb: verbStay}, askLimit)
	}
	return err
}

// releaseLimit is for those who look at every device, and let go at once.
const releaseLimit = 3 * time.Second

// stateLimit leaves time for the rest within the unit's TimeoutStopSec=. Twenty clones that stop at once on two slow cores,
// with the host busy, waited for more than 5 s.
const stateLimit = "30s"

// managerUp is the service manager's states while the machine is not being shut down (systemctl(1), is-system-running).
var managerUp = []string{"initializing", "starting", "running", "degraded", "maintenance"}

// managerState is the service manager's state: "stopping" while the machine is being shut down; "", "unknown" or "offline" if
// it does not answer.
func managerState() string {
	out, _ := exec.Command("timeout", stateLimit, "systemctl", "is-system-running").Output() // fails unless it is "running"
	return strings.TrimSpace(string(out))
}

// serve is the daemon of a unit.
func (p *program) serve(st start) error {
	st, differs, err := p.clones().asService(st)
	if err != nil {
		return err
	}
	return p.clones().stillThere(st, p.host().runForeground(st, differs))
}
