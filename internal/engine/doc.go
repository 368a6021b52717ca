// Package engine is the clone itself: it opens source, destination and metadata, loads the region map, makes core,
// hydrator and block device, and takes all of it down again. Package daemon runs it by its steps.
//
//	devices     devices.go metadata.go source.go dest.go   open, lock and match the three devices
//	            fence.go settings.go
//	session     session.go live.go standin.go use.go       superblock, live map, marks of a dead daemon
//	            repair.go                                  metadata that failed and came back
//	memory      memory.go                                  buffers, and what is locked
//	data path   engine.go lanes.go caution.go              core, lanes, block device
//	ends        finish.go leave.go recover.go              hand over, leave to the next daemon, take over
//	reports     status.go udev.go dry_run.go               what others are told
//
// Threads: steps run on the daemon's goroutine. The committer, the watcher, the sampler and the sample of the
// destination have one each, and queues and hydrator have their threads (package dataplane). Control requests come on
// any goroutine.
//
// Locks: Engine.mu guards the settings, the print of a source that came back, why the live map stands in for the
// metadata, and whether the live map is about to be closed. It is held for a change and for telling core and hydrator
// of it. Engine.reopening is held while the source is looked for; a resume waits a second for it, everybody else gives
// up at once.
//
// Invariants: I6 (session and live map), I7 (fence), I9 (memory is taken in advance; no device lies on the clone), I10
// (modes), I11 (going on without source or metadata), I12 (complete), I13 (nobody gives up what works before the next
// one is known to work), I15 (limits for a source that does not answer), I17 (which zeros are not written).
package engine
