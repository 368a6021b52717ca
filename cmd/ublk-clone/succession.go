package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// clones brings clones up in place of what was there: a daemon that serves, or one that is dead.
type clones struct {
	dir  runDir
	left leftovers
}

// unchanged says whether the clone is up as defined; another definition is exit
// code 4. What a dead daemon has left is no obstacle.
func (c clones) unchanged(def *definition) (bool, error) {
	if !c.dir.alive(def.Name) {
		return false, nil
	}
	there, err := c.dir.load(def.Name)
	if exit.Code(err) == exit.NoClone {
		return false, nil // just ending; the lock will tell
	}
	if err != nil {
		return false, err
	}
	if diff := there.differences(def); diff != "" {
		return false, &exit.Error{Code: exit.Exists, Doing: "add clone", Object: def.Name, Cause: errors.New("it exists, and its " + diff),
			Next: "`ublk-clone set " + def.Name + "` changes settings. For the rest `ublk-clone del " + def.Name + "` first, or use another name."}
	}
	return !c.dir.dying(def.Name), nil
}

// dying says that a daemon that had its lock a moment ago was killed and has ended since: the kernel closes its files one
// after the other.
func (d runDir) dying(name string) bool {
	_, err := d.call(name, request{Verb: verbStatus}, askLimit)
	return exit.Code(err) == exit.NoAnswer && d.awaitEnd(name, dyingLimit)
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

// recoverDead starts a daemon that takes over from one that is dead, or is to be replaced.
func (c clones) recoverDead(st start) (device string, err error) {
	device, err = c.dir.spawn(st)
	return device, c.stillThere(st, err)
}

// stillThere tells, with the error of a successor that cannot serve, what has become of the clone's users: the daemon before
// it goes on, or the device waits for the next one. A failed recovery takes the device from nobody (I13).
func (c clones) stillThere(st start, err error) error {
	if err == nil || !st.Recover {
		return err
	}
	def := &st.Definition
	alive := c.dir.alive(def.Name)
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
func (c clones) continued(st start) (start, error) {
	there, err := c.dir.load(st.Definition.Name)
	if exit.Code(err) == exit.NoClone {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if done, err := c.left.finishDead(there, there.KeepMetadata); done || err != nil {
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

// asService makes the start of a unit one that takes over what serves the clone now: another daemon, or a device that
// waits for one. That goes on as it was defined, whatever the definition says by now: its users wait. differs says what
// that says otherwise.
func (c clones) asService(st start) (_ start, differs string, err error) {
	there, err := c.dir.load(st.Definition.Name)
	if exit.Code(err) == exit.NoClone {
		return st, "", nil
	}
	if err != nil {
		return st, "", err
	}
	alive := c.dir.alive(there.Name)
	if !alive {
		if err := recoverable(there); errors.Is(err, errNoRemains) {
			return st, "", nil
		} else if err != nil {
			return st, "", err
		}
	}
	return start{Definition: *there, Open: true, Recover: true, Replace: alive}, there.differences(&st.Definition), nil
}
