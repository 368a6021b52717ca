package engine

import (
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/dataplane"
)

// TestAges: a request is as old as the time for which it has been seen, and a queue that moves has
// none that is old.
func TestAges(t *testing.T) {
	a := ages{oldest: make([]uint64, 2), since: make([]time.Time, 2)}
	from := time.Now()
	for i, c := range []struct {
		queue  int
		oldest uint64
		after  time.Duration
		age    time.Duration
	}{
		{0, 7, 0, 0}, {1, 7, time.Second, 0}, {0, 7, 2 * time.Second, 2 * time.Second}, {0, 8, 3 * time.Second, 0},
		{1, 7, 3 * time.Second, 2 * time.Second}, {1, 0, 4 * time.Second, 0}, {1, 0, 5 * time.Second, 0}, {1, 9, 6 * time.Second, 0},
	} {
		if age := a.see(c.queue, dataplane.Work{Oldest: c.oldest}, from.Add(c.after)); age != c.age {
			t.Errorf("look %d: %v old, expected %v", i, age, c.age)
		}
	}
}
