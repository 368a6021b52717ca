// Package clonetest is a simulator: the real core with its lanes, the hydrator, the committer and
// the metadata, over fake disks, single-threaded and decided by a seed alone.
//
// # Method
//
// A scheduler picks one event at a time, at random with weights that the seed draws:
//
//	submit     a client sends a request to a lane
//	execute    a piece of a queued backend I/O takes effect on its fake disk; the last one may fail
//	end        an I/O that has taken effect is reported to its lane; so effect and report are apart
//	answer     a request that the core has ended is answered; so the daemon can die between the two
//	round      a lane that was woken, or had completions, drains its inbox; the hydrator's lane pumps
//	commit     the committer goes on to its next blocking call: it is a coroutine, and each sector run
//	           that it writes and each issue and end of a flush is an event of its own
//	repair     in mode ro somebody says that the metadata is repaired, whether it is or not: the committer
//	           opens it again, commits the whole map and records the mode; death and power loss come in between
//	clock      time goes on to the hydrator's next timer
//	power      all of it dies; each sector that was not flushed keeps any version; a new core opens, mostly with
//	           --force, else in the mode that the superblock has
//	death      the daemon dies (I6): each queued I/O takes effect not at all, in part or whole, and then
//	           no more (the fence, I7); disks keep their caches, the live map its memory, mode and lost
//	           flush; a new core takes them over, and what was not answered is asked again, of any lane
//	restart    the daemon stops in order: all is answered and committed, the clean flag set; also in mode ro, unless
//	           there is something that it cannot commit
//	open       as the engine does it: the superblock says whether a session begins or goes on, and is written in
//	           either case; in some seeds a death or a power loss cuts it short, after a death writes and flushes fail
//
// # Faults
//
// Reads, writes, zeroings and flushes of all three disks fail with probabilities that are zero in
// some seeds, and memory for the live map runs out; some sectors of the source are bad
// until the end. A failed write has taken effect in part. Reads of the source that touch may fail
// together, as the kernel makes one of them. After a death the metadata cannot be read, in some
// seeds: the live map stands in for it (I11). A failed flush, or durable write, has lost what it
// should have made durable, and no later one brings it back. An error names its sector, and a
// request may fail only with an error at a sector that it needs (I11).
//
// Left out: a daemon that dies between the failure of a flush of the destination, or of the
// superblock, and the moment when it learns of it. The error dies with the daemon; no other daemon
// can know what was lost.
//
// # What must hold
//
//   - Per sector, what is read is what some order of the overlapping operations allows, and what is
//     found after power loss is durable or newer, after the daemon's death acknowledged or newer
//     (oracle).
//   - A repair succeeds unless an error was injected into it, or a flush of the destination was
//     lost.
//   - Hydrated sectors that a WRITE_ZEROES with NOUNMAP covers are not zeroed in a way that may
//     give up their space.
//   - A death changes no region's state, and the mode no better.
//   - Neither a death nor a power loss makes less count as durable, or a complete clone incomplete,
//     in any mode, unless the next daemon cannot use the metadata. Nor does the superblock call a
//     clone complete that is not.
//   - A flush of the destination is alone: no other, and no durable write, is in flight with it.
//   - When nothing is left to happen, every request has been answered.
//   - Once errors stop, hydration completes, and the destination alone equals the model, also when
//     the power goes at that moment.
//   - The source, and the destination behind the device's end, are as they were.
//
// Written sectors carry their number and the operation that wrote them, so a wrong byte names where
// it comes from. A failure is printed twice: in short with the seed that has shown it, and as the
// smallest configuration found that fails too (shrink.go), with the operations and events that
// touched the first wrong sector. Either can be replayed:
//
//	go test ./clone/clonetest -run 'TestSim$' -seed N
//	go test ./clone/clonetest -run 'TestSim$' -config '{...}'
//
// # Not at random
//
// Beside seeds there are small cases in which everything is tried (exhaustive.go): three operations
// on three regions, a power loss after every event with every choice of what survives of the
// unflushed sectors, the daemon's death before every event; and a script of 60 operations whose
// n-th piece of backend I/O fails, once and for good, for every n.
package clonetest
