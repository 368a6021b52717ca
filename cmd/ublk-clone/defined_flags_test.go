package main

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
)

// TestDefinedKeys: what a definition may say is what the flags of add say, but for those of one
// start only.
func TestDefinedKeys(t *testing.T) {
	want := map[string]bool{etc.NetworkKey: true}
	for _, f := range addCommand(nil).Flags {
		name := f.Names()[0]
		if !slices.Contains(onlyFlags, name) {
			_, want[name] = f.(*cli.BoolFlag)
		}
	}
	if !maps.Equal(etc.Keys, want) {
		t.Errorf("keys %v, flags %v", etc.Keys, want)
	}
}

// TestSettingsHaveFlags: each key of `set` is a flag of add, and in the document's table of
// settings.
func TestSettingsHaveFlags(t *testing.T) {
	document, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	flags := map[string]bool{}
	for _, f := range addCommand(nil).Flags {
		for _, name := range f.Names() {
			flags[name] = true
		}
	}
	for _, k := range definition.Keys {
		if !flags[k.Name] && !flags[k.Alias] && !flags["no-"+k.Name] {
			t.Errorf("add has no flag for the setting %s", k.Name)
		}
		if !strings.Contains(string(document), "\n| `"+k.Name+"` |") {
			t.Errorf("docs/operations.md does not say what %s is", k.Name)
		}
	}
}
