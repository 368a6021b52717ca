package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Definitions in /etc/ublk-clone: NAME.toml holds what `add NAME` is to be told, so that a service starts the clone at
// every boot. Its keys are the long flags of add; so one parser reads both, and both have the same errors.

const (
	defaultDefinedDir = "/etc/ublk-clone"
	definedSuffix     = ".toml"
)

// definedDirEnv names another folder than the default, for tests.
const definedDirEnv = "UBLK_CLONE_ETC_DIR"

// definedDir is the folder of these definitions.
type definedDir string

func theDefinedDir() definedDir {
	return definedDir(cmp.Or(os.Getenv(definedDirEnv), defaultDefinedDir))
}

func (d definedDir) path(name string) string { return filepath.Join(string(d), name+definedSuffix) }

// names lists the clones that are defined, in order.
func (d definedDir) names() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &exit.Error{Code: exit.Other, Doing: "list definitions in", Object: string(d), Cause: err}
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), definedSuffix); ok && isName(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// networkKey is the one key that is no flag of add: the clone needs the network, so it comes up after that, and before
// file systems that need it too.
const networkKey = "network"

// onlyFlags cannot be in a definition: they are for one start, and not for every boot. One that forces would overwrite
// a destination without a question.
var onlyFlags = []string{"create", "open", "force", "foreground", "wait", "output", "dry-run"}

// pathKeys are paths, or "" where the table has them.
var pathKeys = []string{"source", "dest", "metadata"}

// defined is one definition: values by key, as add's flags would have them.
type defined map[string]string

// load reads a definition; nil if there is none.
func (d definedDir) load(name string) (defined, error) {
	path := d.path(name)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = trusted(path)
	}
	if err != nil {
		return nil, definedError(path, err)
	}
	var values map[string]any
	if err := toml.Unmarshal(b, &values); err != nil {
		return nil, definedError(path, err)
	}
	def := defined{}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if def[key], err = definedValue(key, values[key]); err != nil {
			return nil, definedError(path, fmt.Errorf("%s: %w", key, err))
		}
		if slices.Contains(pathKeys, key) && !filepath.IsAbs(def[key]) {
			return nil, definedError(path, fmt.Errorf("%s = %q: an absolute path is needed", key, def[key]))
		}
	}
	return def, nil
}

// trusted fails for a file that others than root, and who runs this, may write: it says which device is overwritten.
func trusted(path string) error {
	st, err := sys.StatPath(path)
	if err != nil {
		return err
	}
	if st.UID != 0 && int(st.UID) != os.Geteuid() || st.Mode&0o022 != 0 {
		return errors.New("others than root may write it, and it decides what is overwritten: chown root and chmod go-w")
	}
	return nil
}

// definedValue is the value as the flag of that name takes it. A switch is true or false and nothing else: "yes" would be
// no, and a number for a switch is a mistake.
func definedValue(key string, v any) (string, error) {
	isSwitch, known := definedKeys()[key]
	_, isBool := v.(bool)
	switch v := v.(type) {
	case string, bool, int64:
		if known && isBool != isSwitch {
			break
		}
		return fmt.Sprint(v), nil
	}
	if isSwitch {
		return "", fmt.Errorf("true or false is needed, without quotes, not %v", quotedValue(v))
	}
	return "", fmt.Errorf("a string or a number is needed, not %v", quotedValue(v))
}

// quotedValue is the value as a definition would have it.
func quotedValue(v any) any {
	if s, ok := v.(string); ok {
		return strconv.Quote(s)
	}
	return v
}

// definedKeys are the keys that a definition may have, and which of them are switches: the flags of add, and the
// generator's.
func definedKeys() map[string]bool {
	keys := map[string]bool{networkKey: true}
	for _, f := range new(program).addCommand().Flags {
		name := f.Names()[0]
		if !slices.Contains(onlyFlags, name) {
			_, keys[name] = f.(*cli.BoolFlag)
		}
	}
	return keys
}

