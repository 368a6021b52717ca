package devices

import (
	"errors"
	"sync"

	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
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

// RefuseAuto refuses that a clone finishes by itself whose users nothing can lead to the
// destination. The destination is open.
func (d *Devices) RefuseAuto(auto *bool) error {
	def := &d.Wanted.Definition
	refuse := func(code int, cause, next string) error {
		return &exit.Error{Code: code, Doing: "set finish=auto for", Object: def.Name, Cause: errors.New(cause), Next: "Nothing was changed. " + next}
	}
	switch {
	case auto == nil || !*auto:
		return nil
	case def.DM == "":
		return refuse(exit.Usage, "it has no device-mapper device, by which its users could be led to the destination",
			"`ublk-clone finish "+def.Name+"` finishes it when nobody uses it; a clone that is added with --dm can finish by itself.")
	case !d.Dest.IsBlock():
		return refuse(exit.Dest, "the destination "+def.Dest+" is a file, and a device-mapper device can lead to block devices only",
			"Leave finish at manual, or use a block device.")
	}
	return nil
}
