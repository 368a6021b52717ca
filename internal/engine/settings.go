package engine

import (
	"sync"

	"github.com/ublk-clone/ublk-clone/internal/definition"
)

// settings are those that are in force. Any goroutine may read and change them.
type settings struct {
	mu struct {
		sync.Mutex
		now definition.Settings
	}
}

func (s *settings) get() definition.Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.now
}

func (s *settings) set(now definition.Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.now = now
}

// change makes a change and tells of it before anybody makes the next. It says whether that makes any difference.
func (s *settings) change(c definition.Change, tell func(definition.Settings)) (different bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.mu.now
	c.Apply(&s.mu.now)
	tell(s.mu.now)
	return s.mu.now != was
}
