// Package copybuffers deals out copy buffers to lanes. A lane has a few of its own from the start,
// which always suffice for it to go on: it never waits for memory, only for one of its buffers to
// come free (I9). While it needs more it borrows from a Stock, which somebody else fills when it
// has run out, and empties of what nobody needs. So an idle clone has 4 MiB of copy buffers, and a
// clone that does all that it may do at a time has 32 MiB.
package copybuffers
