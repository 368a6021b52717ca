package nbd

import (
	"encoding/binary"
	"fmt"
)

// Numbers of the handshake phase.
const (
	greetingMagic    = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic      = 0x49484156454f5054 // "IHAVEOPT"
	oldstyleMagic    = 0x0000420281861253
	optionReplyMagic = 0x0003e889045565a9

	flagFixedNewstyle = 1 << 0 // NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_C_FIXED_NEWSTYLE
	flagNoZeroes      = 1 << 1 // NBD_FLAG_NO_ZEROES, NBD_FLAG_C_NO_ZEROES

	optionGo = 7 // NBD_OPT_GO

	replyAck  = 1 // NBD_REP_ACK
	replyInfo = 3 // NBD_REP_INFO
	// Errors have bit 31.
	replyError      = 1 << 31
	errorUnsup      = replyError + 1 // NBD_REP_ERR_UNSUP
	errorPolicy     = replyError + 2
	errorInvalid    = replyError + 3
	errorPlatform   = replyError + 4
	errorTLS        = replyError + 5 // NBD_REP_ERR_TLS_REQD
	errorUnknown    = replyError + 6 // NBD_REP_ERR_UNKNOWN
	errorShutdown   = replyError + 7 // NBD_REP_ERR_SHUTDOWN
	errorBlockSizes = replyError + 8 // NBD_REP_ERR_BLOCK_SIZE_REQD
	errorTooBig     = replyError + 9

	infoExport     = 0 // NBD_INFO_EXPORT
	infoBlockSizes = 3 // NBD_INFO_BLOCK_SIZE

	flagHasFlags  = 1 << 0 // NBD_FLAG_HAS_FLAGS
	flagReadOnly  = 1 << 1 // NBD_FLAG_READ_ONLY
	flagMultiConn = 1 << 8 // NBD_FLAG_CAN_MULTI_CONN
)

// nameMax is the longest name of an export, as of any string of the protocol.
const nameMax = 4096

// Sizes in the handshake.
const (
	greetingSize          = 18
	optionHeaderSize      = 16
	optionReplyHeaderSize = 20
	// repliesMax is how many replies an option may have. A server has four kinds of information to
	// give with NBD_OPT_GO; the rest is for kinds to come.
	repliesMax = 32
	// replyMax is the longest reply: two strings, a name and a message, are more than any has.
	replyMax = 2 * nameMax
)

// Export is what the server has said of an export.
type Export struct {
	Size  int64
	flags uint16

	// MinBlock is what the offset and length of each request are a multiple of, MaxBlock the
	// longest read. PreferredBlock is advice.
	MinBlock, PreferredBlock, MaxBlock int64

	told bool // the size
}

// ReadOnly says that the server lets nobody write to the export.
func (e Export) ReadOnly() bool { return e.flags&flagReadOnly != 0 }

// MultiConn says that several connections to the export are allowed, and see the same.
func (e Export) MultiConn() bool { return e.flags&flagMultiConn != 0 }

// What a client assumes of a server that says nothing of its block sizes.
const (
	defaultMinBlock       = 512
	defaultPreferredBlock = 4096
	defaultMaxBlock       = 32 << 20
	// minBlockMax is the largest smallest block that the protocol allows.
	minBlockMax = 64 << 10
)

