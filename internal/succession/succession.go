package succession

import (
	"errors"
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/daemon"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
)

// Clones brings clones up in place of what was there: a daemon that serves, or one that is dead.
type Clones struct {
	Dir  control.Dir
	Left leftover.Dirs
}

// Add has start bring a clone up, or continue one whose daemon is dead, unless it is served
// already: there. One that turns out to be just ending is waited for, and begun anew; not with
// Force, which could overwrite a destination that a finish has just handed over.
func (c Clones) Add(st definition.Start, start func(definition.Start) error) (there bool, err error) {
	for {
		if there, err = c.Unchanged(&st.Definition); err != nil {
			return there, err
		}
		if !there {
			break
		}
		if _, err = Up(c.Dir, st.Definition.Name); exit.Code(err) != exit.NoClone || st.Force {
			return true, err
		}
	}
	if !st.Force {
		if st, err = c.Continued(st); err != nil {
			return false, err
		}
	}
	return false, start(st)
}

// Up is the status of a clone that is up, or that somebody else is starting.
func Up(d control.Dir, name string) (*control.Status, error) {
	for deadline := time.Now().Add(control.StartLimit); ; time.Sleep(control.HolderPause) {
		st, err := d.Ask(name, control.Request{Verb: control.VerbStatus}, control.AskLimit)
		if err != nil || st.Serves() {
			return st, err
		}
		if time.Now().After(deadline) {
			return nil, &exit.Error{Code: exit.Timeout, Doing: "wait for clone", Object: name, Cause: st.Unserved()}
		}
	}
}

// Unchanged says whether the clone is up as defined; another definition is exit
// code 4. What a dead daemon has left is no obstacle.
func (c Clones) Unchanged(def *definition.Definition) (bool, error) {
	if !c.Dir.Alive(def.Name) {
		return false, nil
	}
	there, err := c.Dir.Load(def.Name)
	if exit.Code(err) == exit.NoClone {
		return false, nil // just ending; the lock will tell
	}
	if err != nil {
		return false, err
	}
	if diff := there.Differences(def); diff != "" {
		return false, &exit.Error{Code: exit.Exists, Doing: "add clone", Object: def.Name, Cause: errors.New("it exists, and its " + diff),
			Next: "`ublk-clone set " + def.Name + "` changes settings. For the rest `ublk-clone del " + def.Name + "` first, or use another name."}
	}
	return !isDying(c.Dir, def.Name), nil
}

// isDying says that a daemon that had its lock a moment ago was killed and has ended since: the
// kernel closes its files one after the other.
func isDying(d control.Dir, name string) bool {
	_, err := d.Call(name, control.Request{Verb: control.VerbStatus}, control.AskLimit)
	return exit.Code(err) == exit.NoAnswer && d.AwaitEnd(name, control.DyingLimit)
}

// Served says whether a daemon serves the clone of that name. One that has the name and does not is
// coming up, or was killed and has threads that have not ended yet: it is waited for, as long as a
// start may take.
func Served(d control.Dir, name string) (bool, error) {
	for deadline := time.Now().Add(control.StartLimit); d.Alive(name); time.Sleep(control.HolderPause) {
		st, err := d.Ask(name, control.Request{Verb: control.VerbStatus}, control.AskLimit)
		if err == nil {
			err = st.Unserved()
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

// RecoverDead starts a daemon that takes over from one that is dead, or is to be replaced.
func (c Clones) RecoverDead(st definition.Start) (device string, err error) {
	device, err = daemon.Spawn(c.Dir, st)
	return device, c.StillThere(st, err)
}

// StillThere tells, with the error of a successor that cannot serve, what has become of the clone's
// users: the daemon before it goes on, or the device waits for the next one. A failed recovery
// takes the device from nobody (I13).
func (c Clones) StillThere(st definition.Start, err error) error {
	if err == nil || !st.Recover {
		return err
	}
	def := &st.Definition
	alive := c.Dir.Alive(def.Name)
	switch {
	case alive && st.Replace:
		return withNext(err, "The clone was not interrupted: its former daemon goes on serving it.")
	case !alive && leftover.Recoverable(def) == nil:
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

// Continued makes an add whose clone has a dead daemon and a living device a recovery of that.
func (c Clones) Continued(st definition.Start) (definition.Start, error) {
	there, err := c.Dir.Load(st.Definition.Name)
	if exit.Code(err) == exit.NoClone {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if done, err := c.Left.FinishDead(there, there.KeepMetadata); done || err != nil {
		return st, errors.Join(err, &exit.Error{Code: exit.Exists, Doing: "add clone", Object: there.Name,
			Cause: errors.New("its daemon died during a finish, which is complete now: " + there.FinishedText()), Next: "It needs no clone any more."})
	}
	if err := leftover.Recoverable(there); errors.Is(err, leftover.ErrNone) {
		return st, nil
	} else if err != nil {
		return st, err
	}
	if diff := there.Differences(&st.Definition); diff != "" {
		return st, &exit.Error{Code: exit.Exists, Doing: "add clone", Object: there.Name,
			Cause: errors.New("it exists, its daemon is dead, and its " + diff),
			Next:  "`ublk-clone recover " + there.Name + "` brings it back as it was, `ublk-clone del " + there.Name + "` ends it."}
	}
	return definition.Start{Definition: *there, Open: true, Recover: true}, nil
}

// AsService makes the start of a unit one that takes over what serves the clone now: another
// daemon, or a device that waits for one. That goes on as it was defined, whatever the definition
// says by now: its users wait. differs says what that says otherwise.
func (c Clones) AsService(st definition.Start) (_ definition.Start, differs string, err error) {
	there, err := c.Dir.Load(st.Definition.Name)
	if exit.Code(err) == exit.NoClone {
		return st, "", nil
	}
	if err != nil {
		return st, "", err
	}
	alive := c.Dir.Alive(there.Name)
	if !alive {
		if err := leftover.Recoverable(there); errors.Is(err, leftover.ErrNone) {
			return st, "", nil
		} else if err != nil {
			return st, "", err
		}
	}
	return definition.Start{Definition: *there, Open: true, Recover: true, Replace: alive}, there.Differences(&st.Definition), nil
}
