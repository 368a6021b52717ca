// Package devices opens the three devices of a clone, locks them, and sees that they belong
// together; it takes a source back that has gone away. It has all of a clone that needs neither
// core nor driver, which is enough to make metadata, and for a dry run.
//
//	devices.go    the steps, and what concerns all three: geometry, superblock, whether they belong together
//	fence.go      a recovery waits for the last requests of the dead daemon
//	metadata.go   MetadataSide: the file, the store in it, and what stands in for it
//	source.go     SourceSide: opened, missed, taken back
//	dest.go       DestSide: opened, and what is recorded of it
//	settings.go   Settings: those in force, which the metadata keeps
//	shared.go     Shared: what the clone was started with, how it is to end, and where its parts tell what happens
//
// Threads: the steps run on the daemon's goroutine. Each part says what other goroutines may ask.
//
// Locks: Settings.mu, MetadataSide.mu and SourceSide.mu guard what stands with them.
// SourceSide.reopening is held while the source is looked for; a resume waits a second for it,
// everybody else gives up at once.
//
// Invariants: I7 (fence), I10 (modes), I11 (going on without source or metadata), I15 (limits for a
// source that does not answer).
package devices
