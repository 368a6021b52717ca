package process

import (
	"runtime"
	"testing"
)

// TestGiveProcessors: every loop may wait with its processor, on one CPU too, and many CPUs
// make a daemon no heavier.
func TestGiveProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, c := range []struct{ there, queues, want int }{{1, 1, 4}, {1, 4, 7}, {16, 4, 7}} {
		runtime.GOMAXPROCS(c.there)
		GiveProcessors(c.queues)
		if got := runtime.GOMAXPROCS(0); got != c.want {
			t.Errorf("%d queues on %d CPUs: %d processors, want %d", c.queues, c.there, got, c.want)
		}
	}
}
