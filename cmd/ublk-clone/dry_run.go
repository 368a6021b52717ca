package main

import (
	"io"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/daemon"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/process"
)

// A dry run of add:
//
//	command   what add looks at before it starts a daemon, and starts a process in a daemon's place
//	process   opens and locks the three devices and sees that they belong together, by the steps of a daemon, with
//	          blockdev.Options.DryRun: nothing is made, and what would be written to metadata is forgotten
//	          -> asks the driver, looks at the live map, counts what is to be copied, reads the source for a
//	          moment -> closes all, and reports
//
// It is a process of its own for the reasons that a daemon is one: it runs where daemons run, and a
// source that never answers keeps it, and not the command.

// dryRun is `add --dry-run`.
func (a adder) dryRun(st definition.Start, asJSON string) error {
	if err := a.dir.Possible(); err != nil {
		return err
	}
	if err := process.SameThere(a.dir, &st.Definition); err != nil {
		return err
	}
	there, err := a.clones().Unchanged(&st.Definition)
	if err != nil {
		return err
	}
	if there {
		return printTrial(a.out, &control.DryRun{Name: st.Definition.Name, Unchanged: true}, asJSON)
	}
	if a.dir.Alive(st.Definition.Name) {
		return control.NameTaken(st.Definition.Name)
	}
	if !st.Force {
		if st, err = a.clones().Continued(st); err != nil {
			return err
		}
	}
	st.DryRun = true
	t, err := daemon.Try(a.dir, st)
	if err != nil {
		return err
	}
	return printTrial(a.out, t, asJSON)
}

// printTrial prints it.
func printTrial(out io.Writer, t *control.DryRun, asJSON string) error {
	if asJSON != "" {
		return encodeJSON(out, struct {
			Schema string          `json:"schema"`
			DryRun *control.DryRun `json:"dry_run"`
		}{control.Schema, t})
	}
	return t.Write(out)
}
