package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestFlagsFirst(t *testing.T) {
	app := newApp(&program{})
	for _, c := range []struct{ in, want string }{
		{"p", "p"},
		{"p list", "p list"},
		{"p add NAME --source a --dest b", "p add --source a --dest b -- NAME"},
		{"p add --source a NAME --dest=b --force", "p add --source a --dest=b --force -- NAME"},
		{"p --force add NAME", "p add --force -- NAME"},
		{"p -o json status NAME", "p status -o json -- NAME"},
		{"p status -o", "p status -o"},
		{"p metadata dump FILE -o json", "p metadata dump -o json -- FILE"},
		{"p metadata FILE", "p metadata -- FILE"},
		{"p message NAME 0 enable_hydration", "p message -- NAME 0 enable_hydration"},
		{"p message NAME -- --force", "p message -- NAME --force"},
		{"p status -- -o json", "p status -- -o json"},
		{"p status -", "p status -- -"},
		{"p add --unknown x NAME", "p add --unknown -- x NAME"},
		{"p nonsense --force x", "p --force -- nonsense x"},
		{"p add NAME --source", "p add --source"},
		{"p add --source --dest NAME", "p add --source --dest -- NAME"},
	} {
		got := strings.Join(flagsFirst(app, strings.Fields(c.in)), " ")
		if got != c.want {
			t.Errorf("flagsFirst(%q)\n got %q\nwant %q", c.in, got, c.want)
		}
	}
}

// TestMissingValue: an empty variable of a script does not make a flag the value of another.
func TestMissingValue(t *testing.T) {
	app := newApp(&program{})
	for _, c := range []struct{ in, says string }{
		{"p add NAME --metadata --no-hydration", "--metadata has no value: --no-hydration follows it"},
		{"p add NAME --source a --dest --metadata m", "--dest has no value"},
		{"p add --rate -o json NAME", "--rate has no value: -o follows"},
		{"p add --dest -- NAME", "--dest has no value"},
		{"p add NAME --metadata=--no-hydration", ""},
		{"p add NAME --source a --no-hydration --dest b", ""},
		{"p message NAME -- --source --dest", ""},
		{"p add NAME --source -", ""},
		{"p add NAME --source --strange", ""},
	} {
		err := missingValue(app, strings.Fields(c.in))
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%q: %v, expected %q", c.in, err, c.says)
		}
	}
}

// A flag that takes a value in one command and none in another would be read
// wrongly in front of its command.
func TestFlagsMeanTheSameEverywhere(t *testing.T) {
	seen := map[string]bool{}
	var walk func(path string, flags []cli.Flag, commands []*cli.Command)
	walk = func(path string, flags []cli.Flag, commands []*cli.Command) {
		for _, f := range flags {
			_, isBool := f.(*cli.BoolFlag)
			for _, name := range f.Names() {
				if before, ok := seen[name]; ok && before != isBool {
					t.Errorf("%s: --%s is a switch here and takes a value elsewhere, or the reverse", path, name)
				}
				seen[name] = isBool
			}
		}
		for _, c := range commands {
			walk(path+" "+c.Name, c.Flags, c.Subcommands)
		}
	}
	app := newApp(&program{})
	walk("", app.Flags, app.Commands)
	if len(seen) < 10 || !slices.Contains(app.VisibleCommands(), app.Command("add")) {
		t.Errorf("%d flags found", len(seen))
	}
}
