package etc

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// Lines of systemd's /etc/clonetab (clonetab(5), from systemd 261 on) as definitions. Fields are,
// in this order: name, source, destination, metadata and, comma-separated, options.

const DefaultClonetab = "/etc/clonetab"

// TabLine is one clone of a clonetab.
type TabLine struct {
	Name, Source, Dest, Metadata string
	RegionSize                   int64 // bytes
}

// ParseClonetab reads all lines, or none.
func ParseClonetab(b []byte) ([]TabLine, error) {
	var all []TabLine
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

func parseTabLine(fields []string) (TabLine, error) {
	if len(fields) != 4 && len(fields) != 5 {
		return TabLine{}, fmt.Errorf("%d fields; name, source, destination, metadata and perhaps options are needed", len(fields))
	}
	t := TabLine{Name: fields[0], Source: fields[1], Dest: fields[2], Metadata: fields[3], RegionSize: 8 * 512}
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
			t.RegionSize = n * 512
		case "region-size": // from 262 on
			t.RegionSize, err = text.ParseSize(value)
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
func (t *TabLine) check(others []TabLine) error {
	if err := definition.CheckName(t.Name); err != nil {
		return errors.Unwrap(err)
	}
	for _, o := range others {
		if o.Name == t.Name {
			return fmt.Errorf("the name %s occurs twice", t.Name)
		}
	}
	for _, path := range []string{t.Source, t.Dest, t.Metadata} {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%s: the path must be absolute", path)
		}
	}
	if !definition.RegionSizePossible(t.RegionSize) {
		return fmt.Errorf("a region of %d bytes: it must be a power of two from 4 KiB to 1 GiB", t.RegionSize)
	}
	return nil
}

// Definition is the line as a file in /etc/ublk-clone.
func (t *TabLine) Definition(from string) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Imported from %s.\n", from)
	err := toml.NewEncoder(&b).Encode(struct {
		Source     string `toml:"source"`
		Dest       string `toml:"dest"`
		Metadata   string `toml:"metadata"`
		RegionSize string `toml:"region-size"`
	}{t.Source, t.Dest, t.Metadata, text.ExactSize(t.RegionSize)})
	return b.Bytes(), err
}
