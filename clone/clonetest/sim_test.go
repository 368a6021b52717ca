package clonetest

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var (
	seedFlag   = flag.Int64("seed", -1, "replay this seed only")
	seedsFlag  = flag.Int("seeds", 0, "how many seeds; default $SIM_SEEDS or 200")
	configFlag = flag.String("config", "", "replay this configuration, as a failure prints it")
	shrinkFlag = flag.Bool("shrink", true, "look for a smaller configuration that fails too")
)

// TestSim runs the simulator: see the package comment for method, invariants and replay.
func TestSim(t *testing.T) {
	if *configFlag != "" {
		var c Config
		if err := json.Unmarshal([]byte(*configFlag), &c); err != nil {
			t.Fatal(err)
		}
		explain(t, c, Run(c))
		return
	}
	if *seedFlag >= 0 {
		c := Random(uint64(*seedFlag))
		explain(t, c, Run(c))
		return
	}
	seed, err := firstFailure(seeds(t), func(seed int) error { return Run(Random(uint64(seed))) })
	if err != nil {
		t.Errorf("seed %d: %s\nreplay: go test ./clone/clonetest -run 'TestSim$' -seed %d -shrink=false", seed, firstLine(err), seed)
		explain(t, Random(uint64(seed)), err)
	}
}

// explain fails the test with the history of the smallest configuration that fails.
func explain(t *testing.T, c Config, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if *shrinkFlag {
		c, err = Shrink(c, err, runCounted)
	}
	t.Fatalf("%v\nreplay: go test ./clone/clonetest -run 'TestSim$' -shrink=false -config '%v'", err, c)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// firstFailure does n runs, each of its own, on all CPUs, and gives the first that fails, by its
// number.
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

// TestShrink: what is not needed for a failure goes, another schedule is tried where the first one
// passes, and the result is the same each time.
func TestShrink(t *testing.T) {
	run := func(c Config) (int, error) {
		if c.Requests < 5 || c.Deaths == 0 || c.Size < 2*c.RegionSize || c.Seed%3 == 0 {
			return 100, nil
		}
		return 100, fmt.Errorf("%d requests", c.Requests)
	}
	for seed := range uint64(20) {
		c := Random(seed)
		if _, err := run(c); err == nil || c.Large {
			continue
		}
		small, err := Shrink(c, errors.New("unset"), run)
		if small.Requests != 5 || err.Error() != "5 requests" || small.Deaths != 1 || small.Size >= 3*c.RegionSize ||
			small.PowerCuts != 0 || small.Lanes != 1 || small.Background != noBackground || small.Failure != [nrKinds]float64{} {
			t.Errorf("seed %d: left with %v (%v)", seed, small, err)
		}
		if again, _ := Shrink(c, errors.New("unset"), run); again.String() != small.String() {
			t.Errorf("seed %d: the second time %v", seed, again)
		}
	}
}

// TestReplayOfConfig: what String prints is the same run.
func TestReplayOfConfig(t *testing.T) {
	for seed := range uint64(10) {
		var c Config
		if err := json.Unmarshal([]byte(Random(seed).String()), &c); err != nil {
			t.Fatal(err)
		}
		a, b := newSim(Random(seed)), newSim(c)
		if err := errors.Join(a.report(), b.report()); err != nil {
			t.Fatal(err)
		}
		if len(a.trace.events) != len(b.trace.events) || a.step != b.step {
			t.Errorf("seed %d: %d events, %d when replayed", seed, a.step, b.step)
		}
	}
}
