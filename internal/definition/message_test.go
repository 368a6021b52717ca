package definition

import (
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

func TestParseMessage(t *testing.T) {
	for in, want := range map[string]Message{
		"enable_hydration":         {EnableHydration, 0},
		"0 enable_hydration":       {EnableHydration, 0},
		"DISABLE_hydration":        {DisableHydration, 0},
		"hydration_threshold 0":    {HydrationThreshold, 0},
		"hydration_threshold 256":  {HydrationThreshold, 256},
		"0 hydration_batch_size 8": {HydrationBatchSize, 8},
	} {
		if got, err := ParseMessage(strings.Fields(in)); err != nil || got != want {
			t.Errorf("parseMessage(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "0", "0 0", "1 enable_hydration", "enable", "enable_hydration 1", "hydration_threshold", "hydration_threshold x",
		"hydration_threshold -1", "hydration_threshold 1 2", "hydration_threshold 4294967296", "hydration_batch_size 0",
	} {
		_, err := ParseMessage(strings.Fields(in))
		if exit.Code(err) != exit.Usage || !strings.Contains(exit.Next(err), MessageList) {
			t.Errorf("parseMessage(%q): %v, next %q", in, err, exit.Next(err))
		}
	}
}
