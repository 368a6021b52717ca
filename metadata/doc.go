// Package metadata keeps the superblock and the region map of a clone on disk.
//
// # Layout
//
// All of it is little-endian, in blocks of 4 KiB; FORMAT.md has every field.
//
//	byte 0        4K         64K       68K        128K
//	     +---------+----------+---------+----------+--------+--------+--------+--------+--
//	     | super-  |    0     | super-  |    0     | page 0 | page 0 | page 1 | page 1 | ...
//	     | block 0 |          | block 1 |          | slot 0 | slot 1 | slot 0 | slot 1 |
//	     +---------+----------+---------+----------+--------+--------+--------+--------+--
//
// A slot is an image of one page of the region map (package bitmap) behind a header:
//
//	0       8     12    16         24      32      48         64          2080        4096
//	+-------+-----+-----+----------+-------+-------+----------+-----------+-----------+
//	| magic | crc |  0  | sequence | page  | UUID  |    0     | H, 252    | Z, 252    |
//	| 8 B   | u32 |     | u64      | u64   | 16 B  |          | words     | words     |
//	+-------+-----+-----+----------+-------+-------+----------+-----------+-----------+
//
// The checksum is CRC-32C over the whole block with the checksum's own four bytes as zero,
// in slots and superblocks alike. A slot that is all zero is valid and empty: sequence 0,
// no region marked. So creating metadata writes the superblocks only, and 2^32 regions
// take a sparse file of 2 GiB.
//
// # Who wins after a crash
//
//   - Superblock: the valid copy with the higher sequence.
//   - Page: the valid slot with the higher sequence; an empty slot has 0; a bad one loses.
//   - Pages are independent of each other. A bit is only ever set, and each is true by
//     itself because its data was flushed before it was written, so any mix of old and new
//     pages is a correct map and a commit need not be atomic. Only tearing must not cost a
//     page's older bits: hence two slots, in different blocks (a checksum per 512-byte
//     sector would not survive a torn 4 KiB one).
//
// # A commit (I4)
//
//  1. freeze       the core's
//  2. flush        of the destination; the core's
//  3. WritePage    each page of the frozen set, into the slot that is not current
//  4. Flush        now these slots are current
//  5. answer       the core's
//
// Power loss before 4 leaves each page of the commit old, new or torn, and torn means old.
// All slots of a commit carry its sequence, one more than the last one's. A commit in
// which nothing is marked writes nothing.
//
// # The slot that is overwritten
//
// It is never the last one known to be flushed, which "has a lower sequence" does not say:
//
//	slots 10 and 11 of a page, 11 is durable
//	12 is written over 10; the daemon is killed before the flush
//	the next daemon reads 12, from a cache, and would write 13 over 11
//	power loss tears 13; 12 never got to the disk; what is left is 10
//
// So Open flushes the device before anything is written: what it has read is durable by
// then, unless a flush had failed before. That is told once, to the daemon of then. So a
// daemon that takes over a session does not count what the last one had not seen flushed:
// it knows from the live map which commit was the last, and sets later slots aside
// (LoadKnown). And after a failed write or flush the same slot is written again, whatever a
// later flush says, until one has succeeded after a write of it: until then a page is
// undecided.
//
// # The superblock copy that is overwritten
//
// The same goes for the two copies of the superblock, and no live map knows more about them:
//
//	copies 10 and 10; copy 0 of 11 is written and flushed, the flush of copy 1 fails
//	the next daemon reads 11 twice and would write 12 over copy 0
//	power loss tears 12; copy 1 of 11 never got to the disk; nothing is left
//
// So before its first Update a daemon writes one copy again, with the bytes that it has read,
// and flushes it (secure). If that copy was durable its bytes do not change, so no crash can
// tear it. If it was not, the other one is durable, and is not touched until this one is.
//
// # The clean flag and the map sum
//
// Without the clean flag a bad slot may be one that a crash tore, and losing it is right.
// After a clean stop it is not: it was current, perhaps, and the other slot lacks bits
// whose regions would be read from the source again. The map sum tells: a sum over the
// pages of mix(page, sequence of the current slot), written with the clean flag. At open
// with the flag it must be that of the winners, else the metadata is damaged and refused;
// this also finds a slot that went back in time. Torn slots are zeroed at the open after
// the crash (Load), and a page that is undecided lets nobody set the flag.
//
// The flag is cleared, and that flushed, before the first WritePage; a Store insists.
//
// # A Store
//
// It is made of the device with its buffer (medium), the two copies of the superblock (copies), and
// a table that says of each page which slot is current and which is next (slotTable). It orders
// commits and updates, which share the device.
//
// # Threads
//
// A Store has one lock, a leaf, held while it waits for the device. The committer and the
// control goroutine use it, lanes do not.
package metadata