func definedError(path string, err error) error {
	e := &exit.Error{Code: exit.Usage, Doing: "read definition", Object: path, Cause: err,
		Next: "Its keys are the flags of `ublk-clone add`, a line each: key = \"value\"."}
	if errors.Is(err, fs.ErrPermission) {
		e.Code, e.Next = exit.Denied, "Run it as root."
	}
	return e
}

// takeDefined sets the flags that the definition of the clone names, for an add that has none of its own that say what
// the clone is made of. Flags of the command line go first. It gives the definition's path, "" if there is none.
func (p *program) takeDefined(c *cli.Context) (path string, err error) {
	for _, flag := range append([]string{"table"}, pathKeys...) {
		if c.IsSet(flag) {
			return "", nil
		}
	}
	name, err := named(c)
	if err != nil {
		return "", err
	}
	if err := checkName(name); err != nil {
		return "", err
	}
	path = p.defined.path(name)
	def, err := p.defined.load(name)
	if err != nil {
		return path, err
	}
	if def == nil {
		return "", usage("--source is missing, and there is no definition " + path)
	}
	if err := def.set(c); err != nil {
		return path, definedError(path, err)
	}
	return path, nil
}

// checkDefined says whether add takes the definition, as far as that can be seen without looking at a device.
func (p *program) checkDefined(name string) error {
	add := p.addCommand()
	add.Action = func(c *cli.Context) error {
		path, err := p.takeDefined(c)
		if err == nil {
			_, err = startFrom(c)
		}
		return blame(path, err)
	}
	quiet := func(*cli.Context, error) {}
	app := &cli.App{Commands: []*cli.Command{add}, Writer: io.Discard, ErrWriter: io.Discard, ExitErrHandler: quiet}
	return app.Run([]string{"ublk-clone", add.Name, "--", name})
}

// set sets the flags of add that the command line has not.
func (d defined) set(c *cli.Context) error {
	for _, key := range slices.Sorted(maps.Keys(d)) {
		if err := setDefined(c, key, d[key]); err != nil {
			return err
		}
	}
	return nil
}

func setDefined(c *cli.Context, key, value string) error {
	_, known := definedKeys()[key]
	switch {
	case !known:
		return fmt.Errorf("unknown key %q", key)
	case key == networkKey:
		return nil // the generator's
	case c.IsSet(key):
		return nil
	}
	if err := c.Set(key, value); err != nil {
		return fmt.Errorf("%s = %q: %w", key, value, err)
	}
	return nil
}

// blame gives an error of the command line to the definition that the flags come from, "" for none.
func blame(path string, err error) error {
	var e *exit.Error
	if path == "" || !errors.As(err, &e) || e.Code != exit.Usage || e.Object == path {
		return err
	}
	return definedError(path, e.Cause)
}

// finishedSuffix is of a definition whose clone has been finished.
const finishedSuffix = ".finished"

// retire takes the definition of a clone that is about to be finished away, durably: at the next boot its unit would clone
// the source over a destination that stands alone by then. It comes before anything that a boot would need to know that all
// is hydrated is removed, so that no power cut finds the definition and not the metadata. back undoes it where the clone goes
// on.
func (p *program) retire(name string) (back func() error, err error) {
	path := p.defined.path(name)
	retired := path + finishedSuffix
	err = file.Rename(path, retired)
	if errors.Is(err, fs.ErrNotExist) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, &exit.Error{Code: exit.Other, Doing: "rename definition", Object: path, Cause: err,
			Next: "It must go before the clone is finished: the next boot would begin anew."}
	}
	return func() error { return file.Rename(retired, path) }, nil
}

// finished says that the clone of that name was finished, and that the user has not removed what says so.
func (d definedDir) finished(name string) bool {
	_, err := os.Stat(d.path(name) + finishedSuffix)
	return err == nil
}

// retired fails unless no boot will find the definition: it is gone, and durably so. Without the folder there never was one.
func (d definedDir) retired(name string) error {
	if _, err := os.Stat(d.path(name)); err == nil {
		return fmt.Errorf("the definition %s is still there", d.path(name))
	}
	err := file.FlushFolder(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
