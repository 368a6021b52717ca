package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// metadataTool has the commands for metadata that no daemon has open.
type metadataTool struct{ out io.Writer }

// create does what the start of a daemon does up to the metadata, and closes everything again.
func (t metadataTool) create(c *cli.Context) error {
	args, err := words(c, 1, 1)
	if err != nil {
		return err
	}
	def := definition.Definition{Name: "metadata", SourceShared: c.Bool("source-shared"), Queues: definition.DefaultQueues, QueueDepth: definition.DefaultQueueDepth}
	if err := settingFlags(c, &def.Settings); err != nil {
		return err
	}
	if err := takeParts(&def, c); err != nil { // but for the metadata, which has no flag here
		return err
	}
	def.Metadata = args[0]
	if err := def.Check(); err != nil {
		return err
	}
	return devices.CreateMetadata(c.Context, definition.Start{Definition: def, Create: true, Force: c.Bool("force")})
}

// openMetadata opens metadata to read it, and gives the form in which the command prints.
func openMetadata(c *cli.Context) (m *blockdev.MetadataFile, output string, err error) {
	args, output, err := wordsForm(c, 1, 1, "json")
	if err != nil {
		return nil, "", err
	}
	dev, err := blockdev.Open(blockdev.Metadata, args[0], blockdev.Options{ReadOnly: true})
	if err != nil {
		return nil, "", err
	}
	if m, err = blockdev.NewMetadataFile(dev); err != nil {
		return nil, "", errors.Join(err, dev.Close())
	}
	return m, output, nil
}

func (t metadataTool) check(c *cli.Context) error {
	m, output, err := openMetadata(c)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }() // it was only read
	r, err := metadata.Check(m)
	if err != nil {
		return explain.Metadata("check", m.Path(), err)
	}
	if output != "" {
		err = encodeJSON(t.out, r)
	} else {
		err = printCheck(t.out, &r)
	}
	if err == nil && len(r.Problems) > 0 {
		err = problems(m.Path(), &r)
	}
	return err
}

// problems is the error of metadata in which something is wrong, also what the next start repairs.
func problems(path string, r *metadata.CheckReport) error {
	e := &exit.Error{Code: exit.Metadata, Doing: "check the metadata", Object: path,
		Cause: fmt.Errorf("%s, the first: %s", text.Plural(int64(len(r.Problems)), "problem"), r.Problems[0].What),
		Next:  "The metadata can be used: the next `ublk-clone add` repairs this."}
	if !r.OK() {
		e.Cause = fmt.Errorf("%w: %w", metadata.ErrDamaged, e.Cause)
		e.Next = "The metadata cannot be used. Check the path; nothing else says what is hydrated."
	}
	return e
}

func printCheck(out io.Writer, r *metadata.CheckReport) error {
	for _, problem := range r.Problems {
		kind := "warning"
		if problem.Fatal {
			kind = "error"
		}
		if _, err := fmt.Fprintf(out, "%s at byte %d: %s\n", kind, problem.Offset, problem.What); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "%d of %d regions hydrated, %d zero; %d of %d pages used; %s\n", r.Hydrated, r.Superblock.NrRegions, r.Zero,
		r.PagesUsed, r.Pages, text.Plural(int64(len(r.Problems)), "problem"))
	return err
}

func (t metadataTool) dump(c *cli.Context) error {
	m, output, err := openMetadata(c)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }() // it was only read
	dump := metadata.Dump
	if output != "" {
		dump = metadata.DumpJSON
	}
	if err := dump(m, t.out); err != nil {
		return explain.Metadata("dump", m.Path(), err)
	}
	r, err := metadata.Check(m)
	if err != nil {
		return explain.Metadata("dump", m.Path(), err)
	}
	if !r.OK() { // what could be read was printed
		return problems(m.Path(), &r)
	}
	return nil
}
