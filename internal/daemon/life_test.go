package daemon

import (
	"testing"
)

// TestLife: a daemon can come to each phase, and to an end from each; what has ended begins
// nothing.
func TestLife(t *testing.T) {
	reached := map[phase]bool{phaseStarting: true}
	for from, next := range after {
		for _, to := range next {
			reached[to] = true
			if to == phaseStarting {
				t.Errorf("phase %d leads back to the start", from)
			}
		}
		if phase(from) != phaseStopping && !phase(from).leadsTo(phaseStopping) {
			t.Errorf("phase %d has no end", from)
		}
	}
	if len(reached) != len(after) {
		t.Errorf("of %d phases %d can be reached", len(after), len(reached))
	}
	for p := range phase(len(after)) {
		if phaseStopping.leadsTo(p) != (p == phaseStopping) {
			t.Errorf("a daemon that stops comes to phase %d", p)
		}
	}
	if phaseStarting.leadsTo(phaseFinishing) {
		t.Error("a clone is finished before it is up")
	}
}
