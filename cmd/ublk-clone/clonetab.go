package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
)

// importer has the command import-clonetab.
type importer struct {
	defined etc.Dir
	out     io.Writer
}

// run is the command. A clone that is defined already stays as it is; one of the same name that is
// defined otherwise is an error, found before anything is written.
func (im importer) run(c *cli.Context) error {
	args, err := words(c, 0, 1)
	if err != nil {
		return err
	}
	from := cmp.Or(append(args, etc.DefaultClonetab)[0], etc.DefaultClonetab)
	b, err := os.ReadFile(from)
	var lines []etc.TabLine
	if err == nil {
		lines, err = etc.ParseClonetab(b)
	}
	if err != nil {
		return &exit.Error{Code: exit.Usage, Doing: "import", Object: from, Cause: err,
			Next: "A line is: NAME SOURCE DESTINATION METADATA [region-size=BYTES]. Nothing was imported."}
	}
	texts := make([][]byte, len(lines))
	for i, t := range lines {
		if texts[i], err = t.Definition(from); err != nil {
			return err
		}
		if err := importable(im.defined, &t, texts[i], from); err != nil {
			return err
		}
	}
	for i, t := range lines {
		if err := im.define(t.Name, texts[i]); err != nil {
			return err
		}
	}
	return nil
}

// importable refuses a line whose clone is defined otherwise, or was finished: a boot must not
// clone the source over a destination that stands alone.
func importable(defined etc.Dir, t *etc.TabLine, text []byte, from string) error {
	path := defined.Path(t.Name)
	there, err := os.ReadFile(path)
	switch {
	case err == nil && !bytes.Equal(there, text):
		return &exit.Error{Code: exit.Exists, Doing: "import clone", Object: t.Name,
			Cause: fmt.Errorf("%s exists and defines it differently", path), Next: "Remove or rename one of them. Nothing was imported."}
	case err != nil && defined.Finished(t.Name):
		return &exit.Error{Code: exit.Refused, Doing: "import clone", Object: t.Name,
			Cause: fmt.Errorf("the clone was finished, as %s says: the next boot would copy %s over %s", path+etc.FinishedSuffix, t.Source, t.Dest),
			Next:  "Remove the line from " + from + ". If the destination is to be overwritten, remove " + path + etc.FinishedSuffix + ". Nothing was imported."}
	}
	return nil
}

// define writes a definition, whole or not at all, and prints its path.
func (im importer) define(name string, text []byte) error {
	path := im.defined.Path(name)
	err := file.MakeDir(string(im.defined), 0o755)
	if err == nil {
		err = file.Replace(path, text, 0o644)
	}
	if errors.Is(err, fs.ErrPermission) {
		return &exit.Error{Code: exit.Denied, Doing: "write definition", Object: path, Cause: err, Next: "Run it as root."}
	}
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "write definition", Object: path, Cause: err}
	}
	_, err = fmt.Fprintln(im.out, path)
	return err
}
