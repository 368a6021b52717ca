package etc

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Definitions in /etc/ublk-clone: NAME.toml holds what `add NAME` is to be told, so that a service
// starts the clone at every boot. Its keys are the long flags of add; so one parser reads both, and
// both have the same errors.

const (
	DefaultDefinedDir = "/etc/ublk-clone"
	Suffix            = ".toml"
)

// definedDirEnv names another directory than the default, for tests.
const definedDirEnv = "UBLK_CLONE_ETC_DIR"

// Dir is the directory of these definitions.
type Dir string

func DefaultDir() Dir {
	return Dir(cmp.Or(os.Getenv(definedDirEnv), DefaultDefinedDir))
}

func (d Dir) Path(name string) string { return filepath.Join(string(d), name+Suffix) }

// Names lists the clones that are defined, in order.
func (d Dir) Names() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &exit.Error{Code: exit.Other, Doing: "list definitions in", Object: string(d), Cause: err}
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), Suffix); ok && definition.IsName(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// NetworkKey is the one key that is no flag of add: the clone needs the network, so it comes up
// after that, and before file systems that need it too.
const NetworkKey = "network"

// PathKeys are paths, or "" where the table has them.
var PathKeys = []string{"source", "dest", "metadata"}

// Values is one definition: values by key, as add's flags would have them.
type Values map[string]string

// Load reads a definition; nil if there is none.
func (d Dir) Load(name string) (Values, error) {
	path := d.Path(name)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = trusted(path)
	}
	if err != nil {
		return nil, InFile(path, err)
	}
	var values map[string]any
	if err := toml.Unmarshal(b, &values); err != nil {
		return nil, InFile(path, err)
	}
	def := Values{}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if def[key], err = valueOf(key, values[key]); err != nil {
			return nil, InFile(path, fmt.Errorf("%s: %w", key, err))
		}
		if slices.Contains(PathKeys, key) && !filepath.IsAbs(def[key]) {
			return nil, InFile(path, fmt.Errorf("%s = %q: the path must be absolute", key, def[key]))
		}
	}
	return def, nil
}

// trusted fails for a file that others than root, and who runs this, may write: it says which
// device is overwritten.
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

// valueOf is the value as the flag of that name takes it. A switch is true or false and nothing
// else: "yes" would be no, and a number for a switch is a mistake.
func valueOf(key string, v any) (string, error) {
	isSwitch, known := Keys[key]
	_, isBool := v.(bool)
	switch v := v.(type) {
	case string, bool, int64:
		if known && isBool != isSwitch {
			break
		}
		return fmt.Sprint(v), nil
	}
	if isSwitch {
		return "", fmt.Errorf("it must be true or false, without quotes, not %v", quotedValue(v))
	}
	return "", fmt.Errorf("it must be a string or a number, not %v", quotedValue(v))
}

// quotedValue is the value as a definition would have it.
func quotedValue(v any) any {
	if s, ok := v.(string); ok {
		return strconv.Quote(s)
	}
	return v
}

// Keys are the keys that a definition may have, the long flags of add and the generator's, and
// which of them are switches. TestDefinedKeys compares them with the flags.
var Keys = map[string]bool{
	"source": false, "dest": false, "metadata": false, "region-size": false, "table": false,
	"no-hydration": true, "hydration-threshold": false, "hydration-batch-size": false, "rate": false, "min-rate": false,
	"retries": false, "source-timeout": false, "read-through": false, "direct": false, "finish": false, "no-discard-passdown": true,
	"queues": false, "queue-depth": false, "zero-copy": false, "detect-zeroes": false, "dm": false, "source-shared": true,
	NetworkKey: true,
}

func InFile(path string, err error) error {
	e := &exit.Error{Code: exit.Usage, Doing: "read definition", Object: path, Cause: err,
		Next: "Its keys are the flags of `ublk-clone add`, a line each: key = \"value\"."}
	if errors.Is(err, fs.ErrPermission) {
		e.Code, e.Next = exit.Denied, "Run it as root."
	}
	return e
}

// FinishedSuffix is of a definition whose clone has been finished.
const FinishedSuffix = ".finished"

// Retire takes the definition of a clone that is about to be finished away, durably: at the next
// boot its unit would clone the source over a destination that stands alone by then. It comes
// before anything that a boot would need to know that all is hydrated is removed, so that no power
// cut finds the definition and not the metadata. back undoes it where the clone goes on.
func (d Dir) Retire(name string) (back func() error, err error) {
	path := d.Path(name)
	retired := path + FinishedSuffix
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

// Finished says that the clone of that name was finished, and that the user has not removed what
// says so.
func (d Dir) Finished(name string) bool {
	_, err := os.Stat(d.Path(name) + FinishedSuffix)
	return err == nil
}

// Retired fails unless no boot will find the definition: it is gone, and durably so. Without the
// directory there never was one.
func (d Dir) Retired(name string) error {
	if _, err := os.Stat(d.Path(name)); err == nil {
		return fmt.Errorf("the definition %s is still there", d.Path(name))
	}
	err := file.FlushDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
