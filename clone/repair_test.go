package clone

import (
	"errors"
	"slices"
	"testing"
)

// TestRepair: mode ro ends when, and only when, all that is marked has been committed and the mode
// is recorded. FLUSH fails until then, and a mark that a claim makes meanwhile is left to the next
// commit.
func TestRepair(t *testing.T) {
	r := newRig(t, 8, 2)
	if err := r.core.Repair(r, r, func() error { return nil }); !errors.Is(err, ErrNoRepair) {
		t.Errorf("in mode rw: %v", err)
	}
	r.submit(OpWrite, 0, testRegion)
	r.endAll()
	r.storeErr = errInjected
	if err := r.commit(); !errors.Is(err, errInjected) || r.core.Mode() != ReadOnly {
		t.Fatalf("commit: %v, mode %v", err, r.core.Mode())
	}
	recorded := 0
	record := func() error {
		if recorded++; r.core.Mode() != ReadOnly {
			t.Errorf("mode %v before it is recorded", r.core.Mode())
		}
		return nil
	}
	if err := r.core.Repair(r, r, record); !errors.Is(err, errInjected) || recorded > 0 || r.core.Mode() != ReadOnly {
		t.Fatalf("repair in vain: %v, %d records, mode %v", err, recorded, r.core.Mode())
	}
	r.storeErr = nil
	if err := r.core.Repair(r, r, func() error { return errInjected }); !errors.Is(err, errInjected) || r.core.Mode() != ReadOnly {
		t.Fatalf("record in vain: %v, mode %v", err, r.core.Mode())
	}
	if n := r.core.DurableHydrated(); n != 0 {
		t.Errorf("%d regions count as durable", n)
	}
	r.pages = 0
	if err := r.core.Repair(r, r, record); err != nil || recorded != 1 || r.core.Mode() != ReadWrite {
		t.Fatalf("repair: %v, %d records, mode %v", err, recorded, r.core.Mode())
	}
	if r.pages != 1 || r.core.DurableHydrated() != 1 || r.core.Dirty() {
		t.Errorf("%d pages written, %d regions durable, dirty %t", r.pages, r.core.DurableHydrated(), r.core.Dirty())
	}
	r.flushErr = errInjected
	r.submit(OpWrite, testRegion, testRegion)
	r.endAll()
	if err := r.commit(); err == nil || !r.core.FlushLost() {
		t.Fatalf("flush: %v", err)
	}
	r.flushErr = nil
	if err := r.core.Repair(r, r, record); !errors.Is(err, ErrFlushLost) || r.core.Mode() != ReadOnly {
		t.Errorf("after a lost flush: %v, mode %v", err, r.core.Mode())
	}
}

// TestRepairOfWorseMode: a mode that has become worse during a repair stays so.
func TestRepairOfWorseMode(t *testing.T) {
	r := newRig(t, 8, 2)
	r.core.SetMode(ReadOnly)
	err := r.core.Repair(r, r, func() error { r.core.SetMode(Fail); return nil })
	if !errors.Is(err, ErrNoRepair) || r.core.Mode() != Fail {
		t.Errorf("%v, mode %v", err, r.core.Mode())
	}
}

// TestStateIsKept: whoever keeps the state is told of each change before anybody is answered, and
// of no other, and has the newest one last.
func TestStateIsKept(t *testing.T) {
	r := newRig(t, 8, 2)
	type state struct {
		mode Mode
		lost bool
	}
	var kept []state
	r.core.mu.keep = func(m Mode, lost bool) { kept = append(kept, state{m, lost}) }
	expect := func(when string, want ...state) {
		t.Helper()
		if !slices.Equal(kept, want) {
			t.Errorf("%s: kept %v, expected %v", when, kept, want)
		}
		kept = nil
	}
	r.submit(OpWrite, 0, testRegion)
	r.endAll()
	expect("in mode rw")
	r.storeErr = errInjected
	_ = r.commit()
	expect("after a failed commit", state{ReadOnly, false})
	r.storeErr = nil
	if err := r.core.Repair(r, r, func() error { expect("before the repair has ended"); return nil }); err != nil {
		t.Fatal(err)
	}
	expect("after a repair", state{ReadWrite, false})
	r.submit(OpWrite, testRegion, testRegion)
	r.endAll()
	r.flushErr = errInjected
	r.onFlush = func() { expect("while the destination is flushed") }
	_ = r.commit()
	if len(kept) == 0 || kept[len(kept)-1] != (state{ReadOnly, true}) {
		t.Errorf("after a lost flush: kept %v", kept)
	}
}