// parseGreeting takes the server's first bytes, and answers with the client's flags.
func parseGreeting(b [greetingSize]byte) (clientFlags uint32, err error) {
	if got := binary.BigEndian.Uint64(b[0:]); got != greetingMagic {
		return 0, fmt.Errorf("%w: it begins with %q", ErrNotNBD, b[:8])
	}
	switch got := binary.BigEndian.Uint64(b[8:]); got {
	case optionMagic:
	case oldstyleMagic:
		return 0, fmt.Errorf("%w: it knows the oldstyle negotiation only. Use a newer server, or start it with named exports", ErrTooOld)
	default:
		return 0, broken("%x in the place of the option magic number", got)
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if flags&flagFixedNewstyle == 0 {
		return 0, fmt.Errorf("%w: it does not know fixed newstyle negotiation", ErrTooOld)
	}
	return flagFixedNewstyle | uint32(flags)&flagNoZeroes, nil
}

// optionGoBytes are the client's flags and NBD_OPT_GO for an export.
//
//	client flags 4 | IHAVEOPT 8 | option 4 | length 4 | name's length 4 | name | number of infos 2 | info 2
func optionGoBytes(clientFlags uint32, export string) []byte {
	b := binary.BigEndian.AppendUint32(nil, clientFlags)
	b = binary.BigEndian.AppendUint64(b, optionMagic)
	b = binary.BigEndian.AppendUint32(b, optionGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint16(b, 1)
	return binary.BigEndian.AppendUint16(b, infoBlockSizes)
}

// optionReply is the head of a reply to an option.
type optionReply struct {
	kind   uint32
	length int
}

// parseOptionReply takes a head; the reply's data follow it.
//
//	magic 8 | option 4 | reply 4 | length 4
func parseOptionReply(b [optionReplyHeaderSize]byte) (optionReply, error) {
	if got := binary.BigEndian.Uint64(b[0:]); got != optionReplyMagic {
		return optionReply{}, broken("%x in the place of an option reply's magic number", got)
	}
	if got := binary.BigEndian.Uint32(b[8:]); got != optionGo {
		return optionReply{}, broken("a reply to option %d, where option %d was sent", got, optionGo)
	}
	length := binary.BigEndian.Uint32(b[16:])
	if length > replyMax {
		return optionReply{}, broken("a reply of %d bytes to an option, of which none has more than %d", length, replyMax)
	}
	return optionReply{kind: binary.BigEndian.Uint32(b[12:]), length: int(length)}, nil
}

// take makes use of a reply with its data, and says whether it was the last.
func (e *Export) take(r optionReply, data []byte) (last bool, err error) {
	switch {
	case r.kind == replyAck && len(data) != 0:
		return false, broken("an acknowledgement with %d bytes of data", len(data))
	case r.kind == replyAck:
		return true, e.check()
	case r.kind == replyInfo:
		return false, e.takeInfo(data)
	case r.kind&replyError != 0:
		return false, refusal(r.kind, data)
	}
	return false, broken("a reply of type %d to NBD_OPT_GO", r.kind)
}

// refusal is the error for a server's error reply. Its data are a message for people.
func refusal(kind uint32, data []byte) error {
	says := ""
	if len(data) > 0 {
		says = fmt.Sprintf(". It says: %.200q", data)
	}
	switch kind {
	case errorUnsup:
		return fmt.Errorf("%w: it does not know NBD_OPT_GO%s", ErrTooOld, says)
	case errorTLS:
		return fmt.Errorf("%w%s", ErrTLSRequired, says)
	case errorUnknown:
		return fmt.Errorf("%w%s", ErrUnknownExport, says)
	case errorShutdown:
		return fmt.Errorf("%w%s", ErrShutdown, says)
	}
	return fmt.Errorf("%w: %s%s", ErrRefused, refusalName(kind), says)
}

func refusalName(kind uint32) string {
	switch kind {
	case errorPolicy:
		return "its settings forbid it"
	case errorInvalid:
		return "it takes the request for invalid"
	case errorPlatform:
		return "its platform cannot do it"
	case errorBlockSizes:
		return "it demands block sizes that nobody has agreed on"
	case errorTooBig:
		return "it takes the request for too large"
	}
	return fmt.Sprintf("error %d", kind&^replyError)
}

// takeInfo takes one piece of information. Kinds that nobody asked for are the server's right, and
// left alone.
//
//	export: type 2 | size 8 | transmission flags 2      block sizes: type 2 | minimum 4 | preferred 4 | maximum 4
func (e *Export) takeInfo(data []byte) error {
	if len(data) < 2 {
		return broken("information of %d bytes", len(data))
	}
	switch kind, data := binary.BigEndian.Uint16(data), data[2:]; kind {
	case infoExport:
		if len(data) != 10 {
			return broken("information about the export of %d bytes, where 10 are due", len(data))
		}
		return e.takeSize(binary.BigEndian.Uint64(data), binary.BigEndian.Uint16(data[8:]))
	case infoBlockSizes:
		if len(data) != 12 {
			return broken("information about block sizes of %d bytes, where 12 are due", len(data))
		}
		return e.takeBlockSizes(binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:]))
	}
	return nil
}

// takeSize takes the size and the transmission flags.
func (e *Export) takeSize(size uint64, flags uint16) error {
	switch {
	case flags&flagHasFlags == 0:
		return broken("transmission flags %#x without NBD_FLAG_HAS_FLAGS", flags)
	case e.told && (int64(size) != e.Size || flags != e.flags):
		return broken("two answers about the export: %d bytes and flags %#x, then %d bytes and flags %#x", e.Size, e.flags, size, flags)
	case size == 0:
		return fmt.Errorf("%w: it is empty", ErrSize)
	case size > 1<<63-1:
		return fmt.Errorf("%w: %d bytes", ErrSize, size)
	case size%512 != 0:
		return fmt.Errorf("%w: %d bytes are no multiple of 512. Have the server round it up (nbdkit: --filter=truncate round-up=512)", ErrSize, size)
	}
	e.Size, e.flags, e.told = int64(size), flags, true
	return nil
}

// takeBlockSizes checks what the protocol demands of them. A maximum of 2^32-1 is none.
func (e *Export) takeBlockSizes(least, preferred, most uint32) error {
	powerOf2 := func(n uint32) bool { return n != 0 && n&(n-1) == 0 }
	switch {
	case !powerOf2(least) || least > minBlockMax:
		return broken("a minimum block size of %d bytes: it is a power of two, at most %d", least, minBlockMax)
	case !powerOf2(preferred) || preferred < max(least, 512):
		return broken("a preferred block size of %d bytes: it is a power of two, and not below 512 and the minimum, %d", preferred, least)
	case most < least || most != 1<<32-1 && most%least != 0:
		return broken("a maximum block size of %d bytes: it is a multiple of the minimum, %d", most, least)
	}
	e.MinBlock, e.PreferredBlock, e.MaxBlock = int64(least), int64(preferred), int64(min(most, 1<<31-512))
	return nil
}

// check looks, at the end, whether the server has said what it must.
func (e *Export) check() error {
	switch {
	case !e.told:
		return broken("the export is acknowledged, and its size was never told")
	case e.MinBlock > 0 && e.Size%e.MinBlock != 0:
		return broken("an export of %d bytes with a minimum block size of %d", e.Size, e.MinBlock)
	}
	if e.MinBlock == 0 {
		e.MinBlock, e.PreferredBlock, e.MaxBlock = defaultMinBlock, defaultPreferredBlock, defaultMaxBlock
	}
	return nil
}
