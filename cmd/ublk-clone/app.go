package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/daemon"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/holders"
)

const description = `A clone is a block device, /dev/ublk-clone/NAME, that has the content of SOURCE from
the first moment and can be written at once. Reads of what is not yet in DEST come from
SOURCE, writes go to DEST, what is discarded is not copied, and background hydration
copies the rest. When everything is hydrated, DEST stands alone. SOURCE is never
written.

The map of what is where is kept in METADATA, a file or a small device; it must
be kept together with DEST until hydration is complete.

A recipe:
   ublk-clone add root --source /dev/sdb --dest /dev/sdc --metadata /var/lib/root.meta --no-hydration
   mount /dev/ublk-clone/root /mnt && fstrim /mnt   free space is not copied
   ublk-clone resume root                        start hydration
   ublk-clone wait root                          until it is complete
   umount /mnt && ublk-clone finish root         /dev/sdc stands alone

With --dm NAME, finish needs no umount.

SIZES are bytes; K M G T and KiB MiB GiB TiB are 1024, kB MB GB TB 1000, s is a
512-byte sector. NAMES are letters, digits and "._-", at most 64.

EXIT CODES`

func newApp(p *program) *cli.App {
	end, restart, report, ask := ender{p}, restarter{p}, reporter{p.dir, p.left(), p.out}, asker{p.dir}
	follow, meta := follower{p.dir, p.out}, metadataTool{p.out}
	app := &cli.App{
		Name:            "ublk-clone",
		Usage:           "clone a block device onto another while it is in use",
		Description:     description + exitCodes(),
		HideVersion:     true,
		HideHelpCommand: false,
		Writer:          p.out,
		ErrWriter:       p.errs,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    func(_ *cli.Context, err error, _ bool) error { return definition.UsageError(err.Error()) },
		Flags:           []cli.Flag{&cli.BoolFlag{Name: versionFlag, Usage: "print the version"}},
		Action:          p.noCommand,
		Commands: []*cli.Command{
			addCommand(adder{p}.add), delCommand(end.del), listCommand(report.list), statusCommand(report.status), tableCommand(report.table),
			messageCommand(ask.message), recoverCommand(restart.recover), restartCommand(restart.restart), pruneCommand(end.prune),
			setCommand(ask.set), pauseCommand(ask.simple(control.VerbPause)), resumeCommand(ask.simple(control.VerbResume)),
			waitCommand(follow.wait), eventsCommand(follow.events), watchCommand(follow.watch), finishCommand(end.finish),
			metadataCommand(p.noCommand, meta.create, meta.check, meta.dump), importCommand(importer{p.defined, p.out}.run),
			doctorCommand(p.doctor), versionCommand(p.version),
			{Name: suggestCommand, Hidden: true, Action: suggester{p}.run},
			{Name: unitPrepareCommand, Hidden: true, Action: unitHooks{p}.prepare},
			{Name: unitStopCommand, Hidden: true, Action: unitHooks{p}.stop},
			{Name: holders.ClaimCommand, Hidden: true, Action: func(c *cli.Context) error { return holders.Serve(c.Args().First(), os.Stdin, p.out) }},
			{Name: daemon.DaemonCommand, Hidden: true, Action: func(*cli.Context) error { return p.host().RunSpawned() }},
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = app.OnUsageError
		for _, sub := range c.Subcommands {
			sub.OnUsageError = app.OnUsageError
		}
	}
	return app
}

func exitCodes() string {
	var b strings.Builder
	for _, m := range exit.Meaning {
		fmt.Fprintf(&b, "\n   %2d  %s", m.Code, m.Text)
	}
	return b.String()
}

// noCommand is what happens without a command, or with one that is not known.
func (p *program) noCommand(c *cli.Context) error {
	if c.Args().Present() {
		return definition.UsageError(fmt.Sprintf("unknown command %q", c.Args().First()))
	}
	if c.Bool(versionFlag) {
		return p.version(c)
	}
	return cli.ShowAppHelp(c)
}

// versionFlag is what programs have instead of the command.
const versionFlag = "version"

// Flags that several commands have.
func outputFlag(forms string) cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "print `FORM`: " + forms}
}

func timeoutFlag() cli.Flag {
	return &cli.StringFlag{Name: "timeout", Usage: "wait at most this `TIME` for the last requests of the dead daemon (default: " + control.FenceLimit.String() + ")"}
}

func addCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: addName, Usage: "make a clone, or bring one up again", ArgsUsage: "NAME", Action: action,
		Description: `Starts the daemon of clone NAME and prints the path of its block device when it
is usable. SOURCE, DEST and METADATA are block devices or files. With empty or
missing metadata the clone is new: DEST must carry no file system or other known
signature, and is created if it is a missing file. Otherwise the clone goes on
where it was. The same command again says "unchanged".

Without SOURCE, DEST, METADATA and LINE the clone is defined by
/etc/ublk-clone/NAME.toml, whose keys are these flags: source = "/dev/sdb". The
unit ublk-clone@NAME starts it so at every boot.

Settings (rates, threshold, batch, read-through, direct, finish, passdown, retries,
source timeout, hydration) are kept over a restart. A later add changes those that it names.

A region is the unit of hydration. With the default of 4KiB nearly every write
covers its regions whole and needs no copy; larger regions make the map smaller.

With --dm, a device-mapper device is what /dev/ublk-clone/NAME leads to, which add
prints: finish points it to DEST while it is in use. With --finish auto that happens by itself.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "source", Usage: "`DEVICE|FILE` to clone; opened read-only and, unless shared, exclusively"},
			&cli.StringFlag{Name: "dest", Usage: "`DEVICE|FILE` that becomes the clone; at least as large"},
			&cli.StringFlag{Name: "metadata", Usage: "`DEVICE|FILE` that keeps the map"},
			&cli.StringFlag{Name: "region-size", Usage: "`SIZE` of a region, a power of two from 4KiB to 1GiB (default: 4KiB, or what the metadata says)"},
			&cli.StringFlag{Name: "table", Usage: "all of these and the core arguments in dm-clone's `LINE`: \"" + definition.TableForm + "\", in 512-byte sectors"},
			&cli.BoolFlag{Name: definition.NoHydrationFlag, Usage: "start with background hydration off"},
			&cli.StringFlag{Name: "hydration-threshold", Usage: "most `REGIONS` copied at a time in the background (default: 4 batches)"},
			&cli.StringFlag{Name: "hydration-batch-size", Usage: "contiguous `REGIONS` in one copy, and no more than SOURCE takes at a time (default: 1 MiB)"},
			&cli.StringFlag{Name: "rate", Usage: "most that is copied in the background, `SIZE/s` or none (default: none)"},
			&cli.StringFlag{Name: "min-rate", Usage: "least that is copied, even while users are active, `SIZE/s` or none (default: 1MiB/s)"},
			&cli.StringFlag{Name: "retries", Usage: "`N` attempts for a region before it waits for resume (default: 6)"},
			&cli.StringFlag{Name: "source-timeout", Usage: "`TIME` without an answer after which SOURCE counts as away, or none (default: 30s)"},
			&cli.StringFlag{Name: "read-through", Usage: "`on|off`: keep in DEST what is read from SOURCE (default: on, with --table off)"},
			&cli.StringFlag{Name: "direct", Usage: "`on|off`: with --dm, lead what is hydrated straight to DEST (default: on)"},
			&cli.StringFlag{Name: "finish", Usage: "`auto|manual`: with --dm, finish by itself when everything is hydrated (default: manual)"},
			&cli.BoolFlag{Name: definition.NoPassdownFlag, Usage: "do not tell DEST of discards"},
			&cli.IntFlag{Name: "queues", Value: definition.DefaultQueues, Usage: "`N` queues, each with a thread"},
			&cli.IntFlag{Name: "queue-depth", Value: definition.DefaultQueueDepth, Usage: "`N` requests in flight for each queue"},
			&cli.StringFlag{Name: definition.ZeroCopyFlag, Value: "on", Usage: "`on|off`: devices read and write the memory of users directly, where the driver can (from 6.16 on), or a copy of it"},
			&cli.StringFlag{Name: definition.DetectZeroesFlag, Value: "on", Usage: "`on|off`: 64 KiB and more of zeros in SOURCE become zeros in DEST that take no space, where DEST can do that"},
			&cli.StringFlag{Name: "dm", Usage: "put a device-mapper device `DMNAME` on top of the block device; finish points it to DEST while it is in use"},
			&cli.BoolFlag{Name: "source-shared", Usage: "several clones use the source: do not lock it"},
			&cli.BoolFlag{Name: "create", Usage: "the metadata must be empty or missing"},
			&cli.BoolFlag{Name: "open", Usage: "the metadata must be there"},
			&cli.BoolFlag{Name: "force", Usage: "overwrite a destination that carries something, accept what is warned about"},
			&cli.BoolFlag{Name: "dry-run", Usage: "run all checks and print the expected result and cost; change nothing"},
			&cli.BoolFlag{Name: "foreground", Usage: "run the daemon in the foreground; SIGTERM and the command del end it"},
			&cli.StringFlag{Name: "wait", Value: "ready", Usage: "return when the clone is `STATE`: ready or hydrated"},
			outputFlag("json"),
		},
	}
}

func importCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "import-clonetab", Usage: "make definitions of the lines of systemd's clonetab", ArgsUsage: "[FILE]", Action: action,
		Description: `Writes /etc/ublk-clone/NAME.toml for each line of FILE (default: /etc/clonetab),
