package rate

import (
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
)

func TestRateAndETA(t *testing.T) {
	var m Meter
	start := time.Unix(1000, 0)
	if r := m.Add(start, 0); r != 0 {
		t.Errorf("rate of one sample: %d", r)
	}
	for i := 1; i <= 20; i++ {
		if r := m.Add(start.Add(time.Duration(i)*time.Second), int64(i)*1000); r != 1000 {
			t.Errorf("after %d s: %d bytes/s, want 1000", i, r)
		}
	}
	for i := 21; i <= 27; i++ {
		m.Add(start.Add(time.Duration(i)*time.Second), 20000)
	}
	if r := m.Add(start.Add(28*time.Second), 20000); r != 0 || m.Last == 0 {
		t.Errorf("8 s after the stop: %d bytes/s, last %d", r, m.Last)
	}
	if e := ETA(control.StateHydrating, 2500, 1000); e == nil || *e != 3 {
		t.Errorf("eta = %v", e)
	}
	for _, state := range []string{control.StatePaused, control.StateStalled, control.StateFailed} {
		if e := ETA(state, 2500, 1000); e != nil {
			t.Errorf("eta while %s = %d", state, *e)
		}
	}
	if e := ETA(control.StateHydrating, 2500, 0); e != nil {
		t.Errorf("eta without a rate = %d", *e)
	}
}
