package main

import (
	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// memoryNeed is what a daemon takes, in bytes. All of Start is there and locked before the first request.
type memoryNeed struct {
	Start int64 `json:"start"`
	// Most is the end of it: every page of the region map has marks and none is hydrated throughout.
	Most int64 `json:"most"`
}

// What a daemon takes beside buffers and map, in bytes: TestDryRunFigures measures it.
const (
	programMemory = 28 << 20 // code, heap, the runtime's own
	queueMemory   = 1 << 20  // a further queue's rings and stacks
	pageMemory    = 285      // tables of a page of the region map
)

// needOf is the need of a clone of this many regions, which the README tells too. copied: the driver copies the bytes of
// requests.
func needOf(def *definition, nrRegions uint64, copied bool) memoryNeed {
	n, size := queueBuffers(def.RegionSize, def.QueueDepth)
	queue := int64(n) * size
	if copied {
		queue += int64(def.QueueDepth) * maxIO
	}
	pages := bitmap.PagesFor(nrRegions)
	fixed := programMemory + hydratorBuffers*defaultBatchBytes + int64(def.Queues)*queue + int64(def.Queues-1)*queueMemory +
		int64(pages)*pageMemory
	return memoryNeed{Start: fixed + int64(min(pages, settledPages))*bitmap.PageBytes, Most: fixed + int64(pages)*bitmap.PageBytes}
}

// usualNeed is the need of a small clone with the settings that nobody has changed.
func usualNeed() int64 {
	def := definition{RegionSize: defaultRegionSize, Queues: defaultQueues, QueueDepth: defaultQueueDepth}
	return needOf(&def, metadata.NrRegions(1<<30, defaultRegionSize), false).Start
}
