// Package hydrate decides which regions are hydrated in the background, when, and how many at once.
// It moves no data: a clone.Lane of its own does (clone.Lane.Hydrate), and users' requests come
// first.
//
// # What is next
//
//	cursor ----->                         runs of regions in state Source, at most a batch each; in
//	|--H--|--S--|--Z--|--S--|--H--|       state Zero or in a hole of the source, at most zeroSpan bytes
//	                                      each; holes are asked for when the cursor comes to them.
//
// A batch that fails is split: its regions are tried one by one, never two at a time (I11). A
// region that fails alone is bad: it is left out and tried again after a back-off that doubles, at
// most Settings.Retries times; then it waits for Resume. When too many fail in a row, or one with
// an error that says so (clone.Away, clone.Full), the source is taken to be away as a whole, or the
// destination to be full, and one region probes it at the pace of the same back-off. So an error
// never makes it spin (I12).
//
// # States
//
//	Paused     switched off, or threshold 0
//	Hydrating  copies are in flight, or about to be
//	Yielding   users' requests are in flight, or a reader's was just now: as much at a time as makes users'
//	           reads of the source take not much longer than alone, one small batch to begin with; more
//	           where that is less than Settings.MinRate (I12)
//	Stalled    what is left has failed as often as is tried, or the source is away; a write of all of it,
//	           a probe that succeeds or Resume goes on
//	Done       every region is hydrated in the live map (clone.Core.Complete tells of the durable one)
//
// # Back-off
//
// What hydration costs users is measured, not guessed: the core counts how long their reads of the
// source take (clone.Waits), in short pauses alone and otherwise with hydration beside them. While
// they are hardly slower there is a little more of it each time; when they are much slower it is
// halved, down to a region at a time. yield.go has the rules and the figures. Settings.MinRate is
// kept also where it costs users more, Settings.Rate where it would cost them nothing.
//
// # Parts, threads and locks
//
//	Hydrator   Pump, and what becomes of a batch that has ended
//	search     which regions are next (next.go), with what has failed (bad.go)
//	quota      how much at once: rates (pace.go), what users leave (yield.go), what the source takes
//	flight     the batches in flight
//	board      what other threads set and ask
//
// Pump runs on the lane's thread, once a round of its loop, and never blocks; all parts but the
// board belong to that thread. Configure, Resume and Status may be called from any thread: they
// meet Pump at the board, Hydrator.shared, whose lock is a leaf.
package hydrate
