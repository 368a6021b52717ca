package dataplane

import (
	"testing"
)

// TestPulse: a loop that has not gone round since it was asked is told from one that has.
func TestPulse(t *testing.T) {
	var p pulse
	woken := 0
	wake := func() { woken++ }
	p.ask(wake)
	p.answer()
	if !p.ask(wake) {
		t.Error("a loop that goes round is taken to stand still")
	}
	if p.ask(wake) {
		t.Error("a loop that stands still is taken to go round")
	}
	p.answer()
	if !p.ask(wake) || woken != 4 {
		t.Errorf("it goes round again; woken %d times", woken)
	}
}
