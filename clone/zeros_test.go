package clone

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// TestZerosOfSource: runs of zeros that are long enough are written as zeros when they are copied
// in the background, of whole regions that are still the source's, and the rest as it was read.
func TestZerosOfSource(t *testing.T) {
	for _, c := range []struct {
		source  string // a letter for each region: 0 = zeros, 1 = a zero at each end and something within, 9 = zeros but for the last byte, else data
		written string // the regions that users have written before: w
		want    string // what is written to the destination, in order, as first-end, z for zeros
	}{
		{"ssss", "....", "0-4"},
		{"0000", "....", "0-4z"},
		{"00ss", "....", "0-2z 2-4"},
		{"ss00", "....", "0-2 2-4z"},
		{"s00s", "....", "0-1 1-3z 3-4"},
		{"0s0s", "....", "0-4"}, // too short
		{"1100", "....", "0-2 2-4z"},
		{"0011", "....", "0-2z 2-4"},
		{"0099", "....", "0-2z 2-4"},
		{"9900", "....", "0-2 2-4z"},
		{"000s", "w...", "1-3z 3-4"},
		{"0000", ".w..", "0-1z 2-4z"},
		{"00ss", "ww..", "2-4"},
		{"ss00", "..ww", "0-2"},
		{"0000", "wwww", ""},
	} {
		t.Run(c.source+" "+c.written, func(t *testing.T) {
			r := newRig(t, 4, 2)
			r.core.leastZeros = 2 * testRegion
			r.core.SetDiscardPassdown(true)
			for i, kind := range c.source {
				region := r.source[i*testRegion : (i+1)*testRegion]
				switch kind {
				case '0':
					clear(region)
				case '1':
					clear(region)
					region[testRegion/2] = 1
				case '9':
					clear(region)
					region[testRegion-1] = 1
				}
			}
			want := bytes.Clone(r.source)
			h := &Hydration{First: 0, End: 4, Done: func(_ *Hydration, err error) {
				if err != nil {
					t.Error(err)
				}
			}}
			r.lane.Hydrate(h)
			r.wantQueued(queued{what: "read source", length: 4 * testRegion})
			read := r.ios[0] // it ends after the users' writes
			r.ios = r.ios[:0]
			for i, kind := range c.written {
				if kind == 'w' {
					r.submit(OpWrite, int64(i)*testRegion, testRegion)
					r.endAll()
					copy(want[i*testRegion:], r.dest[i*testRegion:(i+1)*testRegion])
				}
			}
			r.ios = append(r.ios, read)
			r.end(nil)
			var got []string
			for len(r.ios) > 0 {
				got = append(got, stretch(t, r.ios[0]))
				r.end(nil)
			}
			if got := strings.Join(got, " "); got != c.want {
				t.Errorf("written %q, expected %q", got, c.want)
			}
			if !bytes.Equal(r.dest, want) || r.core.Regions().NrHydrated() != 4 {
				t.Errorf("wrong bytes, or %d of 4 regions hydrated", r.core.Regions().NrHydrated())
			}
			r.wantNothingHeld()
		})
	}
}

// stretch is a write of the destination as the test's table has it.
func stretch(t *testing.T, q queued) string {
	t.Helper()
	text := string('0'+byte(q.off/testRegion)) + "-" + string('0'+byte((q.off+q.length)/testRegion))
	switch {
	case q.what == "zero dest" && q.unmap:
		return text + "z"
	case q.what != "write dest":
		t.Errorf("%v", q)
	}
	return text
}

// TestAllZeros: one byte makes a difference wherever it is.
func TestAllZeros(t *testing.T) {
	for _, length := range []int{1, 2, 3, 64, 511, 512, testRegion} {
		b := make([]byte, length)
		if !allZeros(b) {
			t.Fatalf("%d zeros are not taken for zeros", length)
		}
		for i := range b {
			for _, v := range []byte{1, 0x80, 0xff} {
				b[i] = v
				if allZeros(b) {
					t.Fatalf("%d bytes with %#x at %d are taken for zeros", length, v, i)
				}
			}
			b[i] = 0
		}
	}
}

// TestZerosOfLargeRegion: a region that is larger than the buffer is data, whatever its beginning
// is.
func TestZerosOfLargeRegion(t *testing.T) {
	r := newRigOf(t, 8*testRegion, 8*testRegion, 2)
	r.core.leastZeros = testRegion
	clear(r.source[:5*testRegion])
	r.lane.Hydrate(&Hydration{First: 0, End: 1, Done: func(*Hydration, error) {}})
	r.endAll()
	if !bytes.Equal(r.dest, r.source) || r.core.Regions().State(0) != bitmap.Hydrated {
		t.Error("wrong bytes, or not hydrated")
	}
}

// TestZerosOfSourceFail: what could not be zeroed is not marked (I1).
func TestZerosOfSourceFail(t *testing.T) {
	r := newRig(t, 4, 2)
	r.core.leastZeros = testRegion
	clear(r.source[:2*testRegion])
	var ended error
	r.lane.Hydrate(&Hydration{First: 0, End: 4, Done: func(_ *Hydration, err error) { ended = err }})
	r.end(nil)
	r.wantQueued(queued{what: "zero dest", length: 2 * testRegion})
	r.end(errInjected)
	if ended != errInjected || r.core.Regions().NrHydrated() != 0 {
		t.Errorf("ended with %v, %d regions hydrated", ended, r.core.Regions().NrHydrated())
	}
	r.wantNothingHeld()
}
