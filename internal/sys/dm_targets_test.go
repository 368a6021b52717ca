package sys

import (
	"encoding/binary"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestTableCall: a table of several targets is laid out as next_target reads it (dm-ioctl.c): each
// begins where the one before says, from its own beginning, at a multiple of 8, and its parameters
// end with a zero byte within it.
func TestTableCall(t *testing.T) {
	table := []DMTarget{{0, 2048, "linear", "8:16 0"}, {2048, 4096, "linear", "259:4 2048"}, {6144, 8, "error", ""}}
	b := tableCall("name", table)
	data := unsafe.Slice((*byte)(unsafe.Pointer(&b[0])), 8*len(b))
	word := func(at int) int { return int(binary.NativeEndian.Uint32(data[at:])) }
	if word(12) != len(data) || word(16) != unix.SizeofDmIoctl || word(20) != len(table) || string(data[48:53]) != "name\x00" {
		t.Fatalf("size %d of %d, data at %d, %d targets, name %q", word(12), len(data), word(16), word(20), data[48:53])
	}
	at := word(16)
	for i, want := range table {
		next := word(at + 20)
		if at%8 != 0 || next < unix.SizeofDmTargetSpec+len(want.Params)+1 || at+next > len(data) {
			t.Fatalf("target %d at %d, the next %d behind it, of %d bytes", i, at, next, len(data))
		}
		got := DMTarget{
			Start: binary.NativeEndian.Uint64(data[at:]), Sectors: binary.NativeEndian.Uint64(data[at+8:]),
			Type: unix.ByteSliceToString(data[at+24 : at+40]), Params: unix.ByteSliceToString(data[at+unix.SizeofDmTargetSpec : at+next]),
		}
		if got != want {
			t.Errorf("target %d is %+v, expected %+v", i, got, want)
		}
		at += next
	}
	if at != len(data) {
		t.Errorf("%d bytes are used of %d", at, len(data))
	}
}

// TestParseTargets: a table of two targets, as the kernel lays it out.
func TestParseTargets(t *testing.T) {
	want := []DMTarget{{0, 2048, "linear", "8:16 384"}, {2048, 8, "error", ""}}
	data := make([]byte, 128)
	for i, at := range []int{0, 56} {
		b := data[at:]
		binary.NativeEndian.PutUint64(b, want[i].Start)
		binary.NativeEndian.PutUint64(b[8:], want[i].Sectors)
		binary.NativeEndian.PutUint32(b[20:], 56*uint32(i+1))
		copy(b[24:40], want[i].Type)
		copy(b[40:], want[i].Params)
	}
	if got := parseTargets(data, 2); !slices.Equal(got, want) {
		t.Errorf("found %+v, expected %+v", got, want)
	}
	if got := parseTargets(data[:50], 2); len(got) != 1 {
		t.Errorf("of an answer that is cut off: %+v", got)
	}
}
