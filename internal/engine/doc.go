// Package engine is the clone itself: it has its devices opened (package devices), loads the region
// map, makes core, hydrator and block device, and takes all of it down again. Package daemon runs
// it by its steps.
//
// It has these parts. Each knows those below it and is given what else it needs; Engine makes them
// and runs their steps.
//
//	Engine       engine.go udev.go       the steps, in order
//	 reports     status.go               how the clone is
//	 handover    finish.go               its users go on with the destination
//	 drain       leave.go                all comes to rest, for the next daemon
//	 caution     caution.go              after deaths in a row
//	 session     session.go repair.go    what is written to the metadata while the clone is served
//	             record.go
//	 directPath  direct.go               which extents the layer leads straight to the destination
//	 lanes       lanes.go memory.go      core, hydrator and queues, their buffers and their room for marks
//	             marks.go
//	 blockDevice device.go               the driver's side
//	 liveMap     live.go standin.go      the region map's memory, and what a dead daemon has left in it
//	 Devices     package devices         source, destination, metadata and settings
//
// dryRun (dry_run.go) has devices, block device and live map of its own, and no Engine.
//
// Threads: steps run on the daemon's goroutine. The committer, the watcher, the sampler and the
// sample of the destination have one each, and queues and hydrator have their threads (package
// dataplane). Control requests come on any goroutine.
//
// Locks: caution.mu guards whether the live map is about to be closed, and directPath.mu is held
// while the layer gets another table. What else several goroutines change is in packages clone,
// committer and devices; other fields are set by the steps and not changed afterwards.
//
// Invariants: I6 (session and live map), I9 (memory is taken in advance), I10 (modes), I11 (going
// on without metadata), I12 (complete), I13 (nobody gives up what works before the next one is
// known to work), I17 (which zeros are not written).
package engine
