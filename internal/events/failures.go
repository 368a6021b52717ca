package events

import (
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
)

// Failures are those of both sides. Any thread may add one.
type Failures struct {
	mu    sync.Mutex // a leaf
	sides [blockdev.Dest + 1]control.FailedIO
}

func (f *Failures) Add(side blockdev.Role, off int64, err error, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.sides[side]
	*s = control.FailedIO{Side: side.String(), Requests: s.Requests + 1, Offset: off, Error: err.Error(), Time: now.UTC()}
}

// List gives the sides that have failed.
func (f *Failures) List() (out []control.FailedIO) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sides {
		if s.Requests > 0 {
			out = append(out, s)
		}
	}
	return out
}
