package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/daemon"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/process"
	"github.com/ublk-clone/ublk-clone/internal/succession"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// adder has the command add, which makes a clone or has one go on.
type adder struct{ *program }

func (a adder) add(c *cli.Context) error {
	st, err := startDefined(a.defined, c)
	if err != nil {
		return a.asBefore(c, err)
	}
	asJSON, err := form(c, "json")
	if err != nil {
		return err
	}
	until := c.String("wait")
	if until != "ready" && until != "hydrated" {
		return definition.UsageError("--wait " + until + ": it must be ready or hydrated")
	}
	if err := needRoot("add clone " + st.Definition.Name); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return a.dryRun(st, asJSON)
	}
	if err := a.dir.Create(); err != nil {
		return err
	}
	if err := process.SameThere(a.dir, &st.Definition); err != nil {
		return err
	}
	if c.Bool("foreground") && daemon.FindManager(zerolog.Nop()) != nil {
		return a.serve(st)
	}
	there, err := a.clones().Add(st, func(st definition.Start) (err error) {
		a.collect()
		switch {
		case c.Bool("foreground"):
			return a.clones().StillThere(st, a.host().RunForeground(st, ""))
		case st.Recover:
			_, err = a.clones().RecoverDead(st)
		default:
			_, err = daemon.Spawn(a.dir, st)
		}
		return err
	})
	if err != nil || c.Bool("foreground") && !there {
		return err
	}
	return a.added(st.Definition.Name, there, until, asJSON)
}

// startDefined reads the flags, those that a definition has among them.
func startDefined(defined etc.Dir, c *cli.Context) (definition.Start, error) {
	path, err := takeDefined(defined, c)
	if err != nil {
		return definition.Start{}, err
	}
	st, err := startFrom(c)
	return st, inDefinition(path, err)
}

// asBefore is for a unit's clone that is there, and whose definition cannot be used by now: it goes
// on as it was defined, as its users wait.
func (a adder) asBefore(c *cli.Context, bad error) error {
	if !c.Bool("foreground") || daemon.FindManager(zerolog.Nop()) == nil {
		return bad
	}
	there, err := a.dir.Load(c.Args().First())
	if err == nil && !a.dir.Alive(there.Name) {
		err = leftover.Recoverable(there)
	}
	if err != nil {
		return bad
	}
	a.warn("the clone goes on as it was defined before: %v", bad)
	return a.serve(definition.Start{Definition: *there})
}

// needRoot is for commands that need more than a daemon that listens.
func needRoot(doing string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return &exit.Error{Code: exit.Denied, Doing: doing, Cause: errors.New("not root"), Next: "Run it as root."}
}

// startFrom reads the flags of add.
func startFrom(c *cli.Context) (definition.Start, error) {
	name, err := named(c)
	if err != nil {
		return definition.Start{}, err
	}
	def := definition.Definition{Name: name, Queues: c.Int("queues"), QueueDepth: c.Int("queue-depth"), SourceShared: c.Bool("source-shared"), DM: c.String("dm")}
	for flag, off := range map[string]*bool{definition.ZeroCopyFlag: &def.Copied, definition.DetectZeroesFlag: &def.ZerosAsData} {
		on, ok := definition.ParseSwitch(c.String(flag))
		if !ok {
			return definition.Start{}, definition.UsageError(fmt.Sprintf("--%s %s: it must be on or off", flag, c.String(flag)))
		}
		*off = !on
	}
	take := takeParts
	if c.IsSet("table") {
		take = takeTable
	}
	if err := take(&def, c); err != nil {
		return definition.Start{}, err
	}
	if err := settingFlags(c, &def.Settings); err != nil {
		return definition.Start{}, err
	}
	st := definition.Start{Definition: def, Create: c.Bool("create"), Open: c.Bool("open"), Force: c.Bool("force")}
	if st.Create && st.Open {
		return st, definition.UsageError("--create and --open exclude each other")
	}
	return st, def.Check()
}

// settingFlags adds the settings that the command line names.
func settingFlags(c *cli.Context, to *definition.Change) error {
	for _, k := range definition.Keys {
		for _, flag := range []string{k.Name, k.Alias} {
			if flag == "" || !c.IsSet(flag) {
				continue
			}
			if err := k.Set(to, c.String(flag)); err != nil {
				return definition.UsageError(fmt.Sprintf("--%s: %v", flag, err))
			}
		}
	}
	for flag, to := range map[string]**bool{definition.NoHydrationFlag: &to.Hydration, definition.NoPassdownFlag: &to.DiscardPassdown} {
		if c.IsSet(flag) {
			on := !c.Bool(flag)
			*to = &on
		}
	}
	return nil
}

