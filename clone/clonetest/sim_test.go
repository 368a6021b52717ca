package clonetest

import (
	"errors"
	"flag"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
)

var (
	seedFlag  = flag.Int64("seed", -1, "replay this seed only")
	seedsFlag = flag.Int("seeds", 0, "how many seeds; default $SIM_SEEDS or 200")
)

// TestSim runs the simulator: see the package comment for method, invariants and replay.
func TestSim(t *testing.T) {
	if *seedFlag >= 0 {
		if err := Run(Random(uint64(*seedFlag))); err != nil {
			t.Fatal(err)
		}
		return
	}
	seed, err := firstFailure(seeds(t), func(seed int) error { return Run(Random(uint64(seed))) })
	if err != nil {
		t.Fatalf("%v\nreplay: go test ./clone/clonetest -run TestSim -seed %d", err, seed)
	}
}

// firstFailure does n runs, each of its own, on all CPUs, and gives the first that fails, by its number.
func firstFailure(n int, run func(i int) error) (first int, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next, first := 0, n
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				stop := i >= first
				mu.Unlock()
				if stop {
					return
				}
				e := run(i)
				mu.Lock()
				if e != nil && i < first {
					first, err = i, e
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return first, err
}

// TestDeterministic: a seed decides everything, else a replay shows something else.
func TestDeterministic(t *testing.T) {
	for seed := range uint64(20) {
		a, b := newSim(Random(seed)), newSim(Random(seed))
		if err := errors.Join(a.report(), b.report()); err != nil {
			t.Fatal(err)
		}
		for i, e := range a.trace.events {
			if i >= len(b.trace.events) || e.String() != b.trace.events[i].String() {
				t.Fatalf("seed %d: event %d differs: first run %v", seed, i, e)
			}
		}
	}
}

func seeds(t *testing.T) int {
	if *seedsFlag > 0 {
		return *seedsFlag
	}
	s := os.Getenv("SIM_SEEDS")
	if s == "" {
		return 200
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("SIM_SEEDS: %v", err)
	}
	return n
}
