//go:build device

package devicetest

import (
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// TestPattern checks the tests' own tool: what fill makes holds, and nothing else does.
func TestPattern(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	b := make([]byte, 4*harness.Sector)
	for _, v := range []harness.Version{harness.Zeros, harness.Original, 17, harness.Junk} {
		harness.Fill(b, 100*harness.Sector, v)
		for i := range int64(4) {
			s := b[i*harness.Sector : (i+1)*harness.Sector]
			if !harness.Holds(s, 100+i, v) {
				t.Errorf("sector %d of %v: %s", 100+i, v, harness.Describe(s))
			}
			if harness.Holds(s, 100+i, 18) || v == 17 && harness.Holds(s, 99, v) {
				t.Errorf("sector %d of %v holds something else too", 100+i, v)
			}
			s[harness.Sector-1] ^= 1
			if harness.Holds(s, 100+i, v) {
				t.Errorf("sector %d of %v: a wrong last byte is not seen", 100+i, v)
			}
		}
	}
}
