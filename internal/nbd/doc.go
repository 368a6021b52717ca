// Package nbd is the protocol of network block devices, for a client that only reads.
//
// The facts are those of the protocol's document, doc/proto.md of the project NetworkBlockDevice/nbd;
// names in capitals are the document's.
//
//	client                              server
//	        <- greeting: NBDMAGIC, IHAVEOPT, flags
//	client flags ->                                       fixed newstyle, no zeroes
//	NBD_OPT_GO: export, what to tell ->
//	        <- NBD_REP_INFO ... : size, block sizes
//	        <- NBD_REP_ACK, or an error
//	requests of 28 bytes ->                               in any number
//	        <- replies of 16 bytes, with the bytes of a read behind   in any order
//
// [Negotiate] does the first part on a connection, within a limit. The second is the work of a
// loop, which does the I/O: [Wire] puts requests into its buffer and understands the replies. It
// allocates nothing.
//
// Only simple replies are asked for. A structured reply may come in pieces and with holes, which a
// loop that reads straight to a request's pages would have to hold together; for a whole read it
// says no more than a simple one. The list of extents (NBD_CMD_BLOCK_STATUS) needs structured
// replies. It is to be fetched on a connection of its own, by whoever makes a list in memory of it:
// never by a loop, which would wait for the answer.
//
// The server is not trusted. Whatever it sends is checked: a lie is an error that says what was
// wrong, and never a panic. Lengths and numbers of what it sends have limits, so that nothing goes on
// for ever while it keeps sending; where it stops sending, the limit in time is what ends it.
package nbd
