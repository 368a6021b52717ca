package clonetest

import (
	"errors"
	"fmt"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
)

// finish answers everything, stops the errors, hydrates the rest, and looks at the destination
// alone.
func (s *sim) finish() error {
	if err := s.dry(); err != nil {
		return err
	}
	if s.cfg.Brief {
		return errors.Join(s.readAll(), s.rest())
	}
	s.healed = true
	s.log("errors stop", nil, 0, 0, 0, nil)
	if err := s.until(func() bool { return s.committer.idle }); err != nil { // a commit may have failed already
		return err
	}
	if s.cfg.Deaths > 0 {
		if err := s.death(); err != nil {
			return err
		}
	}
	if s.core.Mode() == clone.ReadOnly && !s.core.FlushLost() && s.rng.IntN(2) == 0 {
		if err := s.repairAtLast(); err != nil {
			return err
		}
	}
	if s.core.Mode() != clone.ReadWrite || s.cfg.PowerCuts == 0 && s.rng.IntN(2) == 0 {
		if err := s.readAll(); err != nil {
			return err
		}
		if err := s.powerCut(); err != nil {
			return err
		}
	}
	if err := s.readAll(); err != nil {
		return err
	}
	if s.cfg.Large {
		return s.rest()
	}
	if err := errors.Join(s.hydrateAll(), s.rest()); err != nil {
		return err
	}
	return s.destAlone()
}

// rest runs until nothing is in flight, not even in the background, and looks for what is still
// held.
func (s *sim) rest() error {
	if s.hydrator != nil {
		s.hydrator.Configure(hydrate.Settings{})
	}
	if err := s.until(func() bool { return !s.busy() }); err != nil {
		return err
	}
	if held := s.core.Held(); held != "" {
		return fmt.Errorf("nothing is in flight and something is held:\n%s", held)
	}
	return nil
}

// dry runs until every request is answered, which must be before nothing is left to happen but
// timers.
func (s *sim) dry() error {
	if err := s.until(func() bool { return s.left+s.inFlight == 0 || !s.busy() }); err != nil {
		return err
	}
	if s.inFlight > 0 {
		return fmt.Errorf("request never answered: %s", s.progress())
	}
	if n := s.core.UserInFlight(); n != 0 {
		return fmt.Errorf("all requests are answered and the core counts %d in flight", n)
	}
	return nil
}

// readAll reads the whole area.
func (s *sim) readAll() error {
	for _, w := range s.area {
		for first := w.first; first < w.end; {
			n := min(w.end-first, s.cfg.MaxIO/sectorBytes)
			s.lastID++
			p := &operation{id: s.lastID, op: clone.OpRead, off: first * sectorBytes, length: n * sectorBytes}
			s.lanes[0].clients[0].submit(p)
			if err := s.dry(); err != nil {
				return err
			}
			first += n
		}
	}
	return nil
}

// hydrateAll lets the hydrator finish.
func (s *sim) hydrateAll() error {
	s.newHydrator(hydrate.Settings{Enabled: true, Threshold: 64, Batch: 8})
	s.lanes[len(s.lanes)-1].due = true
	limit := s.step + maxSteps/4
	err := s.until(func() bool { return s.core.Complete() || s.step > limit })
	if err == nil && !s.core.Complete() {
		err = fmt.Errorf("hydration does not complete: %s", s.progress())
	}
	return err
}

// destAlone compares the destination with the model, now and after a death and a power loss.
func (s *sim) destAlone() error {
	var first error
	s.area.each(func(sector int64, _ int) {
		v, err := look(s.disks.dest, sector)
		if e := s.oracle.holds(sector, v, err); first == nil {
			first = e
		}
	})
	if first == nil && s.cfg.Deaths > 0 {
		first = s.death()
	}
	if first != nil {
		return first
	}
	return s.powerCut()
}
