// Package identity tells whether a source or a destination is the same as before.
//
//	source.go   what the superblock keeps of the source, and how an open source differs from it
//	dest.go     the checks of the destination, in order: instance, known blocks, what else tells
//	sample.go   the goroutine that keeps checksums of some blocks of the destination up to date
//
// Invariants: I14 (the past is not the present) and I15: the sample has a goroutine of its own, so
// that no commit and no status waits for a destination that does not answer. DestSample.mu is a
// leaf lock.
package identity
