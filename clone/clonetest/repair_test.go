package clonetest

import "testing"

// TestRepairsHappen: the simulator brings metadata back, over deaths and without being able to read
// them, often enough for its other tests to mean something.
func TestRepairsHappen(t *testing.T) {
	const enough = 5
	repaired, alone := 0, 0
	for seed := uint64(0); repaired < enough || alone < enough; seed++ {
		if seed == 1000 {
			t.Fatalf("of %d seeds %d have repaired metadata and %d ones that could not be read", seed, repaired, alone)
		}
		s := newSim(Random(seed))
		if err := s.report(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		repaired += s.repairsDone
		alone += s.repairsAlone
	}
}
