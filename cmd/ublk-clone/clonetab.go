package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
)

// Lines of systemd's /etc/clonetab (clonetab(5), from systemd 261 on) as definitions. Fields are, in this order: name,
// source, destination, metadata and, comma-separated, options.

const defaultClonetab = "/etc/clonetab"

// tabLine is one clone of a clonetab.
type tabLine struct {
	name, source, dest, metadata string
	regionSize                   int64 // bytes
}

// parseClonetab reads all lines, or none.
func parseClonetab(b []byte) ([]tabLine, error) {
	var all []tabLine
	nr := 0
	for line := range strings.Lines(string(b)) {
		nr++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		t, err := parseTabLine(strings.Fields(line))
		if err == nil {
			err = t.check(all)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", nr, err)
		}
		all = append(all, t)
	}
	return all, nil
}

func parseTabLine(fields []string) (tabLine, error) {
	if len(fields) != 4 && len(fields) != 5 {
		return tabLine{}, fmt.Errorf("%d fields; name, source, destination, metadata and perhaps options are needed", len(fields))
	}
	t := tabLine{name: fields[0], source: fields[1], dest: fields[2], metadata: fields[3], regionSize: 8 * 512}
	if len(fields) == 4 || fields[4] == "-" {
		return t, nil
	}
	for option := range strings.SplitSeq(fields[4], ",") {
		key, value, _ := strings.Cut(option, "=")
		var err error
		switch key {
		case "region_size": // of systemd 261: sectors
			var n int64
			n, err = strconv.ParseInt(value, 10, 32)
			t.regionSize = n * 512
		case "region-size": // from 262 on
			t.regionSize, err = parseSize(value)
		default:
			err = errors.New("this option is not known")
		}
		if err != nil {
			return t, fmt.Errorf("%s: %w", option, err)
		}
	}
	return t, nil
}

// check refuses what add would refuse without looking at a device, and a name that is there twice.
func (t *tabLine) check(others []tabLine) error {
	if err := checkName(t.name); err != nil {
		return errors.Unwrap(err)
	}
	for _, o := range others {
		if o.name == t.name {
			return fmt.Errorf("the name %s is there twice", t.name)
		}
	}
	for _, path := range []string{t.source, t.dest, t.metadata} {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%s: an absolute path is needed", path)
		}
	}
	if !regionSizePossible(t.regionSize) {
		return fmt.Errorf("a region of %d bytes: a power of two from 4 KiB to 1 GiB is needed", t.regionSize)
	}
	return nil
}

// definition is the line as a file in /etc/ublk-clone.
func (t *tabLine) definition(from string) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Imported from %s.\n", from)
	err := toml.NewEncoder(&b).Encode(struct {
		Source     string `toml:"source"`
		Dest       string `toml:"dest"`
		Metadata   string `toml:"metadata"`
		RegionSize string `toml:"region-size"`
	}{t.source, t.dest, t.metadata, exactSize(t.regionSize)})
	return b.Bytes(), err
}

// importClonetab is the command. A clone that is defined already stays as it is; one of the same name that is defined
// otherwise is an error, found before anything is written.
func (p *program) importClonetab(c *cli.Context) error {
	args, err := words(c, 0, 1)
	if err != nil {
		return err
	}
	from := cmp.Or(append(args, defaultClonetab)[0], defaultClonetab)
	b, err := os.ReadFile(from)
	var lines []tabLine
	if err == nil {
		lines, err = parseClonetab(b)
	}
	if err != nil {
		return &exit.Error{Code: exit.Usage, Doing: "import", Object: from, Cause: err,
			Next: "A line is: NAME SOURCE DESTINATION METADATA [region-size=BYTES]. Nothing was imported."}
	}
	texts := make([][]byte, len(lines))
	for i, t := range lines {
		if texts[i], err = t.definition(from); err != nil {
			return err
		}
		if err := p.importable(&t, texts[i], from); err != nil {
			return err
		}
	}
	for i, t := range lines {
		if err := p.define(t.name, texts[i]); err != nil {
			return err
		}
	}
	return nil
}

// importable refuses a line whose clone is defined otherwise, or was finished: a boot must not clone the source over a
// destination that stands alone.
func (p *program) importable(t *tabLine, text []byte, from string) error {
	path := p.defined.path(t.name)
	there, err := os.ReadFile(path)
	switch {
	case err == nil && !bytes.Equal(there, text):
		return &exit.Error{Code: exit.Exists, Doing: "import clone", Object: t.name,
			Cause: fmt.Errorf("%s is there and says otherwise", path), Next: "Remove or rename one of them. Nothing was imported."}
	case err != nil && p.defined.finished(t.name):
		return &exit.Error{Code: exit.Refused, Doing: "import clone", Object: t.name,
			Cause: fmt.Errorf("the clone was finished, as %s says: the next boot would copy %s over %s", path+finishedSuffix, t.source, t.dest),
			Next:  "Remove the line from " + from + ". If the destination is to be overwritten, remove " + path + finishedSuffix + ". Nothing was imported."}
	}
	return nil
}

// define writes a definition, whole or not at all, and prints its path.
func (p *program) define(name string, text []byte) error {
	path := p.defined.path(name)
	err := file.MakeFolder(string(p.defined), 0o755)
	if err == nil {
		err = file.Replace(path, text, 0o644)
	}
	if errors.Is(err, fs.ErrPermission) {
		return &exit.Error{Code: exit.Denied, Doing: "write definition", Object: path, Cause: err, Next: "Run it as root."}
	}
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "write definition", Object: path, Cause: err}
	}
	_, err = fmt.Fprintln(p.out, path)
	return err
}
