// Package bitmap keeps the region map in memory: two bitsets ("planes") over
// region numbers, and the sparse sets of what was marked since the last commit.
//
// # States
//
// The two planes are independent, a bit is only ever set, and H wins over Z:
//
//	    H Z   state
//	    0 0   Source     the region's bytes are in the source
//	    0 1   Zero       the region reads as zeros, the destination has not been written
//	    1 x   Hydrated   the region's bytes are in the destination; final
//
//	Source ----> Zero ----> Hydrated
//	   '-----------------------^
//
// Because no state returns to Source and no bit is ever cleared, any mix of old and
// new pages, and the OR of two maps, is a correct map. That is what lets a commit be
// torn (package metadata) and a live map outlive its process.
//
// # Pages
//
// The map is cut into pages of 4 KiB, one to one with the pages of the metadata:
//
//	word  0            252          504   512
//	      +------------+------------+-----+
//	      | H, 16128   | Z, 16128   |  0  |      one Page
//	      +------------+------------+-----+
//
// Region r is bit r % 64 of word (r % 16128) / 64 of its plane in page r / 16128.
// 2^32 regions are 266306 pages, 1 GiB. The memory is the caller's and sparse: beside
// it stands one counter per page and plane, and a page whose counters say "nothing
// marked" or "everything hydrated" is neither read nor written.
//
// A page that is marked zero as a whole takes no memory either, if the map was given bits that
// outlive the process as its memory does (KeepZeros): the page's bit says it. When a region of the
// page is hydrated later, the page's memory is filled in first. A Delta has such a bit a page too.
//
// # Threads
//
// Readers (State, Run, the searches, AllHydrated, the counts of tally) take no lock and may
// run anywhere at any time. Writers (Mark, Load, DurableImage, Release, everything of a
// Delta) run one at a time, under the core's lock. The order of a writer's stores is:
//
//  1. the bit in the Delta, plain memory that the core's lock guards;
//  2. the bit in the page, atomic;
//  3. the page's counter, atomic, once all bits of the call in that page are set.
//
// 1 comes before 2 so that no bit can be seen in the map that is not in the Delta: a
// commit takes "live minus Delta" for durable and would otherwise write a bit that it
// did not freeze, before the destination was flushed for it (I4); and a FUA write that
// finds its region marked asks the Delta whether that mark is durable (I5).
//
// # The double look
//
// Once a page is durably hydrated throughout, Release lets its memory go, and from then on it may
// read as zeros (I9). The counter says "full" before that. So a reader that has loaded a clear bit
// looks at the counter again, after the load: if it is full now the zero may be the released
// page's, and the region is hydrated; if it is not, the page had not been released when the bit was
// loaded, and the bit was truly clear. A page that is zero throughout may be released too
// (ReleaseZero), and used again later. So a reader looks at the other counter as well: once it says
// that all is marked zero, no region is in state Source, whatever the Z word was. The H word of
// such a page is right: it was all clear when the page was released.
//
// One look before the load is not enough (it was not full, the page fills up and is
// released, the load gives zero), and one look covers both planes, as only H counts.
package bitmap
