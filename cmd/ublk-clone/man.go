//go:build man

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// The man pages, at build time only (scripts/package): `go run -tags man ./cmd/ublk-clone TEMPLATE
// DATE` fills one of packaging/man with what the program says of itself, so that both say the same.

func init() {
	if err := writeMan(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func writeMan(out io.Writer, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: TEMPLATE DATE")
	}
	date, err := time.Parse(time.DateOnly, args[1])
	if err != nil {
		return err
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	page, err := template.New("page").Parse(string(text))
	if err != nil {
		return err
	}
	app := newApp(&program{})
	return page.Execute(out, map[string]string{
		"Date": date.Format("January 2, 2006"), "Version": roff(versionText()),
		"Commands": manCommands(app.Commands, app.Name), "Exits": manExits(), "Keys": manKeys(app.Commands),
	})
}

// roff makes text harmless: no line of it is a request, no dash becomes a hyphen.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", "", "^", `\(ha`, "~", `\(ti`).Replace(text)
	return strings.ReplaceAll("\n"+text, "\n.", "\n\\&.")[1:]
}

// manCommands describes commands in order, subcommands as commands.
func manCommands(commands []*cli.Command, before string) string {
	var b strings.Builder
	for _, c := range commands {
		switch {
		case c.Hidden:
		case len(c.Subcommands) > 0:
			b.WriteString(manCommands(c.Subcommands, before+" "+c.Name))
		default:
			manCommand(&b, c, before+" "+c.Name)
		}
	}
	return b.String()
}

func manCommand(b *strings.Builder, c *cli.Command, name string) {
	fmt.Fprintf(b, ".SS \"%s\"\n.SY \"%s\"\n", roff(strings.TrimPrefix(name, "ublk-clone ")), roff(name))
	if c.ArgsUsage != "" {
		fmt.Fprintf(b, "%s\n", roff(c.ArgsUsage))
	}
	if len(c.Flags) > 0 {
		b.WriteString("[options]\n")
	}
	b.WriteString(".YS\n.PP\n")
	fmt.Fprintf(b, "%s.\n", roff(sentence(c.Usage)))
	if len(c.Aliases) > 0 {
		fmt.Fprintf(b, "Also: %s.\n", roff(strings.Join(c.Aliases, ", ")))
	}
	if c.Description != "" {
		fmt.Fprintf(b, ".PP\n%s\n", roffParagraphs(sentence(c.Description)))
	}
	for _, f := range c.Flags {
		manFlag(b, f)
	}
}

// roffParagraphs keeps the paragraphs of a description.
func roffParagraphs(text string) string { return strings.ReplaceAll(roff(text), "\n\n", "\n.PP\n") }

func sentence(text string) string { return strings.ToUpper(text[:1]) + text[1:] }

func manFlag(b *strings.Builder, f cli.Flag) {
	doc, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return
	}
	var names []string
	for _, n := range f.Names() {
		dashes := "--"
		if len(n) == 1 {
			dashes = "-"
		}
		names = append(names, `\fB`+roff(dashes+n)+`\fR`)
	}
	placeholder, text := described(doc)
	if placeholder != "" {
		placeholder = ` \fI` + roff(placeholder) + `\fR`
	}
	if doc.TakesValue() && doc.GetValue() != "" && !strings.Contains(text, "default") {
		text += " (default: " + doc.GetValue() + ")"
	}
	fmt.Fprintf(b, ".TP\n%s%s\n%s.\n", strings.Join(names, ", "), placeholder, roff(sentence(text)))
}

// described is what a flag takes, "" for nothing, and what it is.
func described(doc cli.DocGenerationFlag) (placeholder, text string) {
	placeholder, text = placeholderOf(doc.GetUsage())
	if !doc.TakesValue() {
		placeholder = ""
	}
	return placeholder, strings.TrimPrefix(text, placeholder+": ")
}

func manExits() string {
	var b strings.Builder
	for _, m := range exit.Meaning {
		fmt.Fprintf(&b, ".TP\n.B %d\n%s.\n", m.Code, roff(sentence(m.Text)))
	}
	return b.String()
}

// manKeys are the flags of add that a definition may have.
func manKeys(commands []*cli.Command) string {
	var b strings.Builder
	add := commands[slices.IndexFunc(commands, func(c *cli.Command) bool { return c.Name == addName })]
	for _, f := range add.Flags {
		doc, ok := f.(cli.DocGenerationFlag)
		if !ok || slices.Contains(onlyFlags, f.Names()[0]) {
			continue
		}
		value := "true"
		placeholder, text := described(doc)
		if _, isInt := f.(*cli.IntFlag); isInt {
			value = `\fI` + roff(placeholder) + `\fR`
		} else if doc.TakesValue() {
			value = `"\fI` + roff(placeholder) + `\fR"`
		}
		fmt.Fprintf(&b, ".TP\n\\fB%s\\fR = %s\n%s.\n", roff(f.Names()[0]), value, roff(sentence(text)))
	}
	return b.String()
}
