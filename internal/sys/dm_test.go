package sys

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestDMCall: what an ioctl reads is laid out as include/uapi/linux/dm-ioctl.h has it: the name at
// byte 48, the UUID at 176.
func TestDMCall(t *testing.T) {
	call := newDMCall("name")
	b := (*[unsafe.Sizeof(*call)]byte)(unsafe.Pointer(call))[:]
	word := func(at int) int { return int(binary.NativeEndian.Uint32(b[at:])) }
	if word(0) != 4 || word(12) != len(b) || word(16) != unix.SizeofDmIoctl || string(b[48:53]) != "name\x00" {
		t.Errorf("version %d, size %d, data at %d, name %q", word(0), word(12), word(16), b[48:53])
	}
	call.head.Uuid[0] = 'U'
	if b[176] != 'U' {
		t.Error("the UUID is elsewhere")
	}
	long := newDMCall(string(make([]byte, 1000)) + "x")
	if long.head.Name[len(long.head.Name)-1] != 0 {
		t.Error("a long name has no end")
	}
}
