package devices

import (
	"sync"

	"github.com/ublk-clone/ublk-clone/internal/definition"
)

// Settings are those that are in force. Any goroutine may read and change them.
type Settings struct {
	mu struct {
		sync.Mutex
		now definition.Settings
	}
}

func (s *Settings) Get() definition.Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.now
}

func (s *Settings) Set(now definition.Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.now = now
}

// Change makes a change and tells of it before anybody makes the next. It says whether that makes
// any difference.
func (s *Settings) Change(c definition.Change, tell func(definition.Settings)) (different bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.mu.now
	c.Apply(&s.mu.now)
	tell(s.mu.now)
	return s.mu.now != was
}
