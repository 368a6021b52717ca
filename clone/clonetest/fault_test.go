package clonetest

import (
	"fmt"
	"testing"

	"github.com/ublk-clone/ublk-clone/clone"
)

// scriptLength is how many operations the script of TestFailEveryCall has.
const scriptLength = 60

// faultConfig is a clone of 33 regions with background hydration, read-through and passdown, two
// lanes and few operations and buffers, and a script of operations of all kinds: always the same.
func faultConfig() Config {
	c := Config{
		Seed:      4,
		device:    device{Size: 33*8192 - 1536, RegionSize: 8192},
		pools:     pools{Lanes: 2, Depth: 3, Ops: 3, Buffers: 2, BufferSize: 4096, MaxIO: 3 * 8192},
		requests:  requests{OpWeight: [clone.OpWriteZeroes + 1]int{3, 5, 1, 2, 2}},
		hydration: hydration{Background: policy, Threshold: 3, Batch: 2},
		switches:  switches{ReadThrough: true, Passdown: true},
	}
	c.Windows = []Window{{0, c.Size / sectorBytes}}
	for i := range c.Weight {
		c.Weight[i] = 8
	}
	s := newSim(c)
	for range scriptLength {
		p := s.draw()
		c.Script = append(c.Script, Step{p.op, p.fua, p.off / sectorBytes, (p.off + p.length) / sectorBytes, p.noUnmap})
	}
	return c
}

// TestFailEveryCall: the n-th piece of backend I/O of a fixed script fails, for every n: it alone,
// all later ones of its kind, or all later ones of its disk. Nothing panics, no byte is wrong, no
// request fails that need not, and nothing is held at the end, when the errors have stopped and
// hydration completes.
func TestFailEveryCall(t *testing.T) {
	cfg := faultConfig()
	s := newSim(cfg)
	if err := s.report(); err != nil {
		t.Fatal(err)
	}
	calls, spreads := s.calls, []spread{failOnce, failKind, failDisk}
	if calls < 2*scriptLength {
		t.Fatalf("only %d pieces of backend I/O for %d operations", calls, scriptLength)
	}
	for k, n := range s.callsOf {
		if t.Logf("%v: %d calls", kind(k), n); n == 0 {
			t.Errorf("there is no call to %v: the script does not cover it", kind(k))
		}
	}
	i, err := firstFailure(calls*len(spreads), func(i int) error {
		c := cfg
		c.FailAt, c.FailSpread = 1+i/len(spreads), spreads[i%len(spreads)]
		s := newSim(c)
		if err := s.report(); err != nil {
			return err
		}
		if s.calls < c.FailAt {
			return fmt.Errorf("there were only %d calls", s.calls)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("call %d of %d fails, spread %d: %v", 1+i/len(spreads), calls, spreads[i%len(spreads)], err)
	}
	t.Logf("%d calls, each failed once, with its kind and with its disk", calls)
}
