package nbd

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// answer builds what a server sends.
type answer []byte

func (a answer) u16(v uint16) answer { return binary.BigEndian.AppendUint16(a, v) }
func (a answer) u32(v uint32) answer { return binary.BigEndian.AppendUint32(a, v) }
func (a answer) u64(v uint64) answer { return binary.BigEndian.AppendUint64(a, v) }

// greets begins as a server of today does.
func greets() answer {
	return answer{}.u64(greetingMagic).u64(optionMagic).u16(flagFixedNewstyle | flagNoZeroes)
}

// replies adds a reply to NBD_OPT_GO.
func (a answer) replies(kind uint32, data answer) answer {
	a = a.u64(optionReplyMagic).u32(optionGo).u32(kind).u32(uint32(len(data)))
	return append(a, data...)
}

// exports adds the information about an export.
func (a answer) exports(size uint64, flags uint16) answer {
	return a.replies(replyInfo, answer{}.u16(infoExport).u64(size).u16(flags))
}

func (a answer) blocks(least, preferred, most uint32) answer {
	return a.replies(replyInfo, answer{}.u16(infoBlockSizes).u32(least).u32(preferred).u32(most))
}

func (a answer) acknowledges() answer { return a.replies(replyAck, nil) }

// serve is a server at the other end of the connection that it returns: it sends all of a, whatever
// it is asked, and closes unless it hangs.
func serve(t *testing.T, a answer, hangs bool) net.Conn {
	t.Helper()
	ours, its := net.Pipe()
	t.Cleanup(func() { ours.Close(); its.Close() })
	go func() { _, _ = io.Copy(io.Discard, its) }()
	go func() {
		if _, err := its.Write(a); err == nil && !hangs {
			its.Close()
		}
	}()
	return ours
}

// serveDripping sends a byte every few milliseconds, for ever.
func serveDripping(t *testing.T, a answer) net.Conn {
	t.Helper()
	ours, its := net.Pipe()
	t.Cleanup(func() { ours.Close(); its.Close() })
	go func() { _, _ = io.Copy(io.Discard, its) }()
	go func() {
		for i := 0; ; i++ {
			if _, err := its.Write(a[i%len(a):][:1]); err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return ours
}
