package clone

import "errors"

// Errors that the core itself ends a request with; every other error is the backend's, as it came.
// A frontend turns each of them into EIO.
var (
	// ErrReadOnly: the request needs a new mark, or a commit of marks, and the mode is not rw
	// (I10).
	ErrReadOnly = errors.New("metadata is read-only: no region can be marked")
	// ErrFlushLost: a FLUSH or FUA after a flush of the destination failed. The kernel reports lost
	// bytes once, and a later flush that succeeds proves nothing about them (I10, H24).
	ErrFlushLost = errors.New("an earlier flush of the destination failed")
	// ErrRange: the request is empty, reaches beyond the device's end or covers more than MaxSpan.
	ErrRange = errors.New("request outside of the device")
	// ErrOp: the operation is none of the core's.
	ErrOp = errors.New("unknown operation")
)

// Errors of other calls.
var (
	// ErrGeometry: sizes do not fit together; the wrapping error has the figures.
	ErrGeometry = errors.New("bad geometry")
	// ErrCommitFirst ends a background hydration that found its share of the pool of uncommitted
	// pages full. A commit has been asked for; the regions may be tried again after it.
	ErrCommitFirst = errors.New("too many uncommitted marks: a commit comes first")
	// ErrCommitPutOff is a commit that did nothing because a FLUSH or FUA has the destination
	// flushed just now.
	ErrCommitPutOff = errors.New("commit put off: a flush of the destination is in flight")
)
