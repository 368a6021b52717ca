// Package livemap keeps the region map where it outlives the process that marks it, and not the machine: in a
// file on a tmpfs of its own, mapped shared (I6). A mark is in it before the write that made it is answered, so
// that the next daemon knows of every acknowledged write, flushed or not.
//
// # The file
//
// One a clone, named by the UUID of its metadata. It is sparse; page n of the region map (package bitmap) lies
// behind the header:
//
//	0                        64       4096            4096 + 4096 n
//	+--------------------------+--------+------ ... ------+----------+----
//	| identity, checksum       | state  |                 |  page n  |
//	+--------------------------+--------+------ ... ------+----------+----
//
// The identity says whose marks these are: UUID, the boot, the session, the number of regions. It is written
// before the file gets its name and never changed. The state changes while the clone runs, each word of it by
// one atomic store: the sequence of the last commit, the mode, and whether a flush of the destination failed.
//
// # Who believes it
//
// The file counts while the metadata say that their session of this boot has not ended (no clean mark):
//
//	metadata clean, or of another boot       the file is of no use: Create replaces it
//	the same session, commits not older      the file's marks count, durable or not
//	another session, or metadata older       neither can be believed: refused (Open says which)
//	no file                                  marks may be lost: the caller decides
//
// # Memory
//
// The tmpfs is mounted noswap: a daemon that waits for its own map to be swapped in from a device that it
// serves would wait for ever. A page is taken by Touch while the request that needs it can still fail; a write
// to memory that cannot be had would be a signal. sys.GiveBack releases one.
//
// # Threads
//
// State is set from any thread; everything else is the caller's to order.
package livemap
