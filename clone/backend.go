package clone

// Data names the bytes that a backend I/O moves: a stretch of a request's data, or a copy buffer.
type Data struct {
	Request *Request // the request's data from byte At on, Len bytes; nil: Buf
	At      int64
	Len     int64
	Buf     []byte // a stretch of a copy buffer, page-aligned at its beginning
}

// Size is the number of bytes named.
func (d Data) Size() int64 {
	if d.Request != nil {
		return d.Len
	}
	return int64(len(d.Buf))
}

// Backend is what a lane queues its I/O to. All methods are called on the lane's thread and none
// blocks. Each queued I/O ends with exactly one Lane.EndIO(token, err), on the same thread,
// never from within the call; nil means done whole: short I/O is the backend's to finish. An I/O is
// never cancelled or timed out and then tried again (I11).
//
// There is no way to write the source (I1).
type Backend interface {
	// ReadSource reads; alone asks that the devices make no one request of it and others, that an
	// error of theirs would fail too.
	ReadSource(token uint32, off int64, data Data, alone bool)
	ReadDest(token uint32, off int64, data Data)
	// WriteDest writes; durable asks for the bytes to be durable at the end.
	WriteDest(token uint32, off int64, data Data, durable bool)
	// ZeroDest makes the bytes read as zeros, whatever was there; unmap allows to give their space
	// back.
	ZeroDest(token uint32, off, length int64, unmap bool)
	// DiscardDest tells the destination that nobody needs the bytes, which then may read as
	// anything.
	DiscardDest(token uint32, off, length int64)
	FlushDest(token uint32)

	// Fetch copies data of a WRITE from its byte at on to dst, Store copies src to those of a READ,
	// Clear zeroes n bytes of a READ's. None of them waits.
	Fetch(r *Request, at int64, dst []byte) error
	Store(r *Request, at int64, src []byte) error
	Clear(r *Request, at, n int64) error
}

// Flusher is the committer's way to the destination. Flush blocks until all that ended before the
// call is durable, or fails.
type Flusher interface{ Flush() error }
