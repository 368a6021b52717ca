package main

import (
	"cmp"
	"errors"
	"reflect"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// A planned restart: users of the block device wait from when the old daemon leaves it until the new one serves. So
// the new one is started first, sees that it has all that it will need (preflight.go), and makes the old one leave when
// all that is left to do needs the old one gone. That leaves only if it can (engine_leave.go). A new program that does not
// even start, or could not serve, thereby leaves the clone as it was.

// restart is the command.
func (p *program) restart(c *cli.Context) error { return p.forEach(c, p.restartNamed) }

// restartNamed replaces a daemon.
func (p *program) restartNamed(name string, limit time.Duration) error {
	def, err := p.dir.load(name)
	if err != nil {
		return err
	}
	if !p.dir.alive(name) {
		return p.recoverNamed(name, limit, false)
	}
	if def.Unit != "" {
		return p.restartUnit(def)
	}
	if _, err := p.clones().recoverDead(start{Definition: *def, Open: true, Recover: true, Replace: true, Fence: limit}); err != nil {
		return err
	}
	return p.added(name, false, "", "")
}

// restartUnit has the service manager replace a daemon. It ends the old one before it starts the next, so the look at what that
// needs comes before either.
func (p *program) restartUnit(def *definition) error {
	look := start{Definition: *def, Open: true, Recover: true, Replace: true, Look: true}
	_, err := p.dir.spawn(look) // not here: a process with a read that hangs cannot end
	if err == nil {
		err = byUnit("restart", def.Unit, def.Name)
	}
	if err != nil {
		return p.clones().stillThere(look, err)
	}
	return p.added(def.Name, false, "", "")
}

// takeName locks the name of the clone, which its daemon is made to leave if this one is to replace it.
func (d *daemon) takeName() (err error) {
	if d.start.Replace {
		if err = d.engine.warmUp(); err == nil {
			err = d.engine.mayReplace(d.dir)
		}
		if err == nil {
			err = d.relieve()
		}
	}
	if err != nil {
		return err
	}
	d.lock, err = d.dir.acquire(d.start.Definition.Name)
	return err
}

// relieve makes the daemon of that name leave its device. What one that has ended complains of, as metadata that
// fail, its device is not to wait for: the next one finds it so.
func (d *daemon) relieve() error {
	def := &d.start.Definition
	limit := cmp.Or(d.start.Fence, leaveLimit)
	_, err := d.dir.ask(def.Name, request{Verb: verbLeave, WaitMS: limit.Milliseconds()}, limit+stopLimit)
	if exit.Code(err) == exit.Usage { // the previous release, which knows no limit, has refused the request and done nothing
		_, err = d.dir.ask(def.Name, request{Verb: verbLeave}, stopLimit)
	}
	if err != nil && !d.dir.awaitEnd(def.Name, endLimit) {
		return err
	}
	if err != nil {
		d.engine.warn("the daemon before this one: %v", err)
	}
	return nil
}

// endLimit is how long a daemon that has answered may take to let go of its name, and dyingLimit one that has hung up.
const (
	endLimit   = 5 * time.Second
	dyingLimit = time.Second
)

// awaitEnd says whether the daemon of that name has ended in time.
func (d runDir) awaitEnd(name string, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); d.alive(name); time.Sleep(holderPause) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// stillDefined fails if the clone that this daemon was to take over was ended, or is another by now. The name is
// locked.
func (d *daemon) stillDefined() error {
	def := &d.start.Definition
	there, err := d.dir.load(def.Name)
	if err != nil || reflect.DeepEqual(there, def) {
		return err
	}
	return &exit.Error{Code: exit.Busy, Doing: "recover", Object: def.Name, Cause: errors.New("it was defined anew meanwhile"), Next: "Try again."}
}
