package process

import (
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// OtherThreads is how many threads may run Go code beside those of the loops: the committer, the
// control socket.
const OtherThreads = 2

// GiveProcessors lets every loop wait in the kernel without giving up its place in Go's scheduler
// (uring.Ring.Enter). With no more places than CPUs, the hydrator that waited for the source kept
// the only one for up to 20 ms, and the queue waited with a write that had long ended: on one CPU
// that was the p99 of writes during hydration, 60 times what it is without.
//
// Nor are there more, however many CPUs the machine has: for each the runtime keeps memory, and a
// thread or two. With 64 instead of 4 a process that did little took 2.6 MiB and 15 threads more.
func GiveProcessors(queues int) {
	runtime.GOMAXPROCS(queues + HydratorThreads + OtherThreads)
}

// Threads that a clone has for itself: they are locked, and end with their goroutines.
const (
	HydratorThreads = 1
	ControlThreads  = 1
)

// WarmThreads has so many threads made, which Go keeps for whoever locks one next. A process that
// cannot have them ends here, while the daemon that is to be replaced serves.
func WarmThreads(n int) {
	var ready, all sync.WaitGroup
	ready.Add(n)
	for range n {
		all.Go(func() {
			defer guard.Guard("thread", guard.Fatal)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			ready.Wait() // each has one of its own
		})
	}
	all.Wait()
}

// garbage is how much the collector lets pile up where little lives, and reserve the memory that
// there is for it, in bytes. A runtime that is told to collect sooner does not (sweepMinHeapDistance,
// runtime/mgcpacer.go, go 1.26). The collector works beside others, who go on allocating: on an
// emulated CPU more than a garbage, and then the heap grew, by page faults of the queue's thread
// (TestNoPageFaults; with a reserve of one garbage by eight, once in three runs).
const (
	garbage = 1 << 20
	reserve = 2 * garbage
)

// reserveBlock is the size of the pieces that the reserve is touched in: the size of the largest
// objects that share a span. Small ones fill the holes between what lives.
const reserveBlock = 32 << 10

// addresses is how much of the heap is mapped at the start, in bytes. What is mapped when all memory
// is locked is in memory at once, 4 MiB at a time: one daemon in two had so much more.
const addresses = 8 << 20

// SmallHeap keeps the heap small while the daemon starts, and maps what it will need of it. Nobody
// touches that: the runtime knows that new memory is zero.
func SmallHeap() {
	runtime.KeepAlive(make([]byte, addresses))
	debug.SetGCPercent(mostGarbage)
}

// mostGarbage is the most that is garbage, in percent of what lives; 1 MiB is always allowed.
const mostGarbage = 25

// ReserveHeap has the heap as large as it becomes between two collections in memory, while there is
// no harm in it, and no more. Go's own setting doubles what lives, but lets at least 4 MiB pile up.
// What lives is less than 1 MiB for a small clone and 8 MiB for one of 16 TiB, most of it without a
// pointer: the collector comes sooner, at little cost.
//
//  1. give back what the start has used and does not need any more: the runtime maps 4 MiB at a
//     time, 8 MiB or 12 MiB by now
//  2. touch what follows what lives, which is what the runtime takes first: the lowest address
//  3. collect, so that the collector has touched what it needs for a heap of that size
//  4. collect once more: the reserve would count as what lives, and would not be there for the next
//     garbage
func ReserveHeap() {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetGCPercent(int(min(mostGarbage, 100*garbage/m.HeapAlloc)))
	blocks := make([][]byte, reserve/reserveBlock)
	for i := range blocks {
		blocks[i] = make([]byte, reserveBlock)
		for at := 0; at < reserveBlock; at += 4096 {
			blocks[i][at] = 1
		}
	}
	runtime.GC() // with so much in use: the collector has a bit for each object, and takes that memory now
	runtime.KeepAlive(blocks)
	blocks = nil
	runtime.GC()
}