// takeParts reads what makes a clone from flags of their own.
func takeParts(d *definition.Definition, c *cli.Context) (err error) {
	if d.RegionSize, err = regionSizeFlag(c); err != nil {
		return err
	}
	for _, f := range []struct {
		flag string
		to   *string
	}{{"source", &d.Source}, {"dest", &d.Dest}, {"metadata", &d.Metadata}} {
		if *f.to, err = pathFlag(c, f.flag); err != nil {
			return err
		}
	}
	return nil
}

// inTable are the flags for what dm-clone's line says itself.
var inTable = []string{"source", "dest", "metadata", "region-size", definition.NoHydrationFlag, definition.NoPassdownFlag, "hydration-threshold", "hydration-batch-size"}

// takeTable reads what makes a clone from dm-clone's line.
func takeTable(d *definition.Definition, c *cli.Context) error {
	for _, flag := range inTable {
		if c.IsSet(flag) {
			return definition.UsageError("--table and --" + flag + " exclude each other: the table says it")
		}
	}
	t, err := definition.ParseTable(c.String("table"))
	if err != nil {
		e := definition.UsageError("--table: " + err.Error()).(*exit.Error)
		e.Next = "The line is: " + definition.TableForm + "."
		return e
	}
	d.Size, d.RegionSize, d.Settings = t.Size, t.RegionSize, t.Settings
	for _, part := range []struct {
		role blockdev.Role
		word *string
		to   *string
	}{{blockdev.Source, &t.Source, &d.Source}, {blockdev.Dest, &t.Dest, &d.Dest}, {blockdev.Metadata, &t.Metadata, &d.Metadata}} {
		if *part.word, *part.to, err = tableDevice(part.role, *part.word); err != nil {
			return err
		}
	}
	d.Table = t.String()
	return nil
}

// tableDevice gives a device of a table as the table is to be kept, and its path. MAJOR:MINOR, as
// `dmsetup table` prints it, is a block device; another path is made absolute.
func tableDevice(role blockdev.Role, word string) (kept, path string, err error) {
	path, isNumber, err := blockdev.NumberedPath(role, word)
	if isNumber || err != nil {
		return word, path, err
	}
	if path, err = filepath.Abs(word); err != nil {
		return "", "", definition.UsageError(fmt.Sprintf("--table: %s device %s: %v", role, word, err))
	}
	return path, path, nil
}

// pathFlag makes a path absolute: the daemon runs in another directory.
func pathFlag(c *cli.Context, name string) (string, error) {
	path := c.String(name)
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", definition.UsageError(fmt.Sprintf("--%s %s: %v", name, path, err))
	}
	return abs, nil
}

// regionSizeFlag is in bytes, 0 where there is none.
func regionSizeFlag(c *cli.Context) (int64, error) {
	if !c.IsSet("region-size") {
		return 0, nil
	}
	word := c.String("region-size")
	n, err := text.ParseSize(word)
	if err != nil {
		return 0, definition.UsageError(fmt.Sprintf("--region-size: %v", err))
	}
	if !definition.RegionSizePossible(n) {
		return 0, definition.UsageError(fmt.Sprintf("--region-size %s: it must be a power of two from 4KiB to 1GiB", word))
	}
	return n, nil
}

// added waits for what was asked for and prints the device.
func (p *program) added(name string, there bool, until, asJSON string) error {
	def, _ := p.dir.Load(name) // which it may have no longer, if it finishes by itself
	if until == "hydrated" {
		if err := succession.Hydrated(p.dir, name, 0, func(*control.Status) error { return nil }); err != nil {
			return err
		}
	}
	st, err := succession.Up(p.dir, name)
	if err != nil && succession.HasFinished(def, err) {
		st, err = &control.Status{}, nil
		st.Finish(def)
	}
	if err != nil {
		return err
	}
	for _, w := range st.Warnings {
		p.warn("%s", w)
	}
	if asJSON != "" {
		return printJSON(p.out, []control.Status{*st})
	}
	note := ""
	if there {
		note = " unchanged"
	}
	_, err = fmt.Fprintln(p.out, st.UserPath()+note)
	return err
}
