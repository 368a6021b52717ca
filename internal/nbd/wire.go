package nbd

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Sizes of what goes over the connection after the negotiation.
const (
	RequestSize = 28
	ReplySize   = 16
)

// Numbers of the transmission phase.
const (
	requestMagic         = 0x25609513
	simpleReplyMagic     = 0x67446698
	structuredReplyMagic = 0x668e33ef
	commandRead          = 0 // NBD_CMD_READ
	commandDisconnect    = 2 // NBD_CMD_DISC
)

// Wire is the format of requests and replies, for a loop that does the I/O.
type Wire struct{}

// Sizes are the lengths of a request and of a reply's head, in bytes.
func (Wire) Sizes() (request, reply int) { return RequestSize, ReplySize }

// Request puts a read of length bytes at off into b, which has RequestSize bytes. The reply will
// carry handle.
//
//	magic 4 | flags 2 | type 2 | handle 8 | offset 8 | length 4
func (Wire) Request(b []byte, handle uint64, off, length int64) {
	putRequest(b, commandRead, handle, off, length)
}

func putRequest(b []byte, command uint16, handle uint64, off, length int64) {
	_ = b[RequestSize-1]
	binary.BigEndian.PutUint32(b[0:], requestMagic)
	binary.BigEndian.PutUint16(b[4:], 0)
	binary.BigEndian.PutUint16(b[6:], command)
	binary.BigEndian.PutUint64(b[8:], handle)
	binary.BigEndian.PutUint64(b[16:], uint64(off))
	binary.BigEndian.PutUint32(b[24:], uint32(length))
}

// Disconnect puts into b, which has RequestSize bytes, that no request will follow. Nothing answers
// it: the server closes the connection.
func (Wire) Disconnect(b []byte) { putRequest(b, commandDisconnect, 0, 0, 0) }

// Reply looks at b, what has come of a reply's head. While bytes are missing it says how many, and
// nothing else; but if what has come is not the beginning of a reply, it says so at once, so that
// nobody waits for the rest of it. The bytes of a read follow if failure is nil. Otherwise failure,
// a unix.Errno, is how the server could not do it.
//
//	magic 4 | error 4 | handle 8
func (Wire) Reply(b []byte) (handle uint64, failure error, missing int, err error) {
	if err := checkMagic(b); err != nil || len(b) < ReplySize {
		return 0, nil, ReplySize - len(b), err
	}
	failure, err = failureOf(binary.BigEndian.Uint32(b[4:]))
	return binary.BigEndian.Uint64(b[8:]), failure, 0, err
}

// checkMagic compares as much of a reply's magic number as there is.
func checkMagic(b []byte) error {
	const magic = uint64(simpleReplyMagic)
	for i := range min(len(b), 4) {
		if b[i] != byte(magic>>(24-8*i)) {
			return badMagic(b)
		}
	}
	return nil
}

// badMagic says what stands in a reply's place.
func badMagic(b []byte) error {
	if len(b) >= 4 && binary.BigEndian.Uint32(b) == structuredReplyMagic {
		return broken("a structured reply, which nobody has asked for")
	}
	return broken("%x in the place of a reply's magic number, %x", b[:min(len(b), 4)], uint32(simpleReplyMagic))
}

// failureOf is the errno that stands for an error number of the protocol. The numbers are Linux'
// own; one that the document does not name is to be taken for NBD_EINVAL.
func failureOf(number uint32) (failure, err error) {
	switch errno := unix.Errno(number); errno {
	case 0:
		return nil, nil
	case unix.ESHUTDOWN:
		return nil, ErrShutdown
	case unix.EPERM, unix.EIO, unix.ENOMEM, unix.EINVAL, unix.ENOSPC, unix.EOVERFLOW, unix.EOPNOTSUPP:
		return errno, nil
	}
	return unix.EINVAL, nil
}
