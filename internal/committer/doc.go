// Package committer runs the goroutine that commits the region map and writes the superblock:
// nobody else touches the metadata while a clone is up. It may block; whoever needs something of it
// waits with a context.
package committer
