// Package livemap keeps the region map where it outlives the process that marks it, and not the
// machine: in a file on a tmpfs of its own, mapped shared (I6). A mark is in it before the write
// that made it is answered, so that the next daemon knows of every acknowledged write, flushed or
// not.
//
// # The file
//
// One a clone, named by the UUID of its metadata. It is sparse; page n of the region map (package
// bitmap) lies behind the header, whose memory is there from the beginning:
//
//	0                  64     4096           12288               h         h + 4096 n
//	+--------------------+-------+--------------+-------------------+-- ... --+----------+----
//	| identity, checksum | state | superblock,  | full: a bit a     |         |  page n  |
//	|                    |       | 2 copies     | page, whole KiB x4|         |          |
//	+--------------------+-------+--------------+-------------------+-- ... --+----------+----
//
// Each part of it is a type that lies over its memory: fixed; words, trouble and place in the
// state's block; copies; bits. A Map is made of them, and of the file.
//
// The identity says whose marks these are: UUID, the boot, the session, the number of regions. It
// is written before the file gets its name and never changed. The state changes while the clone
// runs, each word of it by one atomic store: the sequence of the last commit, the mode, whether a
// flush of the destination failed, whether all that the metadata holds has been loaded, which copy
// of the superblock counts, the number of the last event, how far the session has come (Life), and
// the path of the metadata.
//
// # Without the metadata
//
// A map that was loaded is the whole truth, and enough to go on read-only when the metadata cannot
// be read (I11): whatever the metadata holds was in it before the first request, and every mark
// since. A page whose bit in full is set has every region durably hydrated; the bit is set before
// its memory is given back, or instead of taking any. The copy of the superblock has what else a
// daemon must know. It is written to two places in turn, so that a death leaves one of them whole.
//
// Beside it lies a file of bits for pages that are zero throughout and have no memory (zeros.go).
//
// # Who believes it
//
// The file counts while the metadata says that its session of this boot has not ended (no clean
// flag):
//
//	metadata clean, or of another boot       the file is of no use: Create replaces it
//	the same session, commits not older      the file's marks count, durable or not
//	another session, or metadata older       neither can be believed: refused (Open says which)
//	no file                                  marks may be lost: the caller decides
//
// # Who removes it
//
// A daemon at the end of its session. One that was killed leaves its map to the next, which the
// metadata asks for. If no clone is left, the metadata may have no need of it: Collect removes such
// maps, and goes by Life, the metadata and what its caller knows of clones and devices.
//
// # Memory
//
// The tmpfs is mounted noswap: a daemon that waits for its own map to be swapped in from a device
// that it serves would wait forever. A page is taken by Touch while the request that needs it can
// still fail; a write to memory that cannot be had would be a signal. sys.GiveBack releases one.
//
// # Threads
//
// State is set from any thread; everything else is the caller's to order.
package livemap
