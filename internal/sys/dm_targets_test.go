package sys

import (
	"encoding/binary"
	"slices"
	"testing"
)

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
