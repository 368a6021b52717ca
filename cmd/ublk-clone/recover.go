package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/succession"
	"github.com/ublk-clone/ublk-clone/internal/systemd"
)

// recover is the command.
func (p *program) recover(c *cli.Context) error {
	return p.forEach(c, func(name string, limit time.Duration) error { return p.recoverNamed(name, limit, c.Bool("force")) })
}

// forEach does it for the clone that the command names, or with --all for every one, whatever becomes of others.
func (p *program) forEach(c *cli.Context, do func(name string, limit time.Duration) error) error {
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
	names, err := p.dir.Names()
	for _, name := range names {
		err = errors.Join(err, do(name, limit))
	}
	return err
}

// recoverNamed prints the device of a clone that it has brought back, and what is to be known of it. limit is for the dead daemon's last
// requests; 0: control.FenceLimit. With force it goes on from the last commit if the live map is lost.
func (p *program) recoverNamed(name string, limit time.Duration, force bool) error {
	def, err := p.dir.Load(name)
	if err != nil {
		return err
	}
	if served, err := succession.Served(p.dir, name); served || err != nil {
		return err
	}
	if done, err := p.left().FinishDead(def, def.KeepMetadata); done || err != nil {
		return p.pruned(name+" is finished: "+def.FinishedText(), err)
	}
	if def.Unit != "" && !force {
		if err := systemd.ByUnit("start", def.Unit, def.Name); err != nil {
			return p.clones().StillThere(definition.Start{Definition: *def, Recover: true}, err)
		}
		return p.added(name, false, "", "")
	}
	if err := leftover.Recoverable(def); err != nil {
		return &exit.Error{Code: exit.Code(err), Doing: "recover", Object: name, Cause: err, Next: "The same `ublk-clone add` goes on where it was."}
	}
	if _, err := p.clones().RecoverDead(definition.Start{Definition: *def, Open: true, Recover: true, Force: force, Fence: limit}); err != nil {
		return err
	}
	if def.Unit != "" { // whose start takes no force: it takes over from a daemon that serves
		if err := systemd.ByUnit("start", def.Unit, def.Name); err != nil {
			return err
		}
	}
	return p.added(name, false, "", "")
}

// prune is the command: it deletes the devices that nobody serves, of clones that were made here, and what else killed
// daemons have left (package leftover).
func (p *program) prune(c *cli.Context) error {
	if _, err := words(c, 0, 0); err != nil {
		return err
	}
	if _, err := form(c, "json"); err != nil {
		return err
	}
	if err := p.needRoot("prune"); err != nil {
		return err
	}
	how := leftover.How{Force: c.Bool("force")}
	abandoned, err := leftover.AbandonedMaps(p.dir)
	names, errNames := p.dir.Names()
	err = errors.Join(err, errNames)
	for _, name := range names {
		def, loadErr := p.dir.Load(name)
		if loadErr == nil && !p.dir.Alive(name) {
			err = errors.Join(err, p.pruned(name, p.left().ClearDead(def, how)))
		}
	}
	orphans, listErr := leftover.Orphans(p.dir)
	for _, def := range orphans {
		err = errors.Join(err, p.pruned(def.Name, leftover.RemoveDevice(&def, how)))
	}
	err = errors.Join(err, listErr, leftover.StrayFiles(p.dir))
	if how.Force {
		lost, errLost := p.left().GiveUpMaps(abandoned)
		for _, text := range lost {
			p.warn("removed the live map %s: what was written to that clone since its last commit is lost, "+
				"and `add` refuses that metadata without --force", text)
		}
		err = errors.Join(err, errLost)
	}
	p.collect()
	return err
}

// pruned prints what is gone.
func (p *program) pruned(what string, err error) error {
	if err == nil {
		_, err = fmt.Fprintln(p.out, what)
	}
	return err
}
