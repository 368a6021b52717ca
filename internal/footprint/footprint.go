package footprint

import (
	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// Need is what a daemon takes, in bytes. All of Start is there and locked before the first request.
type Need struct {
	Start int64 `json:"start"`
	// Most is the end of it: copies and requests use all buffers that there may be, every page of
	// the region map has marks, and none is hydrated throughout.
	Most int64 `json:"most"`
}

// What a daemon takes beside buffers and map, in bytes: TestDryRunFigures measures it.
const (
	programMemory = 19 << 20 // code, heap, the runtime's own
	queueMemory   = 1 << 20  // a further queue's rings and stacks
	pageMemory    = 285      // tables of a page of the region map
)

// NeedOf is the need of a clone of this many regions, which docs/requirements.md tells too. copied:
// the driver copies the bytes of requests.
func NeedOf(def *definition.Definition, nrRegions uint64, copied bool) Need {
	each, queues := QueueBuffers(def.RegionSize), int64(def.Queues)
	pages := bitmap.PagesFor(nrRegions)
	fixed := programMemory + (queues-1)*queueMemory + int64(pages)*pageMemory
	if copied {
		fixed += queues * int64(def.QueueDepth) * MaxIO
	}
	own := queues*int64(each.Own) + int64(HydratorBuffers.Own)
	most := queues*int64(each.Most) + int64(HydratorBuffers.Most)
	return Need{
		Start: fixed + own*BufferBytes + int64(min(pages, FirstPages)+2*min(pages, MarkPages))*bitmap.PageBytes,
		Most:  fixed + most*BufferBytes + int64(pages+2*min(pages, MostMarkPages))*bitmap.PageBytes,
	}
}

// UsualNeed is the need of a small clone with the settings that nobody has changed.
func UsualNeed() int64 {
	def := definition.Definition{RegionSize: definition.DefaultRegionSize, Queues: definition.DefaultQueues, QueueDepth: definition.DefaultQueueDepth}
	return NeedOf(&def, metadata.NrRegions(1<<30, definition.DefaultRegionSize), false).Start
}
