package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
)

// finishLimit is how long a finish waits for users of the block device to close it, or for their
// requests to end, if nobody says.
const finishLimit = 10 * time.Second

func finishCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "finish", Usage: "detach a hydrated clone and leave the destination on its own", ArgsUsage: "NAME", Action: action,
		Description: `For a clone that is hydrated; refused, with exit code 14, as long as anything is
left. If the clone was added with --dm, the device-mapper device is pointed to DEST
while it is in use. Its users see no error, not even when that fails and the clone
goes on as before. Without --dm the block device must not be in use: after the
timeout finish is refused, with exit code 5 and a list of the users.

Then the block device and the daemon are gone, and SOURCE is free. A definition in
/etc/ublk-clone is renamed to NAME.toml.finished and its unit disabled: the next
boot must not begin the clone anew. A METADATA file is removed, and on a METADATA
device the superblocks are zeroed, so that no later add takes it for the metadata
of a clone. Prints what to use from now on. With the setting finish=auto the daemon
does all this by itself when everything is hydrated.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "timeout", Usage: "wait at most this `TIME` for users, or for their requests to end (default: " + finishLimit.String() + ")"},
			&cli.BoolFlag{Name: "keep-metadata", Usage: "the metadata stays as it is"},
			outputFlag("json"),
		},
	}
}

// finish is the command.
func (e ender) finish(c *cli.Context) error {
	name, output, err := namedForm(c)
	if err != nil {
		return err
	}
	limit, err := limitFlag(c)
	if err != nil {
		return err
	}
	def, err := e.dir.Load(name)
	if err != nil {
		return err
	}
	limit = cmp.Or(limit, finishLimit)
	if err := finishable(e.dir, name, limit); err != nil {
		return err
	}
	back, err := e.defined.Retire(name)
	if err != nil {
		return err
	}
	last, err := e.finishNamed(def, c.Bool("keep-metadata"), limit)
	if err != nil && goesOn(e.dir, name, err) {
		return errors.Join(err, back())
	}
	if err := leftover.Released(def); err != nil {
		e.warn("%v", err)
	}
	if err != nil {
		return err
	}
	last.Finish(def)
	if output != "" {
		return printJSON(e.out, []control.Status{last})
	}
	_, err = fmt.Fprintln(e.out, cmp.Or(def.LayerPath(), def.Dest))
	return err
}

// finishable sees that all is in the destination before the definition goes: from then on it does
// not matter when this process or the machine ends, as nothing is left to be cloned. Of a dead
// daemon the layer tells.
func finishable(dir control.Dir, name string, limit time.Duration) error {
	_, err := dir.Ask(name, control.Request{Verb: control.VerbFinishable, WaitMS: limit.Milliseconds()}, limit+control.AskLimit)
	if exit.Code(err) == exit.NoAnswer && !dir.Alive(name) {
		err = nil
	}
	if err == nil {
		signal.Ignore(os.Interrupt, syscall.SIGHUP, syscall.SIGTERM) // the rest has its limits
	}
	return err
}

// goesOn says whether the clone is what it was after a finish that has failed. It is not if the
// destination stands alone, and only something later went wrong: its definition must not return.
func goesOn(dir control.Dir, name string, failed error) bool {
	st, err := dir.Ask(name, control.Request{Verb: control.VerbStatus}, control.AskLimit)
	if err == nil {
		return st.State != control.StateFinishing && st.State != control.StateStopping
	}
	return exit.Code(failed) == exit.NoAnswer // killed before that
}

// finishNamed has the daemon finish a clone, or does what a dead one has left, for the last status.
func (e ender) finishNamed(def *definition.Definition, keep bool, limit time.Duration) (last control.Status, err error) {
	if st, err := e.dir.Ask(def.Name, control.Request{Verb: control.VerbStatus}, control.AskLimit); err == nil {
		last = *st
	}
	_, err = e.dir.Ask(def.Name, control.Request{Verb: control.VerbFinish, Keep: keep, WaitMS: limit.Milliseconds()}, limit+control.RetakeLimit+control.StopLimit)
	if exit.Code(err) != exit.NoAnswer || e.dir.Alive(def.Name) {
		return last, err
	}
	done, errDead := e.left().FinishDead(def, keep)
	if done || errDead != nil {
		return e.left().Silent(def.Name, errors.New("it is finished")), errDead
	}
	return last, err
}
