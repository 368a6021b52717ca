package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
)

// Completion for shells: their scripts (packaging/completions) run `ublk-clone complete --
// WORDS...`, with the words up to the one that is being typed, and get what that may be, a line
// each: the word, a tab, what it is. The library's own completion ends at the first word that is no
// flag, and so at NAME.

const (
	suggestCommand = "complete"
	// anyFile in place of words: any file.
	anyFile = ":files"
)

// candidate is a word that may come next.
type candidate struct{ word, usage string }

// suggester has the hidden command for shells.
type suggester struct{ *program }

// run never fails: a shell has no use for an error there.
func (s suggester) run(c *cli.Context) error {
	words := slices.DeleteFunc(c.Args().Slice(), func(w string) bool { return w == "=" }) // bash takes --a=b apart
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	// A new one: while an app runs, its help is a command of itself.
	for _, found := range s.candidates(newApp(s.program), words[:len(words)-1], last) {
		if found.word == anyFile || strings.HasPrefix(found.word, last) {
			_, _ = fmt.Fprintf(s.out, "%s\t%s\n", found.word, found.usage)
		}
	}
	return nil
}

// candidates are those for a word after others; its beginning tells whether it is a flag.
func (s suggester) candidates(app *cli.App, before []string, last string) []candidate {
	takesValue := map[string]bool{}
	flagsOf(takesValue, app.Flags, app.Commands)
	_, words, whole := split(takesValue, before)
	command, words := findCommand(app.Commands, words)
	switch {
	case command == nil && len(words) > 0: // none that is known
		return nil
	case command == nil:
		return commandCandidates(app.Commands)
	case !whole:
		return valueCandidates(command.Flags, strings.TrimLeft(before[len(before)-1], "-"))
	case strings.HasPrefix(last, "-"):
		return flagCandidates(command.Flags)
	case len(command.Subcommands) > 0:
		return commandCandidates(command.Subcommands)
	}
	return s.wordCandidates(command, len(words))
}

// findCommand finds the command, or subcommand, that the words name, and gives the words after it.
func findCommand(commands []*cli.Command, words []string) (found *cli.Command, rest []string) {
	for len(words) > 0 {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return !c.Hidden && c.HasName(words[0]) })
		if i < 0 {
			return found, words
		}
		found, words = commands[i], words[1:]
		commands = found.Subcommands
	}
	return found, words
}

func commandCandidates(commands []*cli.Command) (list []candidate) {
	for _, c := range commands {
		if !c.Hidden {
			list = append(list, candidate{c.Name, c.Usage})
		}
	}
	return list
}

func flagCandidates(flags []cli.Flag) (list []candidate) {
	for _, f := range flags {
		if doc, ok := f.(cli.DocGenerationFlag); ok && f.Names()[0] != "help" {
			list = append(list, candidate{"--" + f.Names()[0], strings.ReplaceAll(doc.GetUsage(), "`", "")})
		}
	}
	return list
}

// valueCandidates are the values of a flag, which its description names.
func valueCandidates(flags []cli.Flag, name string) []candidate {
	i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		return nil
	}
	doc, ok := flags[i].(cli.DocGenerationFlag)
	if !ok {
		return nil
	}
	placeholder, text := placeholderOf(doc.GetUsage())
	switch {
	case strings.Contains(placeholder, "FILE"):
		return []candidate{{anyFile, ""}}
	case strings.Contains(placeholder, "|"):
		return wordList(strings.Split(placeholder, "|"))
	}
	if _, values, ok := strings.Cut(text, placeholder+": "); ok { // "print `FORM`: json, dm", "`STATE`: ready or hydrated"
		return wordList(strings.FieldsFunc(strings.ReplaceAll(values, " or ", ","), func(r rune) bool { return r == ',' || r == ' ' }))
	}
	return nil
}

// placeholderOf takes the word in backquotes out of a description, and gives the description
// without them.
func placeholderOf(usage string) (placeholder, text string) {
	_, rest, _ := strings.Cut(usage, "`")
	placeholder, _, _ = strings.Cut(rest, "`")
	return placeholder, strings.ReplaceAll(usage, "`", "")
}

func wordList(words []string) (list []candidate) {
	for _, w := range words {
		if !strings.HasPrefix(w, "(") {
			list = append(list, candidate{word: w})
		}
	}
	return list
}

// wordCandidates are those of a command's word n, as its usage names them.
func (s suggester) wordCandidates(command *cli.Command, n int) (list []candidate) {
	takes := strings.Fields(strings.Trim(command.ArgsUsage, "[]"))
	switch {
	case n < len(takes) && strings.Contains(takes[n], "FILE"):
		return []candidate{{anyFile, ""}}
	case n < len(takes) && takes[n] == "NAME":
		return nameCandidates(s.dir, s.defined, command.Name == addName)
	case n == 1 && command.Name == "message":
		return wordList([]string{definition.EnableHydration, definition.DisableHydration, definition.HydrationThreshold, definition.HydrationBatchSize})
	case n >= 1 && command.Name == "set":
		for _, k := range definition.Keys {
			list = append(list, candidate{k.Name + "=", k.Takes})
		}
	}
	return list
}

const addName = "add"

// nameCandidates are the clones that run; for add those that are defined.
func nameCandidates(dir control.Dir, defined etc.Dir, forAdd bool) (list []candidate) {
	names, err := dir.Names()
	usage := "clone"
	if forAdd {
		names, err = defined.Names()
		usage = "defined in " + string(defined)
	}
	if err != nil {
		return nil
	}
	for _, name := range names {
		list = append(list, candidate{name, usage})
	}
	return list
}
