package footprint

// MaxIO is the most bytes of a READ or WRITE.
const MaxIO = 512 << 10

// HydratorBuffers is the most background copies in flight.
const HydratorBuffers = 16

// queueBufferBytes is the most memory for copy buffers of a queue.
const queueBufferBytes = 16 << 20

// QueueBuffers: a copy buffer of a queue holds a region and what a small request adds to it at
// either side, as long as that is within reason, and any READ, for read-through; there are no more
// of them than can be used at a time.
func QueueBuffers(regionSize int64, depth int) (n int, size int64) {
	size = min(max(2*regionSize, MaxIO), 1<<20)
	return min(depth, int(queueBufferBytes/size)), size
}

// SettledPages is how many pages of the region map have memory from the start: 8 MiB, which is the
// map of 126 GiB in regions of 4 KiB, or 2 TiB in regions of 64 KiB. Others take it when they are
// first marked.
const SettledPages = 2048
