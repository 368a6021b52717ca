package nbd

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWireRequest(t *testing.T) {
	b := make([]byte, RequestSize)
	for i := range b {
		b[i] = 0xff
	}
	Wire{}.Request(b, 0x0102030405060708, 0x1112131415161718, 0x21222324)
	want := "\x25\x60\x95\x13" + "\x00\x00" + "\x00\x00" + "\x01\x02\x03\x04\x05\x06\x07\x08" + "\x11\x12\x13\x14\x15\x16\x17\x18" + "\x21\x22\x23\x24"
	if string(b) != want {
		t.Errorf("a read is %q, want %q", b, want)
	}
	Wire{}.Disconnect(b)
	if want := "\x25\x60\x95\x13\x00\x00\x00\x02" + strings.Repeat("\x00", 20); string(b) != want {
		t.Errorf("a disconnect is %q, want %q", b, want)
	}
}

// reply is a reply's head.
func reply(number uint32, handle uint64) []byte {
	return answer{}.u32(simpleReplyMagic).u32(number).u64(handle)
}

func TestWireReply(t *testing.T) {
	for _, c := range []struct {
		name    string
		head    []byte
		handle  uint64
		failure error
		err     error
		words   string
	}{
		{"done", reply(0, 7), 7, nil, nil, ""},
		{"EIO", reply(5, 1<<63), 1 << 63, unix.EIO, nil, ""},
		{"ENOMEM", reply(12, 1), 1, unix.ENOMEM, nil, ""},
		{"ENOTSUP", reply(95, 1), 1, unix.EOPNOTSUPP, nil, ""},
		{"unknown", reply(4711, 1), 1, unix.EINVAL, nil, ""},
		{"shutting down", reply(108, 1), 1, nil, ErrShutdown, "shutting down"},
		{"structured", answer{}.u32(structuredReplyMagic).u32(0).u64(1), 0, nil, ErrProtocol, "structured"},
		{"garbage", answer("HTTP/1.1 400 Bad Request"), 0, nil, ErrProtocol, "48545450"},
		{"zeros", make([]byte, ReplySize), 0, nil, ErrProtocol, "00000000"},
	} {
		handle, failure, missing, err := Wire{}.Reply(c.head[:ReplySize])
		if c.err != nil {
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: %v, want %v with %q", c.name, err, c.err, c.words)
			}
			continue
		}
		if handle != c.handle || failure != c.failure || missing != 0 || err != nil {
			t.Errorf("%s: handle %d, failure %v, %d missing, %v", c.name, handle, failure, missing, err)
		}
	}
}

// TestWireAllocatesNothing: not for a failure either.
func TestWireAllocatesNothing(t *testing.T) {
	b, good, bad := make([]byte, RequestSize), reply(0, 1), reply(95, 1)
	if n := testing.AllocsPerRun(100, func() {
		Wire{}.Request(b, 1, 2, 3)
		for _, head := range [][]byte{good, bad, good[:9]} {
			if _, _, _, err := (Wire{}).Reply(head); err != nil {
				t.Error(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzReply: a head that comes in pieces is what it is as a whole, or is refused before the whole
// of it has come; who waits for the missing bytes gets there.
func FuzzReply(f *testing.F) {
	f.Add(reply(0, 1))
	f.Add(reply(5, 1<<40))
	f.Add([]byte(answer{}.u32(structuredReplyMagic).u64(3).u32(4)))
	f.Add([]byte("HTTP/1.1 400 Bad"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < ReplySize {
			return
		}
		wantHandle, wantFailure, missing, want := Wire{}.Reply(b[:ReplySize])
		if want == nil && missing != 0 {
			t.Fatalf("%d bytes of %d are missing", missing, ReplySize)
		}
		for n := range ReplySize {
			handle, failure, missing, err := Wire{}.Reply(b[:n])
			if err != nil && want == nil {
				t.Errorf("%d bytes: %v, and the whole is fine", n, err)
			}
			if err == nil && (handle != 0 || failure != nil || missing != ReplySize-n) {
				t.Errorf("%d bytes: handle %d, failure %v, %d missing", n, handle, failure, missing)
			}
			if n >= 4 && errors.Is(want, ErrProtocol) && err == nil {
				t.Errorf("%d bytes: what is no reply is waited for", n)
			}
		}
		if failed := wantFailure != nil; failed && want != nil {
			t.Errorf("handle %d: failure %v and error %v", wantHandle, wantFailure, want)
		}
	})
}
