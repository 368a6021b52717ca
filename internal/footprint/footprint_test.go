package footprint

import (
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// TestMemoryNeed: the figures that docs/requirements.md tells.
func TestMemoryNeed(t *testing.T) {
	def := definition.Definition{RegionSize: 4096, Queues: 1, QueueDepth: 64}
	near := func(what string, got, want int64) {
		t.Helper()
		if got < want*95/100 || got > want*105/100 {
			t.Errorf("%s: %s, docs/requirements.md says %s", what, text.Size(got), text.Size(want))
		}
	}
	small := uint64(1<<30) / 4096
	near("a clone", NeedOf(&def, small, false).Start, 23<<20)
	near("a clone at most", NeedOf(&def, small, false).Most, 51<<20)
	near("copied", NeedOf(&def, small, true).Start, (23+32)<<20)
	near("16 TiB", NeedOf(&def, 1<<32, false).Start, 104<<20)
	near("16 TiB at most", NeedOf(&def, 1<<32, false).Most, 1229<<20)
	def.Queues = 2
	near("two queues", NeedOf(&def, small, false).Start, (23+4)<<20)
}
