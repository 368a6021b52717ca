// Package copybuffers deals out copy buffers to lanes. A lane has a few of its own from the start, which
// always suffice for it to go on: it never waits for memory, only for one of its buffers to come
// free (I9). While it has more at work it borrows from a Stock, which somebody else fills when it
// has run out, and empties of what nobody needs. So an idle clone has 4 MiB of them, and 32 MiB when
// all that may be at work is.
package copybuffers
