package main

import (
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/daemon"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/systemd"
)

// A planned restart: users of the block device wait from when the old daemon leaves it until the
// new one serves. So the new one is started first, sees that it has all that it will need (package
// preflight), and makes the old one leave when all that is left to do needs the old one gone. That
// leaves only if it can (internal/engine/leave.go). A new program that does not even start, or
// could not serve, thereby leaves the clone as it was.

// restart is the command.
func (r restarter) restart(c *cli.Context) error { return r.forEach(c, r.restartNamed) }

// restartNamed replaces a daemon.
func (r restarter) restartNamed(name string, limit time.Duration) error {
	def, err := r.dir.Load(name)
	if err != nil {
		return err
	}
	if !r.dir.Alive(name) {
		return r.recoverNamed(name, limit, false)
	}
	if def.Unit != "" {
		return r.restartUnit(def)
	}
	if _, err := r.clones().RecoverDead(definition.Start{Definition: *def, Open: true, Recover: true, Replace: true, Fence: limit}); err != nil {
		return err
	}
	return r.added(name, false, "", "")
}

// restartUnit has the service manager replace a daemon. It ends the old one before it starts the
// next, so the look at what that needs comes before either.
func (r restarter) restartUnit(def *definition.Definition) error {
	look := definition.Start{Definition: *def, Open: true, Recover: true, Replace: true, Look: true}
	_, err := daemon.Spawn(r.dir, look) // not here: a process with a read that hangs cannot end
	if err == nil {
		err = systemd.ByUnit("restart", def.Unit, def.Name)
	}
	if err != nil {
		return r.clones().StillThere(look, err)
	}
	return r.added(def.Name, false, "", "")
}