and prints its path: "NAME SOURCE DESTINATION METADATA [region-size=BYTES]".
Nothing is written if one cannot be. The clones are started by
` + "`systemctl enable --now ublk-clone@NAME`" + `.`,
		Flags: []cli.Flag{outputFlag("json (errors)")},
	}
}

func delCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "del", Usage: "end a clone", ArgsUsage: "NAME", Action: action,
		Description: `Commits what is hydrated, removes the block device and ends the daemon. Source,
destination and metadata stay: the same add goes on where it was. Refused, with
exit code 5 and a list of the users, while somebody has the device open: also
when the daemon is dead, as its users wait for the next one. --force ends such a
device, and all of them get errors.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "delete the device from under its users, who get errors"},
			&cli.StringFlag{Name: "wait", Value: "1s", Usage: "wait at most this `TIME` for the device to be closed"},
			outputFlag("json (errors)"),
		},
	}
}

func listCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list the clones", Action: action,
		Flags: []cli.Flag{outputFlag("json")},
	}
}

func statusCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "status", Aliases: []string{"show"}, Usage: "show the state of a clone", ArgsUsage: "[NAME]", Action: action,
		Description: "Shows one clone, or lists all with details of those that need attention. It changes\nnothing. -o dm prints the line that `dmsetup status` prints for a clone target.",
		Flags: []cli.Flag{
			outputFlag("json, dm"),
			&cli.BoolFlag{Name: "bytes", Aliases: []string{"b"}, Usage: "print sizes as integers"},
		},
	}
}

func tableCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "table", Usage: "print a clone's definition as a device-mapper table", ArgsUsage: "[NAME]", Action: action,
		Flags: []cli.Flag{outputFlag("json (errors)")},
	}
}

func messageCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "message", Usage: "send a clone one of dm-clone's messages", ArgsUsage: "NAME MESSAGE", Action: action,
		Description: "Messages: " + definition.MessageList + ".\nN counts regions. A 0 before the message is ignored. Prints nothing.",
		Flags:       []cli.Flag{outputFlag("json (errors)")},
	}
}

func setCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "set", Usage: "change settings of a clone", ArgsUsage: "NAME KEY=VALUE...", Action: action,
		Description: "Keys: " + definition.KeyList() + ".\nAll of them are changed or none. Kept over a restart. Prints nothing.",
		Flags:       []cli.Flag{outputFlag("json (errors)")},
	}
}

func recoverCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "recover", Usage: "bring back a clone whose daemon is dead", ArgsUsage: "NAME", Action: action,
		Description: `The block device has outlived its daemon, and whoever uses it waits. A new daemon
takes it over, with every write that was acknowledged, and answers the requests
that were outstanding; nobody sees an error. The same add does it too. A living
daemon is left alone. If the new daemon cannot serve, the device goes on waiting.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "every clone whose daemon is dead"},
			&cli.BoolFlag{Name: "force", Usage: "if the region map in memory is lost or damaged, go on from the last commit, as after a power cut"},
			timeoutFlag(),
			outputFlag("json (errors)"),
		},
	}
}

func restartCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "restart", Usage: "replace the daemon of a clone, as after an upgrade", ArgsUsage: "NAME", Action: action,
		Description: `A new daemon starts from this program, which may be another version, and checks
everything that it will need. Then the old one answers the requests in flight,
commits, and leaves the block device to the new one. Users of the device wait
meanwhile and see no error. A dead daemon is replaced too, as by recover.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "every clone, one after the other"},
			timeoutFlag(),
			outputFlag("json (errors)"),
		},
	}
}

func pruneCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "prune", Usage: "delete the block devices of clones whose daemons are dead", Action: action,
		Description: `Metadata, destination and the map of what was written stay: the same add goes on
where it was. Devices of other programs are not touched. Devices that somebody has
open are deleted only with --force, and their users get errors. What else killed
daemons left behind goes too: devices that were never started, logs and locks of
names without a clone, and maps that no metadata needs. --force also removes the
maps of clones that are gone, and says what is lost by that.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "also from under their users, and the maps of clones that are gone"},
			outputFlag("json (errors)"),
		},
	}
}

func pauseCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "pause", Usage: "stop background hydration", ArgsUsage: "NAME", Description: "Kept over a restart.",
		Action: action, Flags: []cli.Flag{outputFlag("json (errors)")},
	}
}

func resumeCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "resume", Usage: "go on with background hydration", ArgsUsage: "NAME",
		Description: `Kept over a restart. What could not be copied is tried again. After a failure of the
metadata, resume says that the metadata is repaired: all marks are committed, and
the mode is rw again.`,
		Action: action, Flags: []cli.Flag{outputFlag("json (errors)")},
	}
}

func waitCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "wait", Usage: "wait until a clone is hydrated or finished, or for its next event", ArgsUsage: "NAME", Action: action,
		Description: `For hydration: if the clone is stalled, returns at once, with exit code 8 when its
source is the reason, and 9 when its destination is. For an event: prints it; with
--after and the last_event of a status, no event since then is missed. When the
time is up, the exit code is 11.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "for", Value: "hydrated", Usage: "wait for `WHAT`: hydrated, finished or event"},
			&cli.StringFlag{Name: "after", Usage: "the first event after number `N` (default: the next)"},
			&cli.StringFlag{Name: "timeout", Usage: "wait at most this `TIME`, such as 90s or 2h (default: as long as it takes)"},
			outputFlag("json"),
		},
	}
}

func watchCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "watch", Usage: "show hydration as it goes on", ArgsUsage: "NAME", Action: action,
		Description: "Ends when the clone is hydrated. A progress bar on a terminal, lines otherwise.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "progress", Value: "auto", Usage: "`FORM`: auto, bar, plain, json or none"},
			outputFlag("json (errors)"),
		},
	}
}

func metadataCommand(none, create, check, dump cli.ActionFunc) *cli.Command {
	output := outputFlag("json")
	return &cli.Command{
		Name: "metadata", Usage: "make or examine metadata", Action: none,
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make the metadata of a future clone", ArgsUsage: "FILE|DEVICE", Action: create,
				Description: "`ublk-clone add` with the same source and destination uses it.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "source", Usage: "`DEVICE|FILE` to clone"},
					&cli.StringFlag{Name: "dest", Usage: "`DEVICE|FILE` that becomes the clone; a missing file is created"},
					&cli.StringFlag{Name: "region-size", Usage: "`SIZE` of a region (default: 4KiB)"},
					&cli.BoolFlag{Name: definition.NoHydrationFlag, Usage: "background hydration is off to begin with"},
					&cli.StringFlag{Name: definition.ZeroCopyFlag, Value: "on", Usage: "`on|off`: devices read and write the memory of users directly, where the driver can (from 6.16 on), or a copy of it"},
					&cli.StringFlag{Name: definition.DetectZeroesFlag, Value: "on", Usage: "`on|off`: 64 KiB and more of zeros in SOURCE become zeros in DEST that take no space, where DEST can do that"},
					&cli.BoolFlag{Name: "source-shared", Usage: "do not lock the source"},
					&cli.BoolFlag{Name: "force", Usage: "overwrite metadata that is not empty"},
					outputFlag("json (errors)"),
				},
			},
			{
				Name: "check", Usage: "look for damage", ArgsUsage: "FILE|DEVICE", Action: check,
				Description: "Reads all of it and writes nothing. Exit code 10 if anything is wrong, also what the\nnext add repairs, such as one of the two copies of the superblock.",
				Flags:       []cli.Flag{output},
			},
			{
				Name: "dump", Usage: "print what the metadata says", ArgsUsage: "FILE|DEVICE", Action: dump,
				Flags: []cli.Flag{output},
			},
		},
	}
}

func doctorCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "check what clones need of this machine, and say what is wrong", Action: action,
		Description: `Looks at driver, kernel, limits, permissions, memory, directories and clones, and says of
each thing what it means and what to do. It changes nothing, and without root it
says what it cannot see. With a problem the exit code is that of the first one;
warnings alone are 0.`,
		Flags: []cli.Flag{outputFlag("json")},
	}
}

func versionCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version", Action: action,
		Flags: []cli.Flag{outputFlag("json")},
	}
}
