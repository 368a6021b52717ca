package main

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/internal/systemd"
)

// A daemon that is the main process of a systemd unit (packaging/systemd/ublk-clone@.service): it
// takes over what serves the clone now, tells the manager how it is, and feeds the watchdog.

// delDead ends a clone whose daemon is dead. Its unit would begin it anew meanwhile, and is stopped
// first; if the clone stays, so does what its unit does for it.
func (e ender) delDead(def *definition.Definition, c leftover.How) error {
	if def.Unit == "" {
		return e.left().ClearDead(def, c)
	}
	was, _ := exec.Command("timeout", systemd.StateLimit, "systemctl", "is-active", def.Unit).Output() // fails unless it is "active"
	if err := systemd.ByUnit("stop", def.Unit, def.Name); err != nil {                                 // as when the unit is not there any more
		e.warn("%v", err)
	}
	err := e.left().ClearDead(def, c)
	if err != nil && slices.Contains([]string{"active", "activating"}, strings.TrimSpace(string(was))) {
		err = errors.Join(err, systemd.ByUnit("start", def.Unit, def.Name))
	}
	return err
}

// The hidden commands of a unit: ExecStartPre, outside of the sandbox, and ExecStop.
const (
	unitPrepareCommand = "unit-prepare"
	unitStopCommand    = "unit-stop"
)

// unitHooks has the hidden commands of a unit.
type unitHooks struct{ *program }

// prepare makes what the daemon needs outside of its sandbox: the directories that it writes to,
// and the tmpfs of the live maps.
func (u unitHooks) prepare(c *cli.Context) error {
	name, err := named(c)
	if err != nil {
		return err
	}
	if err := needRoot("prepare for the unit of " + name); err != nil {
		return err
	}
	if err := u.dir.Create(); err != nil {
		return err
	}
	if err := file.MakeDir(string(records.DefaultDir()), 0o700); err != nil {
		// The record is a second guard, and the daemon warns of its absence.
		u.warn("make directory %s: %v", records.DefaultDir(), err)
	}
	// A command of a unit is in a mount namespace of its own, also where the sandbox does not hold.
	if err := sys.DoInInitMounts(func() error { return livemap.Mount(livemap.Dir) }); err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the live maps", Object: livemap.Dir, Cause: err}
	}
	u.collect()
	return u.endFinish(name)
}

// endFinish does what is left of a finish whose daemon was killed when its users were on the
// destination already. There is nothing to start then: it fails.
func (u unitHooks) endFinish(name string) error {
	there, err := u.dir.Load(name)
	if exit.Code(err) == exit.NoClone || err == nil && u.dir.Alive(name) {
		return nil
	}
	if err != nil {
		return err
	}
	if yes, err := leftover.Finished(there); !yes || err != nil {
		return err
	}
	if _, err = u.left().FinishDead(there, there.KeepMetadata); err == nil {
		err = leftover.Released(there)
	}
	return errors.Join(err, &exit.Error{Code: exit.Refused, Doing: "start", Object: name, Cause: errors.New("it is finished: " + there.FinishedText()),
		Next: "`systemctl disable ublk-clone@" + name + "`: its unit is not needed any more."})
}

// stop is the unit's ExecStop. A stop of the unit alone needs nothing: the manager's SIGTERM makes
// the daemon leave the device to the next one. When the machine goes down there is no next one, and
// whoever looks at the device then, as LVM's services do, would wait for ever, and the machine with
// it: it is deleted. If somebody still has it open, a file system that could not be unmounted, the
// daemon serves until the end, for the last sync.
//
// A manager that does not answer is one with a lot to do, as when the machine goes down. It is
// taken for that: if it was a stop, what nobody has open is added again by the next start, and who
// has it open notices nothing.
func (u unitHooks) stop(c *cli.Context) error {
	name, err := named(c)
	if err != nil {
		return err
	}
	if slices.Contains(systemd.ManagerUp, systemd.ManagerState()) {
		return nil
	}
	_, err = u.dir.Ask(name, control.Request{Verb: control.VerbStop, WaitMS: releaseLimit.Milliseconds()}, releaseLimit+control.StopLimit)
	if exit.Code(err) == exit.Busy {
		_, err = u.dir.Ask(name, control.Request{Verb: control.VerbStay}, control.AskLimit)
	}
	return err
}

// releaseLimit is for those who look at every device, and let go at once.
const releaseLimit = 3 * time.Second

// serve is the daemon of a unit.
func (a adder) serve(st definition.Start) error {
	st, differs, err := a.clones().AsService(st)
	if err != nil {
		return err
	}
	return a.clones().StillThere(st, a.host().RunForeground(st, differs))
}
