package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/ublk"
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
	names, err := p.dir.names()
	for _, name := range names {
		err = errors.Join(err, do(name, limit))
	}
	return err
}

// recoverNamed prints the device of a clone that it has brought back, and what is to be known of it. limit is for the dead daemon's last
// requests; 0: fenceLimit. With force it goes on from the last commit if the live map is lost.
func (p *program) recoverNamed(name string, limit time.Duration, force bool) error {
	def, err := p.dir.load(name)
	if err != nil {
		return err
	}
	if served, err := p.dir.served(name); served || err != nil {
		return err
	}
	if done, err := p.left().finishDead(def, def.KeepMetadata); done || err != nil {
		return p.pruned(name+" is finished: "+def.finishedText(), err)
	}
	if def.Unit != "" && !force {
		if err := byUnit("start", def); err != nil {
			return p.stillThere(start{Definition: *def, Recover: true}, err)
		}
		return p.added(name, false, "", "")
	}
	if err := recoverable(def); err != nil {
		return &exit.Error{Code: exit.Code(err), Doing: "recover", Object: name, Cause: err, Next: "The same `ublk-clone add` goes on where it was."}
	}
	if _, err := p.recoverDead(start{Definition: *def, Open: true, Recover: true, Force: force, Fence: limit}); err != nil {
		return err
	}
	if def.Unit != "" { // whose start takes no force: it takes over from a daemon that serves
		if err := byUnit("start", def); err != nil {
			return err
		}
	}
	return p.added(name, false, "", "")
}

// served says whether a daemon serves the clone of that name. One that has the name and does not is coming up, or
// was killed and has threads that have not ended yet: it is waited for, as long as a start may take.
func (d runDir) served(name string) (bool, error) {
	for deadline := time.Now().Add(startLimit); d.alive(name); time.Sleep(holderPause) {
		st, err := d.ask(name, request{Verb: verbStatus}, askLimit)
		if err == nil {
			err = st.unserved()
		}
		if err == nil {
			return true, nil
		}
		if time.Now().After(deadline) {
			return false, err
		}
	}
	return false, nil
}

// recoverable looks whether a dead daemon has left a device that waits for the next one.
func recoverable(def *definition) error {
	r, err := findRemains(def)
	if err != nil {
		return err
	}
	if r.info.State == ublk.StateDead { // stopped, and only not deleted
		err = errNoRemains
	}
	return errors.Join(err, r.control.Close())
}

// recoverDead starts a daemon that takes over from one that is dead, or is to be replaced.
func (p *program) recoverDead(st start) (device string, err error) {
	device, err = p.dir.spawn(st)
	return device, p.stillThere(st, err)
}

// stillThere tells, with the error of a successor that cannot serve, what has become of the clone's users: the daemon before
// it goes on, or the device waits for the next one. A failed recovery takes the device from nobody (I13).
func (p *program) stillThere(st start, err error) error {
	if err == nil || !st.Recover {
		return err
	}
	def := &st.Definition
	alive := p.dir.alive(def.Name)
	switch {
	case alive && st.Replace:
		return withNext(err, "The clone was not interrupted: its former daemon goes on serving it.")
	case !alive && recoverable(def) == nil:
		return withNext(err, fmt.Sprintf("%s waits for a daemon, and so do its users: they are not cut off, and nothing that was acknowledged is lost. "+
			"Remove the cause, then `ublk-clone recover %s` lets them go on.", def.Device, def.Name))
	}
	return err
}

// withNext adds a sentence to what the user is told to do next.
func withNext(err error, text string) error {
	e := &exit.Error{Code: exit.Code(err), Doing: err.Error()}
	if one, ok := err.(*exit.Error); ok {
		*e = *one
	}
	if e.Next = exit.Next(err); e.Next != "" {
		e.Next += " "
	}
	e.Next += text
	return e
}

// continued makes an add whose clone has a dead daemon and a living device a recovery of that.
func (p *program) continued(st start) (start, error) {
	there, err := p.dir.load(st.Definition.Name)
	if exit.Code(err) == exit.NoClone {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if done, err := p.left().finishDead(there, there.KeepMetadata); done || err != nil {
		return st, errors.Join(err, &exit.Error{Code: exit.Exists, Doing: "add clone", Object: there.Name,
			Cause: errors.New("its daemon died in a finish, which is done now: " + there.finishedText()), Next: "It needs no clone any more."})
	}
	if err := recoverable(there); errors.Is(err, errNoRemains) {
		return st, nil
	} else if err != nil {
		return st, err
	}
	if diff := there.differences(&st.Definition); diff != "" {
		return st, &exit.Error{Code: exit.Exists, Doing: "add clone", Object: there.Name,
			Cause: errors.New("it exists, its daemon is dead, and its " + diff),
			Next:  "`ublk-clone recover " + there.Name + "` brings it back as it was, `ublk-clone del " + there.Name + "` ends it."}
	}
	return start{Definition: *there, Open: true, Recover: true}, nil
}

// prune is the command: it deletes the devices that nobody serves, of clones that were made here, and what else killed
// daemons have left (collect.go).
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
	how := clearing{force: c.Bool("force")}
	abandoned, err := p.dir.abandonedMaps()
	names, errNames := p.dir.names()
	err = errors.Join(err, errNames)
	for _, name := range names {
		def, loadErr := p.dir.load(name)
		if loadErr == nil && !p.dir.alive(name) {
			err = errors.Join(err, p.pruned(name, p.left().clearDead(def, how)))
		}
	}
	orphans, listErr := p.dir.orphans()
	for _, def := range orphans {
		err = errors.Join(err, p.pruned(def.Name, removeDead(&def, how)))
	}
	err = errors.Join(err, listErr, p.dir.strayFiles())
	if how.force {
		lost, errLost := p.left().giveUpMaps(abandoned)
		for _, text := range lost {
			fmt.Fprintf(p.errs, "ublk-clone: warning: removed the live map %s: what was written to that clone since its last commit is lost, "+
				"and `add` refuses that metadata without --force\n", text)
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
