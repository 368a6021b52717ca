package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
)

// words are the arguments of a command that takes between least and most.
func words(c *cli.Context, least, most int) ([]string, error) {
	all := c.Args().Slice()
	switch {
	case len(all) < least:
		return nil, definition.UsageError(fmt.Sprintf("%s needs %s", c.Command.FullName(), c.Command.ArgsUsage))
	case len(all) > most:
		return nil, definition.UsageError(fmt.Sprintf("%s: unexpected argument %q", c.Command.FullName(), all[most]))
	}
	return all, nil
}

// named is the clone that the first argument names.
func named(c *cli.Context) (string, error) {
	all, err := words(c, 1, 1)
	if err != nil {
		return "", err
	}
	return all[0], definition.CheckName(all[0])
}

// form is the value of -o, which must be one of these; "" is always right.
func form(c *cli.Context, forms ...string) (string, error) {
	got := c.String("output")
	for _, f := range append(forms, "") {
		if got == f {
			return got, nil
		}
	}
	return "", definition.UsageError(fmt.Sprintf("-o %s: it must be %s", got, strings.Join(forms, " or ")))
}

// namedForm is both, of a command that prints JSON if anything.
func namedForm(c *cli.Context) (name, output string, err error) {
	if name, err = named(c); err == nil {
		output, err = form(c, "json")
	}
	return name, output, err
}

// wordsForm is words and form.
func wordsForm(c *cli.Context, least, most int, forms ...string) (args []string, output string, err error) {
	if args, err = words(c, least, most); err == nil {
		output, err = form(c, forms...)
	}
	return args, output, err
}

// ender has the commands that end clones and remove what is left of them.
type ender struct{ *program }

func (e ender) del(c *cli.Context) error {
	name, _, err := namedForm(c)
	if err != nil {
		return err
	}
	wait, err := time.ParseDuration(c.String("wait"))
	if err != nil || wait < 0 {
		return definition.UsageError(fmt.Sprintf("--wait %s: not a time such as 10s", c.String("wait")))
	}
	def, err := e.dir.Load(name)
	if err != nil {
		return err
	}
	defer e.collect() // also what other clones have left
	if e.dir.Alive(name) {
		ans, err := e.dir.Call(name, control.Request{Verb: control.VerbStop, WaitMS: wait.Milliseconds(), Force: c.Bool("force")}, wait+control.StopLimit)
		for _, w := range ans.Warnings {
			e.warn("%s", w)
		}
		if exit.Code(err) != exit.NoAnswer || e.dir.Alive(name) {
			return err
		}
	}
	return e.delDead(def, leftover.How{Force: c.Bool("force"), Wait: wait})
}

// reporter has the commands that say how clones are.
type reporter struct {
	dir  control.Dir
	left leftover.Dirs
	out  io.Writer
}

// statuses asks the daemons of these clones, all at once: none is to wait for one that is silent. A
// dead one has a status too.
func (r reporter) statuses(names []string) ([]control.Status, error) {
	all, errs := make([]*control.Status, len(names)), make([]error, len(names))
	var group sync.WaitGroup
	for i, name := range names {
		group.Go(guard.Wrap("status of "+name, func() { all[i], errs[i] = r.statusOf(name) }))
	}
	group.Wait()
	there := make([]control.Status, 0, len(names))
	for _, st := range all {
		if st != nil {
			there = append(there, *st)
		}
	}
	return there, errors.Join(errs...)
}

// allStatuses are those of all clones.
func (r reporter) all() ([]control.Status, error) {
	names, err := r.dir.Names()
	if err != nil {
		return nil, err
	}
	return r.statuses(names)
}

// statusOf is nil for a clone that was deleted just now.
func (r reporter) statusOf(name string) (*control.Status, error) {
	st, err := r.dir.Ask(name, control.Request{Verb: control.VerbStatus}, control.AskLimit)
	switch exit.Code(err) {
	case exit.NoClone:
		return nil, nil
	case exit.NoAnswer:
		silent := r.left.Silent(name, err)
		return &silent, nil
	}
	return st, err
}

func printJSON(out io.Writer, clones []control.Status) error {
	return encodeJSON(out, report{Schema: control.Schema, Clones: clones})
}

func (r reporter) list(c *cli.Context) error {
	_, output, err := wordsForm(c, 0, 0, "json")
	if err != nil {
		return err
	}
	all, err := r.all()
	if err != nil {
		return err
	}
	if output != "" {
		return printJSON(r.out, all)
	}
	return writeTable(r.out, all)
}

