package main

import (
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

func TestParseMessage(t *testing.T) {
	for in, want := range map[string]message{
		"enable_hydration":         {enableHydration, 0},
		"0 enable_hydration":       {enableHydration, 0},
		"DISABLE_hydration":        {disableHydration, 0},
		"hydration_threshold 0":    {hydrationThreshold, 0},
		"hydration_threshold 256":  {hydrationThreshold, 256},
		"0 hydration_batch_size 8": {hydrationBatchSize, 8},
	} {
		if got, err := parseMessage(strings.Fields(in)); err != nil || got != want {
			t.Errorf("parseMessage(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "0", "0 0", "1 enable_hydration", "enable", "enable_hydration 1", "hydration_threshold", "hydration_threshold x",
		"hydration_threshold -1", "hydration_threshold 1 2", "hydration_threshold 4294967296", "hydration_batch_size 0",
	} {
		_, err := parseMessage(strings.Fields(in))
		if exit.Code(err) != exit.Usage || !strings.Contains(exit.Next(err), messageList) {
			t.Errorf("parseMessage(%q): %v, next %q", in, err, exit.Next(err))
		}
	}
}
