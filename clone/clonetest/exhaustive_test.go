package clonetest

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/ublk-clone/ublk-clone/clone"
)

// The device of the exhaustive tests: three regions of eight sectors, of which the tail has five.
const (
	smallRegion  = 8
	smallSectors = 2*smallRegion + 5
)

// steps are the operations of the exhaustive tests: every kind, on regions whole, in part and
// across.
var steps = []Step{
	{Op: clone.OpFlush},
	{Op: clone.OpWrite, First: 2, End: 5},
	{Op: clone.OpWrite, First: 5, End: 11, FUA: true},
	{Op: clone.OpDiscard, First: 0, End: 8},
	{Op: clone.OpWriteZeroes, First: 6, End: 19},
	{Op: clone.OpWrite, First: 0, End: 21},
	{Op: clone.OpRead, First: 0, End: 21},
	{Op: clone.OpWrite, First: 0, End: 8},
	{Op: clone.OpWrite, First: 8, End: 21},
	{Op: clone.OpWrite, First: 17, End: 20},
	{Op: clone.OpWrite, First: 2, End: 5, FUA: true},
	{Op: clone.OpWrite, First: 8, End: 21, FUA: true},
	{Op: clone.OpDiscard, First: 3, End: 21},
	{Op: clone.OpDiscard, First: 0, End: 21},
	{Op: clone.OpWriteZeroes, First: 2, End: 5},
	{Op: clone.OpWriteZeroes, First: 0, End: 21, FUA: true},
}

// dyingSteps are those that the daemon dies in.
const dyingSteps = 6

// small is the case number n of three operations of the first nr steps. The schedule is drawn from
// the number, so that cases differ in it and a case is the same every time; every second one has
// background hydration.
func small(n, nr int) Config {
	c := Config{
		Seed:      uint64(n),
		device:    device{Size: smallSectors * sectorBytes, RegionSize: smallRegion * sectorBytes, Windows: []Window{{0, smallSectors}}},
		pools:     pools{Lanes: 1 + n%2, Depth: 3, Ops: 4, Buffers: 2, BufferSize: 4096, MaxIO: smallSectors * sectorBytes},
		requests:  requests{Script: []Step{steps[n%nr], steps[n/nr%nr], steps[n/nr/nr%nr]}},
		hydration: hydration{Background: background(n / 2 % 2), Threshold: 2, Batch: 1},
		Brief:     true,
	}
	for i := range c.Weight {
		c.Weight[i] = 4
	}
	return c
}

// stride is how many cases of an exhaustive test are left out between two: none with FULL=1.
func stride(normal int) int {
	if os.Getenv("FULL") == "1" {
		return 1
	}
	return normal
}

// TestEveryPowerLoss: all triples of steps, a power loss after every event, with every choice of
// what survives of the unflushed sectors of destination and metadata. Every 8th triple without
// FULL=1.
func TestEveryPowerLoss(t *testing.T) {
	var checked atomic.Int64
	by := stride(8)
	nr := len(steps)
	runs := nr * nr * nr / by
	i, err := firstFailure(runs, func(i int) error { return runSmall(small(i*by+i%by, nr), &checked) })
	if err != nil {
		t.Fatalf("case %d: %v", i*by+i%by, err)
	}
	t.Logf("%d triples, %d versions of sectors after a power loss", runs, checked.Load())
}

// TestEveryDeath: all triples of the first steps; the daemon dies before every event, with all,
// some or nothing of what is in flight landing; the next one goes on to the end, with a power loss
// after each of its events as above. Every 9th triple without FULL=1.
func TestEveryDeath(t *testing.T) {
	var checked, deaths atomic.Int64
	by := stride(9)
	runs := dyingSteps * dyingSteps * dyingSteps / by
	i, err := firstFailure(runs, func(i int) error { return dieEverywhere(small(i*by+i%by, dyingSteps), &checked, &deaths) })
	if err != nil {
		t.Fatalf("case %d: %v", i*by+i%by, err)
	}
	t.Logf("%d triples, %d deaths, %d versions of sectors after a power loss", runs, deaths.Load(), checked.Load())
}

// runSmall runs a case with all its power losses.
func runSmall(cfg Config, checked *atomic.Int64) error {
	s := newSim(cfg)
	x := &crashes{sim: s}
	s.each = x.check
	err := s.report()
	checked.Add(int64(x.checked))
	return err
}

// dieEverywhere runs a case once for every event and fate.
func dieEverywhere(cfg Config, checked, deaths *atomic.Int64) error {
	for cfg.Fate = allLost; cfg.Fate <= allLand; cfg.Fate++ {
		for cfg.DieAt = 1; ; cfg.DieAt++ {
			s := newSim(cfg)
			x := &crashes{sim: s}
			s.each = func() error {
				if s.diedAt == 0 { // what comes before is TestEveryPowerLoss's
					return nil
				}
				return x.check()
			}
			if err := s.report(); err != nil {
				return fmt.Errorf("death before event %d, fate %d: %w", cfg.DieAt, cfg.Fate, err)
			}
			checked.Add(int64(x.checked))
			deaths.Add(1)
			if s.diedAt < cfg.DieAt-1 {
				break
			}
		}
	}
	return nil
}
