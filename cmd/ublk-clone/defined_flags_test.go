package main

import (
	"maps"
	"slices"
	"testing"

	"github.com/urfave/cli/v2"

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
