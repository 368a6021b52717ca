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
func GiveProcessors(queues int) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), queues+HydratorThreads+OtherThreads))
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
// there is for it, in bytes. The collector works beside others, who go on allocating: on an
// emulated CPU more than a garbage, and then the heap grew, by 1024 page faults of the queue's
// thread (TestNoPageFaults).
const (
	garbage = 2 << 20
	reserve = 2 * garbage
)

// ReserveHeap makes the heap as large as it becomes between two collections, while there is no harm
// in it. Go's own setting doubles what lives, but lets at least 4 MiB pile up. What lives is 1 MiB
// for a small clone and 33 MiB for one of 16 TiB, most of it without a pointer: the collector comes
// sooner, at little cost.
func ReserveHeap() {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetGCPercent(int(min(50, 100*garbage/m.HeapAlloc)))
	runtime.KeepAlive(make([]byte, reserve))
}
