package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

func (p *program) add(c *cli.Context) error {
	st, err := p.startDefined(c)
	if err != nil {
		return p.asBefore(c, err)
	}
	asJSON, err := form(c, "json")
	if err != nil {
		return err
	}
	until := c.String("wait")
	if until != "ready" && until != "hydrated" {
		return usage("--wait " + until + ": ready or hydrated is possible")
	}
	if err := p.needRoot("add clone " + st.Definition.Name); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return p.dryRun(st, asJSON)
	}
	if err := p.dir.create(); err != nil {
		return err
	}
	if err := p.dir.sameThere(&st.Definition); err != nil {
		return err
	}
	if c.Bool("foreground") && theService(zerolog.Nop()) != nil {
		return p.serve(st)
	}
	there, err := p.clones().unchanged(&st.Definition)
	if err != nil {
		return err
	}
	if !there && !st.Force {
		if st, err = p.clones().continued(st); err != nil {
			return err
		}
	}
	if !there {
		p.collect()
	}
	switch {
	case there:
	case c.Bool("foreground"):
		return p.clones().stillThere(st, p.host().runForeground(st, ""))
	default:
		if st.Recover {
			_, err = p.clones().recoverDead(st)
		} else {
			_, err = p.dir.spawn(st)
		}
		if err != nil {
			return err
		}
	}
	return p.added(st.Definition.Name, there, until, asJSON)
}

// startDefined reads the flags, those that a definition has among them.
func (p *program) startDefined(c *cli.Context) (start, error) {
	defined, err := p.takeDefined(c)
	if err != nil {
		return start{}, err
	}
	st, err := startFrom(c)
	return st, blame(defined, err)
}

// asBefore is for a unit's clone that is there, and whose definition cannot be used by now: it goes on as it was defined, as
// its users wait.
func (p *program) asBefore(c *cli.Context, bad error) error {
	if !c.Bool("foreground") || theService(zerolog.Nop()) == nil {
		return bad
	}
	there, err := p.dir.load(c.Args().First())
	if err == nil && !p.dir.alive(there.Name) {
		err = recoverable(there)
	}
	if err != nil {
		return bad
	}
	fmt.Fprintln(p.errs, "ublk-clone: warning: the clone goes on as it was defined before:", bad)
	return p.serve(start{Definition: *there})
}

// needRoot is for commands that need more than a daemon that listens.
func (p *program) needRoot(doing string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return &exit.Error{Code: exit.Denied, Doing: doing, Cause: errors.New("not root"), Next: "Run it as root."}
}

// startFrom reads the flags of add.
func startFrom(c *cli.Context) (start, error) {
	name, err := named(c)
	if err != nil {
		return start{}, err
	}
	def := definition{Name: name, Queues: c.Int("queues"), QueueDepth: c.Int("queue-depth"), SourceShared: c.Bool("source-shared"), DM: c.String("dm")}
	for flag, off := range map[string]*bool{zeroCopyFlag: &def.Copied, detectZeroesFlag: &def.ZerosAsData} {
		on, ok := parseSwitch(c.String(flag))
		if !ok {
			return start{}, usage(fmt.Sprintf("--%s %s: on or off is possible", flag, c.String(flag)))
		}
		*off = !on
	}
	take := takeParts
	if c.IsSet("table") {
		take = takeTable
	}
	if err := take(&def, c); err != nil {
		return start{}, err
	}
	if err := settingFlags(c, &def.Settings); err != nil {
		return start{}, err
	}
	st := start{Definition: def, Create: c.Bool("create"), Open: c.Bool("open"), Force: c.Bool("force")}
	if st.Create && st.Open {
		return st, usage("--create and --open exclude each other")
	}
	return st, def.check()
}

