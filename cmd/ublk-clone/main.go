// Command ublk-clone makes and manages clones: block devices that can be used at
// once while their content comes from a source, one to one, into a destination.
//
//	add -- starts --> daemon, one per clone             other commands
//	 ^                  internal/daemon: the process          |
//	 |   readiness      internal/engine: the clone            |
//	 +------------------+                               <-----+  control socket
//
// This package is the command line: it reads flags (app.go, add.go) and prints
// what packages below it found. `add` starts this program again as the daemon of
// one clone (daemon.Spawn), hands it the definition on standard input and waits
// for its report over a pipe. The other commands (commands.go) only ask the
// daemon, over /run/ublk-clone/NAME.sock (package control). `add --foreground` is
// the daemon itself; what a unit runs is in service.go.
//
// A program is the run of the command. Each group of commands is a type with what it needs of that:
// adder, restarter, ender, reporter, asker, follower, metadataTool, importer, suggester, unitHooks.
//
// This package makes the one connection between daemon and engine (program.host),
// so neither imports the other.
//
// Deletion is explicit, refused while somebody has the device open, and bounded
// in time.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/daemon"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/engine"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/preflight"
	"github.com/ublk-clone/ublk-clone/internal/succession"
)

// program is one run of the command.
type program struct {
	out, errs io.Writer
	dir       control.Dir
	defined   etc.Dir
}

// host is this process as a daemon.
func (p *program) host() *daemon.Host {
	return &daemon.Host{
		Dir: p.dir, Out: p.out, Try: engine.DryRun, Look: func(d control.Dir, def *definition.Definition) error { return preflight.MayReplace(d, def) },
		NewEngine: func(st definition.Start, log zerolog.Logger) daemon.Engine { return engine.New(st, log) },
	}
}

// clones brings clones up in place of what was there.
func (p *program) clones() succession.Clones { return succession.Clones{Dir: p.dir, Left: p.left()} }

// left looks after what dead daemons have left.
func (p *program) left() leftover.Dirs { return leftover.Dirs{Dir: p.dir, Defined: p.defined} }

// collect removes what is needless. What it cannot remove is a warning: its caller came for more.
func (p *program) collect() {
	if err := p.left().Collect(); err != nil {
		p.warn("cannot remove what a killed daemon left behind: %v", err)
	}
}

// init keeps the process's own thread for main. A goroutine that locks its thread changes it for
// good, and takes it along: a queue on this one gave the process the queue's name (`pgrep
// ublk-clone` did not find it, 2 of 30 times) and its CPUs.
func init() { runtime.LockOSThread() }

func main() {
	p := &program{out: os.Stdout, errs: os.Stderr, dir: control.DefaultDir(), defined: etc.DefaultDir()}
	os.Exit(p.run(os.Args))
}

// run does what the command line says and returns the exit code.
func (p *program) run(args []string) int {
	if filepath.Base(args[0]) == etc.GeneratorName && len(args) > 1 {
		if err := p.defined.Generate(args[1], etc.DestRules); err != nil {
			p.complain(err, false)
			return exit.Code(err)
		}
		return exit.OK
	}
	app := newApp(p)
	err := missingValue(app, args)
	args = flagsFirst(app, args)
	if err == nil {
		err = app.Run(args)
	}
	if err == nil {
		return exit.OK
	}
	p.complain(err, wantsJSON(args))
	return unitStatus(args, exit.Code(err))
}

// unitStatus is the exit status for an exit code. A service manager starts a daemon again, unless
// its status says that this is of no use. The runtime of Go ends a process with 1 to 5 when it
// fails, so a unit can rely on none of these: for a manager each code is above them.
func unitStatus(args []string, code int) int {
	if code == exit.OK || os.Getenv("NOTIFY_SOCKET") == "" || !slices.Contains(args, "--foreground") {
		return code
	}
	return exit.ForUnit + code
}

// wantsJSON looks for -o json itself: a command line that cannot be read is
// answered in JSON too.
func wantsJSON(args []string) bool {
	for i, a := range args {
		a = strings.TrimLeft(a, "-")
		if (a == "o" || a == "output") && slices.Contains(args[i+1:min(i+2, len(args))], "json") {
			return true
		}
		if a == "o=json" || a == "output=json" {
			return true
		}
	}
	return false
}

// say writes to standard error. If that fails there is nobody else to tell.
func (p *program) say(format string, args ...any) { _, _ = fmt.Fprintf(p.errs, format, args...) }

// warn says what the user should know, though the command succeeds.
func (p *program) warn(format string, args ...any) {
	p.say("ublk-clone: warning: "+format+"\n", args...)
}

// complain prints one error: what, on which object, why, and the next step.
func (p *program) complain(err error, asJSON bool) {
	if asJSON {
		b, marshalErr := json.Marshal(struct {
			Schema string             `json:"schema"`
			Error  *control.WireError `json:"error"`
		}{control.Schema, control.ToWire(err)})
		if marshalErr == nil {
			p.say("%s\n", b)
			return
		}
	}
	p.say("ublk-clone: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if next := exit.Next(err); next != "" {
		p.say("  %s\n", next)
	}
}
