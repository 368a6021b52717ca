package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/definition"
)

// flagsFirst puts a command line in the order that the cli library reads:
// program, command (and subcommand), flags, "--", the rest. People write flags
// anywhere; the library stops reading them at the first other word. Whatever
// follows a "--" of the user's is never a flag. Unknown flags stay, for the
// library to complain about.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	takesValue := map[string]bool{}
	flagsOf(takesValue, app.Flags, app.Commands)
	flags, words, whole := split(takesValue, args[1:])

	n := commandWords(app.Commands, words)
	out := append([]string{args[0]}, words[:n]...)
	out = append(out, flags...)
	if n < len(words) && whole { // else the last flag would take the next word for its value
		out = append(append(out, "--"), words[n:]...)
	}
	return out
}

// missingValue refuses a flag that another flag follows in its value's place. So it looks when a
// script's variable is empty: `--metadata $FILE --no-hydration` would make a file of that name. A
// value that looks like a flag is given with "=".
func missingValue(app *cli.App, args []string) error {
	takesValue := map[string]bool{}
	flagsOf(takesValue, app.Flags, app.Commands)
	for i := 1; i+1 < len(args) && args[i] != "--"; i++ {
		name, isFlag := flagName(args[i])
		if !isFlag || !takesValue[name] {
			continue
		}
		i++ // the value
		next, isFlag := flagName(args[i])
		if _, known := takesValue[next]; isFlag && (known || args[i] == "--") {
			return definition.UsageError(fmt.Sprintf("--%s has no value: %s follows it. If that is the value, write --%s=%s", name, args[i], name, args[i]))
		}
	}
	return nil
}

// flagName is the name of a flag that stands alone, without a value behind "=".
func flagName(arg string) (name string, isFlag bool) {
	if len(arg) < 2 || arg[0] != '-' {
		return "", false
	}
	return strings.TrimLeft(arg, "-"), true
}

// flagsOf notes for every flag of the program whether a value follows it. A
// name means the same in every command (a test sees to it), so a flag may stand
// in front of its command too.
func flagsOf(takesValue map[string]bool, flags []cli.Flag, commands []*cli.Command) {
	for _, f := range flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, name := range f.Names() {
			takesValue[name] = !isBool
		}
	}
	for _, c := range commands {
		flagsOf(takesValue, c.Flags, c.Subcommands)
	}
}

// split separates flags, with their values, from the other words. They are whole unless the last
// flag lacks its value.
func split(takesValue map[string]bool, args []string) (flags, words []string, whole bool) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return flags, append(words, args[i+1:]...), true
		}
		if len(arg) < 2 || arg[0] != '-' {
			words = append(words, arg)
			continue
		}
		flags = append(flags, arg)
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !takesValue[name] || hasValue {
			continue
		}
		if i++; i == len(args) {
			return flags, words, false
		}
		flags = append(flags, args[i])
	}
	return flags, words, true
}

// commandWords is how many of the words name a command and its subcommand.
func commandWords(commands []*cli.Command, words []string) int {
	if len(words) == 0 {
		return 0
	}
	for _, c := range commands {
		if c.HasName(words[0]) {
			return 1 + commandWords(c.Subcommands, words[1:])
		}
	}
	return 0
}