// settingFlags adds the settings that the command line names.
func settingFlags(c *cli.Context, to *change) error {
	for _, k := range keys {
		for _, flag := range []string{k.name, k.alias} {
			if flag == "" || !c.IsSet(flag) {
				continue
			}
			if err := k.set(to, c.String(flag)); err != nil {
				return usage(fmt.Sprintf("--%s: %v", flag, err))
			}
		}
	}
	for flag, to := range map[string]**bool{noHydrationFlag: &to.Hydration, noPassdownFlag: &to.DiscardPassdown} {
		if c.IsSet(flag) {
			on := !c.Bool(flag)
			*to = &on
		}
	}
	return nil
}

// The switches of definition.Copied and definition.ZerosAsData.
const (
	zeroCopyFlag     = "zero-copy"
	detectZeroesFlag = "detect-zeroes"
)

// Flags that switch a setting off.
const (
	noHydrationFlag = "no-hydration"
	noPassdownFlag  = "no-discard-passdown"
)

// takeParts reads what makes a clone from flags of their own.
func takeParts(d *definition, c *cli.Context) (err error) {
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
var inTable = []string{"source", "dest", "metadata", "region-size", noHydrationFlag, noPassdownFlag, "hydration-threshold", "hydration-batch-size"}

// takeTable reads what makes a clone from dm-clone's line.
func takeTable(d *definition, c *cli.Context) error {
	for _, flag := range inTable {
		if c.IsSet(flag) {
			return usage("--table and --" + flag + " exclude each other: the table says it")
		}
	}
	t, err := parseTable(c.String("table"))
	if err != nil {
		e := usage("--table: " + err.Error()).(*exit.Error)
		e.Next = "The line is: " + tableForm + "."
		return e
	}
	d.Size, d.RegionSize, d.Settings = t.size, t.regionSize, t.settings
	for _, part := range []struct {
		role blockdev.Role
		word *string
		to   *string
	}{{blockdev.Source, &t.source, &d.Source}, {blockdev.Dest, &t.dest, &d.Dest}, {blockdev.Metadata, &t.metadata, &d.Metadata}} {
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
		return "", "", usage(fmt.Sprintf("--table: %s device %s: %v", role, word, err))
	}
	return path, path, nil
}

// pathFlag makes a path absolute: the daemon runs in another folder.
func pathFlag(c *cli.Context, name string) (string, error) {
	path := c.String(name)
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", usage(fmt.Sprintf("--%s %s: %v", name, path, err))
	}
	return abs, nil
}

// regionSizeFlag is in bytes, 0 where there is none.
func regionSizeFlag(c *cli.Context) (int64, error) {
	if !c.IsSet("region-size") {
		return 0, nil
	}
	word := c.String("region-size")
	n, err := parseSize(word)
	if err != nil {
		return 0, usage(fmt.Sprintf("--region-size: %v", err))
	}
	if !regionSizePossible(n) {
		return 0, usage(fmt.Sprintf("--region-size %s: a power of two from 4KiB to 1GiB is needed", word))
	}
	return n, nil
}

// added waits for what was asked for and prints the device.
func (p *program) added(name string, there bool, until, asJSON string) error {
	if until == "hydrated" {
		if err := p.waitHydrated(name, 0, func(*cloneStatus) error { return nil }); err != nil {
			return err
		}
	}
	st, err := p.awaitUp(name)
	if err != nil {
		return err
	}
	for _, w := range st.Warnings {
		fmt.Fprintln(p.errs, "ublk-clone: warning:", w)
	}
	if asJSON != "" {
		return p.printJSON([]cloneStatus{*st})
	}
	note := ""
	if there {
		note = " unchanged"
	}
	_, err = fmt.Fprintln(p.out, cmp.Or(st.DMDevice, st.Device)+note)
	return err
}

// awaitUp is the status of a clone that is up, or that somebody else is starting.
func (p *program) awaitUp(name string) (*cloneStatus, error) {
	for deadline := time.Now().Add(startLimit); ; time.Sleep(pollPause) {
		st, err := p.dir.ask(name, request{Verb: verbStatus}, askLimit)
		if err != nil || st.serves() {
			return st, err
		}
		if time.Now().After(deadline) {
			return nil, &exit.Error{Code: exit.Timeout, Doing: "wait for clone", Object: name, Cause: st.unserved()}
		}
	}
}
