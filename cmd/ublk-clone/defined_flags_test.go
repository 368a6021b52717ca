package main

import (
	"maps"
	"slices"
	"testing"

	"github.com/urfave/cli/v2"
)

// TestDefinedKeys: what a definition may say is what the flags of add say, but for those of one start only.
func TestDefinedKeys(t *testing.T) {
	want := map[string]bool{networkKey: true}
	for _, f := range new(program).addCommand().Flags {
		name := f.Names()[0]
		if !slices.Contains(onlyFlags, name) {
			_, want[name] = f.(*cli.BoolFlag)
		}
	}
	if !maps.Equal(definedKeys, want) {
		t.Errorf("keys %v, flags %v", definedKeys, want)
	}
}
