package etc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
)

// The generator (systemd.generator(7)): this program under another name, which systemd runs at boot
// and at each daemon-reload. It adds to the unit of each clone that is defined what only the
// definition knows: the devices and file systems that it needs, and those that come after it.
// Whether the clone is started is not its business: `systemctl enable ublk-clone@NAME` is.
//
// It also writes a rule for udev, by which destinations lose the names that come from their
// contents, before any daemon runs: they carry the same file systems as their clones.

// GeneratorName is what the program is called then: a symbolic link in
// /usr/lib/systemd/system-generators.
const GeneratorName = "ublk-clone-generator"

// DestRules is the file with the rule for destinations; 61-ublk-clone.rules acts on what it sets.
const DestRules = "/run/udev/rules.d/60-ublk-clone-dest.rules"

// Generate is the program as a generator; dirs are those that systemd gives it. A definition that
// cannot be read costs its own clone only: its unit will say what is wrong.
func (d Dir) Generate(dir, rules string) error {
	names, errs := d.Names()
	var lines strings.Builder
	for _, name := range names {
		def, err := d.Load(name)
		if err == nil {
			err = def.expand()
		}
		if err == nil {
			err = writeFile(filepath.Join(dir, unitOf(name)+".d", "50-definition.conf"), def.dropIn(name))
			lines.WriteString(def.destRule(name))
		}
		if err != nil {
			lines.WriteString(d.looseRule(name))
		}
		errs = errors.Join(errs, err)
	}
	if lines.Len() == 0 {
		return errors.Join(errs, file.Discard(rules))
	}
	return errors.Join(errs, writeFile(rules, lines.String()))
}

func writeFile(path, text string) error {
	err := file.MakeDir(filepath.Dir(path), 0o755)
	if err == nil {
		err = file.Replace(path, []byte(text), 0o644)
	}
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "write", Object: path, Cause: err}
	}
	return nil
}

// unitOf is the unit of a clone.
func unitOf(name string) string { return "ublk-clone@" + name + ".service" }

// expand puts the paths of dm-clone's line where the others are.
func (d Values) expand() error {
	line, ok := d["table"]
	if !ok {
		return nil
	}
	t, err := definition.ParseTable(line)
	if err != nil {
		return err
	}
	d["source"], d["dest"], d["metadata"] = t.Source, t.Dest, t.Metadata
	return nil
}

// dropIn is what the definition adds to the unit. Devices are waited for, at most as long as
// systemd waits for any; the start itself says what is missing, and a clone that is complete needs
// no source.
func (d Values) dropIn(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# From %s%s, by %s.\n[Unit]\n", name, Suffix, GeneratorName)
	put := func(key string, values ...string) {
		for _, v := range values {
			fmt.Fprintf(&b, "%s=%s\n", key, v)
		}
	}
	var writable []string
	for _, key := range PathKeys {
		path := d[key]
		if !filepath.IsAbs(path) { // MAJOR:MINOR of a table
			continue
		}
		if strings.HasPrefix(path, "/dev/") {
			device := strings.ReplaceAll(unit.UnitNamePathEscape(path), "%", "%%") + ".device"
			put("Wants", device)
			put("After", device)
			continue
		}
		put("RequiresMountsFor", Quoted(path))
		if key != "source" {
			writable = append(writable, Quoted("-"+filepath.Dir(path)))
		}
	}
	for _, path := range d.devices(name) {
		target := "blockdev@" + unit.UnitNamePathEscape(path) + ".target" // systemd.special(7)
		put("Wants", target)
		put("Before", target)
	}
	if d[NetworkKey] == "true" {
		put("Wants", "network-online.target")
		put("After", "network-online.target", "nss-lookup.target")
		put("Before", "remote-fs.target")
	} else {
		put("Before", "local-fs.target")
	}
	if len(writable) > 0 {
		slices.Sort(writable)
		fmt.Fprintf(&b, "\n[Service]\nReadWritePaths=%s\n%s", strings.Join(slices.Compact(writable), " "), Loosened(writable))
	}
	return b.String()
}

// Loosened takes from the unit's sandbox what makes the very same directory read-only, which else
// wins (systemd.exec(5), ReadWritePaths=).
func Loosened(writable []string) string {
	var lines string
	if slices.ContainsFunc([]string{"/home", "/root", "/run/user"}, func(dir string) bool { return slices.Contains(writable, Quoted("-"+dir)) }) {
		lines += "ProtectHome=no\n"
	}
	if slices.Contains(writable, Quoted("-/")) {
		lines += "ProtectSystem=full\n"
	}
	return lines
}

// Quoted is a path as unit files have it.
func Quoted(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(path) + `"`
}

// devices are the block devices that the clone makes.
func (d Values) devices(name string) []string {
	all := []string{definition.NameDir + "/" + name}
	if dm := d["dm"]; dm != "" {
		all = append(all, "/dev/mapper/"+dm)
	}
	return all
}

// destLine is what a definition that cannot be read may still say.
const destLine = `(?m)^\s*dest\s*=\s*["']([^"'\n]+)["']`

// looseRule is the rule of a definition that cannot be read. Nobody serves its clone, so that the
// destination is to be hidden all the more.
func (d Dir) looseRule(name string) string {
	text, err := os.ReadFile(d.Path(name))
	match := regexp.MustCompile(destLine).FindSubmatch(text)
	if err != nil || match == nil {
		return ""
	}
	return Values{"dest": string(match[1])}.destRule(name)
}

const destMatch = "SUBSYSTEM==\"block\", ACTION!=\"remove\", "

// destRule is the rule by which the destination is known, "" for a file. A name in a directory
// of /dev is a link, which an earlier rule has made.
func (d Values) destRule(name string) string {
	path, ok := strings.CutPrefix(filepath.Clean(d["dest"]), "/dev/")
	if !ok || strings.ContainsAny(path, "\"*?[]|\\\n") {
		return ""
	}
	rule := fmt.Sprintf("==%q, ENV{UBLK_CLONE_DEST}=%q", path, name)
	if !strings.Contains(path, "/") {
		return destMatch + "KERNEL" + rule + "\n"
	}
	return fmt.Sprintf("%sSYMLINK%s, ENV{UBLK_CLONE_LINK}=%q\n", destMatch, rule, path)
}