func (r reporter) status(c *cli.Context) error {
	args, output, err := wordsForm(c, 0, 1, "json", "dm")
	if err != nil {
		return err
	}
	one := len(args) == 1
	names := args
	if one {
		if _, err := r.dir.Load(args[0]); err != nil {
			return err
		}
	} else if names, err = r.dir.Names(); err != nil {
		return err
	}
	all, err := r.statuses(names)
	if err != nil {
		return err
	}
	switch {
	case output == "json":
		return printJSON(r.out, all)
	case output == "dm":
		return printDM(r.out, all, one)
	case one && len(all) == 1:
		return writeDetails(r.out, &all[0], c.Bool("bytes"))
	}
	return overview(r.out, all, c.Bool("bytes"))
}

// printDM prints dm-clone's lines, with names in front if there may be several.
func printDM(out io.Writer, all []control.Status, one bool) error {
	for i := range all {
		if err := all[i].Unserved(); err != nil {
			return err
		}
		if !one {
			if _, err := fmt.Fprintf(out, "%s: ", all[i].Name); err != nil {
				return err
			}
		}
		if err := writeDM(out, &all[i]); err != nil {
			return err
		}
	}
	return nil
}

// overview is the table, and the details of what needs attention.
func overview(out io.Writer, all []control.Status, bytes bool) error {
	if err := writeTable(out, all); err != nil {
		return err
	}
	for i := range all {
		if all[i].Action == "" {
			continue
		}
		if _, err := fmt.Fprintln(out); err != nil {
			return err
		}
		if err := writeDetails(out, &all[i], bytes); err != nil {
			return err
		}
	}
	return nil
}

func (r reporter) table(c *cli.Context) error {
	args, _, err := wordsForm(c, 0, 1, "json")
	if err != nil {
		return err
	}
	names := args
	if len(args) == 0 {
		if names, err = r.dir.Names(); err != nil {
			return err
		}
	}
	for _, name := range names {
		def, err := loadWhole(r.dir, name)
		if err != nil {
			return err
		}
		line := def.AsTable()
		if len(args) == 0 {
			line = name + ": " + line
		}
		if _, err := fmt.Fprintln(r.out, line); err != nil {
			return err
		}
	}
	return nil
}

// loadWhole loads a definition with what its daemon has added; exit code 13 if that is to come.
func loadWhole(dir control.Dir, name string) (*definition.Definition, error) {
	def, err := dir.Load(name)
	if err != nil || def.Device != "" {
		return def, err
	}
	st, err := dir.Ask(name, control.Request{Verb: control.VerbStatus}, control.AskLimit)
	if err == nil {
		err = st.Unserved()
	}
	if err != nil {
		return nil, err
	}
	return dir.Load(name) // it was added before the clone is served
}

// asker has the commands that ask a daemon for a change.
type asker struct{ dir control.Dir }

func (a asker) message(c *cli.Context) error {
	all, err := words(c, 2, 1<<10)
	if err != nil {
		return err
	}
	m, err := definition.ParseMessage(all[1:])
	if err != nil {
		return err
	}
	_, err = a.dir.Ask(all[0], control.Request{Verb: control.VerbMessage, Message: &m}, control.AskLimit)
	return err
}

func (a asker) set(c *cli.Context) error {
	all, _, err := wordsForm(c, 1, 1<<10, "json")
	if err != nil {
		return err
	}
	if err := definition.CheckName(all[0]); err != nil {
		return err
	}
	ch, err := definition.ParseChange(all[1:])
	if err != nil {
		return err
	}
	_, err = a.dir.Ask(all[0], control.Request{Verb: control.VerbSet, Change: &ch}, control.AskLimit)
	return err
}

// simple asks the daemon one thing that takes no arguments.
func (a asker) simple(verb string) cli.ActionFunc {
	return func(c *cli.Context) error {
		name, _, err := namedForm(c)
		if err != nil {
			return err
		}
		limit := control.AskLimit
		if verb == control.VerbResume {
			limit = control.ResumeLimit
		}
		_, err = a.dir.Ask(name, control.Request{Verb: verb}, limit)
		return err
	}
}

// packageVersion is set by scripts/package; without it the version is what Go knows of the tree.
var packageVersion string

func versionText() string {
	if packageVersion != "" {
		return packageVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func (p *program) version(c *cli.Context) error {
	output, err := form(c, "json")
	if err != nil {
		return err
	}
	version := versionText()
	if output != "" {
		return encodeJSON(p.out, map[string]string{"schema": control.Schema, "version": version, "go": runtime.Version()})
	}
	_, err = fmt.Fprintf(p.out, "ublk-clone %s (%s)\n", version, runtime.Version())
	return err
}
