package definition

import (
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

func TestLayerNames(t *testing.T) {
	for name, right := range map[string]bool{
		"": true, "data": true, "vg-data_1.x:y": true, strings.Repeat("x", 127): true,
		".": false, "..": false, "control": false, "a/b": false, "a b": false, "ä": false, strings.Repeat("x", 128): false,
	} {
		def := Definition{DM: name}
		if err := def.checkLayer(); (err == nil) != right || err != nil && exit.Code(err) != exit.Usage {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestFinishAutoNeedsLayer: without a layer nobody could be led to the destination.
func TestFinishAutoNeedsLayer(t *testing.T) {
	for _, auto := range []bool{false, true} {
		for _, dm := range []string{"", "x"} {
			d := Definition{Name: "c", Source: "/a", Dest: "/b", Metadata: "/c", Queues: 1, QueueDepth: 1, DM: dm, Settings: Change{FinishAuto: &auto}}
			if err := d.Check(); (err != nil) != (auto && dm == "") {
				t.Errorf("finish %s with layer %q: %v", FormatFinish(auto), dm, err)
			}
		}
	}
}
