package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/succession"
	"github.com/ublk-clone/ublk-clone/internal/systemd"
)

// restarter has the commands that replace the daemon of a clone, a dead one or one that serves.
type restarter struct{ *program }

// recover is the command.
func (r restarter) recover(c *cli.Context) error {
	return r.forEach(c, func(name string, limit time.Duration) error { return r.recoverNamed(name, limit, c.Bool("force")) })
}

// forEach does it for the clone that is named, or with --all for each, whatever becomes of others.
func (r restarter) forEach(c *cli.Context, do func(name string, limit time.Duration) error) error {
	if _, err := form(c, "json"); err != nil {
		return err
	}
	limit, err := limitFlag(c)
	if err != nil {
		return err
	}
	if !c.Bool("all") {
		name, err := named(c)
		if err != nil {
			return err
		}
		return do(name, limit)
	}
	if _, err := words(c, 0, 0); err != nil {
		return err
	}
	names, err := r.dir.Names()
	for _, name := range names {
		err = errors.Join(err, do(name, limit))
	}
	return err
}

// recoverNamed prints the device of a clone that it has brought back, and what is to be known of
// it. limit is for the dead daemon's last requests; 0: control.FenceLimit. With force it goes on
// from the last commit if the live map is lost.
func (r restarter) recoverNamed(name string, limit time.Duration, force bool) error {
	def, err := r.dir.Load(name)
	if err != nil {
		return err
	}
	if served, err := succession.Served(r.dir, name); served || err != nil {
		return err
	}
	if done, err := r.left().FinishDead(def, def.KeepMetadata); done || err != nil {
		if err == nil {
			err = leftover.Released(def)
		}
		return pruned(r.out, name+" is finished: "+def.FinishedText(), err)
	}
	if def.Unit != "" && !force {
		if err := systemd.ByUnit("start", def.Unit, def.Name); err != nil {
			return r.clones().StillThere(definition.Start{Definition: *def, Recover: true}, err)
		}
		return r.added(name, false, "", "")
	}
	if err := leftover.Recoverable(def); err != nil {
		return &exit.Error{Code: exit.Code(err), Doing: "recover", Object: name, Cause: err, Next: "The same `ublk-clone add` goes on where it was."}
	}
	if _, err := r.clones().RecoverDead(definition.Start{Definition: *def, Open: true, Recover: true, Force: force, Fence: limit}); err != nil {
		return err
	}
	if def.Unit != "" { // whose start takes no force: it takes over from a daemon that serves
		if err := systemd.ByUnit("start", def.Unit, def.Name); err != nil {
			return err
		}
	}
	return r.added(name, false, "", "")
}

// prune is the command: it deletes the devices that nobody serves, of clones that were made here,
// and what else killed daemons have left (package leftover).
func (e ender) prune(c *cli.Context) error {
	if _, _, err := wordsForm(c, 0, 0, "json"); err != nil {
		return err
	}
	if err := needRoot("prune"); err != nil {
		return err
	}
	how := leftover.How{Force: c.Bool("force")}
	abandoned, err := leftover.AbandonedMaps(e.dir)
	names, errNames := e.dir.Names()
	err = errors.Join(err, errNames)
	for _, name := range names {
		def, loadErr := e.dir.Load(name)
		if loadErr == nil && !e.dir.Alive(name) {
			err = errors.Join(err, pruned(e.out, name, e.left().ClearDead(def, how)))
		}
	}
	orphans, listErr := leftover.Orphans(e.dir)
	for _, def := range orphans {
		err = errors.Join(err, pruned(e.out, def.Name, leftover.RemoveDevice(&def, how)))
	}
	err = errors.Join(err, listErr, leftover.StrayUnders(e.dir), leftover.StrayFiles(e.dir))
	if how.Force {
		lost, errLost := e.left().GiveUpMaps(abandoned)
		for _, text := range lost {
			e.warn("removed the live map %s: what was written to that clone since its last commit is lost, "+
				"and `add` refuses that metadata without --force", text)
		}
		err = errors.Join(err, errLost)
	}
	e.collect()
	return err
}

// pruned prints what is gone.
func pruned(out io.Writer, what string, err error) error {
	if err == nil {
		_, err = fmt.Fprintln(out, what)
	}
	return err
}
