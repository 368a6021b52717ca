package footprint

import "github.com/ublk-clone/ublk-clone/internal/definition"

// MaxIO is the most bytes of a READ or WRITE.
const MaxIO = 512 << 10

// BufferBytes is the size of a copy buffer: the largest background copy, any READ, for
// read-through, and a region with what a small request adds to it at either side.
const BufferBytes = definition.DefaultBatchBytes

// cutRegion is the largest region of which two fit a piece of a buffer that is cut.
const cutRegion = 64 << 10

// Buffers is how many copy buffers a queue or the hydrator has: its own from the start, and the most
// that it takes while it needs them. A clone that was idle had 32 MiB of them, and hydrating on a
// disk of depth 1 it uses one.
type Buffers struct {
	Own, Most int
	// Cut: one of its own is cut into pieces, of which two regions fit one.
	Cut bool
}

// QueueBuffers are those of a queue: one to be cut for small requests, one for others, and one for
// what a READ has got from the source, which leaves one to users.
func QueueBuffers(regionSize int64) Buffers {
	return Buffers{Own: 3, Most: 16, Cut: regionSize <= cutRegion}
}

// HydratorBuffers is the most background copies in flight, and one, with which hydration moves
// also where there is no more memory.
var HydratorBuffers = Buffers{Own: 1, Most: 16}

// FirstPages is how many pages of the region map have memory from the start: 8 MiB, which is the
// map of 126 GiB in regions of 4 KiB, or 2 TiB in regions of 64 KiB. Others take it when they are
// first marked.
const FirstPages = 2048

// For how many pages of the region map there is memory for marks that are not committed yet, in two
// sets that take marks in turn: from the start, and at most. At 64 KiB regions the former is all of
// the map up to 126 GiB.
const (
	MarkPages     = 128
	MostMarkPages = 4096
)
