package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// onlyFlags cannot be in a definition: they are for one start, and not for every boot. One that
// forces would overwrite a destination without a question.
var onlyFlags = []string{"create", "open", "force", "foreground", "wait", "output", "dry-run"}

// takeDefined sets the flags that the definition of the clone names, for an add that has none of
// its own that say what the clone is made of. Flags of the command line go first. It gives the
// definition's path, "" if there is none.
func takeDefined(defined etc.Dir, c *cli.Context) (path string, err error) {
	for _, flag := range append([]string{"table"}, etc.PathKeys...) {
		if c.IsSet(flag) {
			return "", nil
		}
	}
	name, err := named(c)
	if err != nil {
		return "", err
	}
	path = defined.Path(name)
	def, err := defined.Load(name)
	if err != nil {
		return path, err
	}
	if def == nil {
		return "", definition.UsageError("--source is missing, and there is no definition " + path)
	}
	if err := setFlags(c, def); err != nil {
		return path, etc.InFile(path, err)
	}
	return path, nil
}

// checkDefined says whether add takes the definition, without looking at any device.
func checkDefined(defined etc.Dir, name string) error {
	add := addCommand(func(c *cli.Context) error {
		path, err := takeDefined(defined, c)
		if err == nil {
			_, err = startFrom(c)
		}
		return inDefinition(path, err)
	})
	quiet := func(*cli.Context, error) {}
	app := &cli.App{Commands: []*cli.Command{add}, Writer: io.Discard, ErrWriter: io.Discard, ExitErrHandler: quiet}
	return app.Run([]string{"ublk-clone", add.Name, "--", name})
}

// setFlags sets the flags of add that the command line has not.
func setFlags(c *cli.Context, def etc.Values) error {
	for _, key := range slices.Sorted(maps.Keys(def)) {
		if err := setDefined(c, key, def[key]); err != nil {
			return err
		}
	}
	return nil
}

func setDefined(c *cli.Context, key, value string) error {
	_, known := etc.Keys[key]
	switch {
	case !known:
		return fmt.Errorf("unknown key %q", key)
	case key == etc.NetworkKey:
		return nil // the generator's
	case c.IsSet(key):
		return nil
	}
	if err := c.Set(key, value); err != nil {
		return fmt.Errorf("%s = %q: %w", key, value, err)
	}
	return nil
}

// inDefinition gives an error of the command line to the definition that the flags come from, ""
// for none.
func inDefinition(path string, err error) error {
	var e *exit.Error
	if path == "" || !errors.As(err, &e) || e.Code != exit.Usage || e.Object == path {
		return err
	}
	return etc.InFile(path, e.Cause)
}
