// Package clone is the core of ublk-clone: it routes requests to the source or the destination,
// hydrates regions on demand and in the background, and commits the region map. It does no I/O of
// its own and knows no kernel interface: a Lane is handed requests and completions, and hands out
// reads, writes and zeroings to its Backend. The same code runs under the ublk driver and under a
// seeded simulator (package clonetest) with disks that lose what was not flushed.
//
// # Region states
//
// A region is in one of three states, kept as two planes of bits, each bit only ever set (package
// bitmap). Z is free: nothing has been written to the destination yet.
//
//	            DISCARD, WRITE_ZEROES,
//	            hole of the source
//	S (source) -----------------------> Z (zero)
//	   |                                   |
//	   | copy, whole-region write,         | zeros written in the background,
//	   | partial write (read + merge)      | whole or partial write
//	   v                                   v
//	H (hydrated, final) <-------------------
//
// H is final. A DISCARD or WRITE_ZEROES of H writes zeros in place.
//
// # Claims
//
// Whatever marks a region holds a claim of it from its look at the map to the mark (I3); a region
// has at most one. A request that meets somebody else's claim waits in that claim's list, holding
// nothing, and starts again from the top. READs and WRITEs of hydrated regions need no claim and no
// lock. Background copies read first and claim for their write only, so nobody waits for a read
// that no user asked for (I8).
//
//	free --claimFor, claimBackground--> claimed --settle: mark, wake--> free
//
// # Threads and locks
//
// A Lane belongs to one thread: Submit, EndIO, Drain and Hydrate run there and never block. The
// parts of a Lane are listed at its type. Lanes share the Core:
//
//	view       the region map, by bytes of the device: read with atomic loads by anybody
//	switches   settings, read the same way
//	lanes      all of them, for sums of what they count
//	mapMemory  takes and gives back the memory of the map's pages, under a lock of its own, a leaf
//	guarded    what is under Core.mu: claims, marks since the last commit, the mode, flushes and waiters
//	commit     one commit or repair, as it writes
//
// Core.mu is held for a few map operations, never across an I/O or a callback. A lane's inbox has a
// lock of its own, a leaf, which may be taken under Core.mu. Commit runs on the committer's
// goroutine and may block.
//
// # Invariants kept here
//
//	I1   Backend has no way to write the source
//	I2   read.go routes by the map at the time; H is final and the source does not change
//	I3   claim.go: one writer; only settle marks
//	I4   commit.go: the five steps
//	I5   flush.go, users.answer, changes.writeThrough
//	I8   hydration.go
//	I9   memory.go; pools of marks.active and frozen, operations and buffers of a Lane: fixed, waited for
//	I10  health: setMode only makes it worse, Repair ends it; flushLost
//	I11  readRunDone, mergeReadDone, again.go
//	I12  Core.Complete is told from the durable plane
//	I17  spare.go
package clone
