package copybuffers

import (
	"slices"
	"sync"
)

// Stock is what lanes share. It is filled when it has run out, and emptied of what nobody has needed
// for a while, by a goroutine that may wait for memory. Any thread may use it.
type Stock struct {
	size int64
	want func()

	mu     sync.Mutex // a leaf; guards what is below
	free   [][]byte
	nr     int    // that are there in all, the lanes' own included
	least  int    // that were free since Idle was called
	hungry []*Set // found none: woken when there is one
	lanes  int    // that take of it
}

// NewStock makes an empty stock of buffers of one size. want is told that it has run out, by a
// lane's thread; it must not block.
func NewStock(size int64, want func()) *Stock { return &Stock{size: size, want: want} }

// Size is that of a buffer.
func (s *Stock) Size() int64 { return s.size }

// Hungry says whether a lane waits for a buffer.
func (s *Stock) Hungry() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.hungry) > 0
}

// Add puts a buffer in that was not there before.
func (s *Stock) Add(b []byte) {
	s.expect(1, 0)
	s.put(b)
}

// expect makes room for so many more buffers and lanes, so that no lane allocates.
func (s *Stock) expect(buffers, lanes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nr += buffers
	s.free = slices.Grow(s.free, s.nr-len(s.free))
	s.lanes += lanes
	s.hungry = slices.Grow(s.hungry, s.lanes-len(s.hungry))
}

// put gives a buffer back.
func (s *Stock) put(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, b)
	for _, h := range s.hungry {
		h.hungry = false
		h.wake()
	}
	s.hungry = s.hungry[:0]
}

// take gives a buffer, or nil: then the stock is to be filled, and h is woken when it is.
func (s *Stock) take(h *Set) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.has(h) {
		return nil
	}
	b := pop(&s.free)
	s.least = min(s.least, len(s.free))
	return b
}

// any says whether take would give one, and has the same effect if not.
func (s *Stock) any(h *Set) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.has(h)
}

func (s *Stock) has(h *Set) bool {
	if len(s.free) > 0 {
		return true
	}
	if !h.hungry {
		h.hungry = true
		s.hungry = append(s.hungry, h)
	}
	s.want()
	return false
}

// Idle takes out the buffers that nobody has needed since it was called last.
func (s *Stock) Idle() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := len(s.free) - min(s.least, len(s.free))
	idle := slices.Clone(s.free[keep:])
	clear(s.free[keep:])
	s.free = s.free[:keep]
	s.nr -= len(idle)
	s.least = keep
	return idle
}
