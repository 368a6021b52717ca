package footprint

import (
	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// Need is what a daemon takes, in bytes. All of Start is there and locked before the first request.
type Need struct {
	Start int64 `json:"start"`
	// Most is the end of it: every page of the region map has marks and none is hydrated
	// throughout.
	Most int64 `json:"most"`
}

// What a daemon takes beside buffers and map, in bytes: TestDryRunFigures measures it.
const (
	programMemory = 28 << 20 // code, heap, the runtime's own
	queueMemory   = 1 << 20  // a further queue's rings and stacks
	pageMemory    = 285      // tables of a page of the region map
)

// NeedOf is the need of a clone of this many regions, which docs/requirements.md tells too. copied:
// the driver copies the bytes of requests.
func NeedOf(def *definition.Definition, nrRegions uint64, copied bool) Need {
	n, size := QueueBuffers(def.RegionSize, def.QueueDepth)
	queue := int64(n) * size
	if copied {
		queue += int64(def.QueueDepth) * MaxIO
	}
	pages := bitmap.PagesFor(nrRegions)
	fixed := programMemory + HydratorBuffers*definition.DefaultBatchBytes + int64(def.Queues)*queue + int64(def.Queues-1)*queueMemory +
		int64(pages)*pageMemory
	return Need{Start: fixed + int64(min(pages, SettledPages))*bitmap.PageBytes, Most: fixed + int64(pages)*bitmap.PageBytes}
}

// UsualNeed is the need of a small clone with the settings that nobody has changed.
func UsualNeed() int64 {
	def := definition.Definition{RegionSize: definition.DefaultRegionSize, Queues: definition.DefaultQueues, QueueDepth: definition.DefaultQueueDepth}
	return NeedOf(&def, metadata.NrRegions(1<<30, definition.DefaultRegionSize), false).Start
}
