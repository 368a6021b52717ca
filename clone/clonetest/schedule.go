package clonetest

import (
	"fmt"
	"slices"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
)

// The events that the scheduler chooses from.
const (
	evSubmit = iota
	evExecute
	evComplete
	evAnswer
	evRound
	evCommit
	evClock
	evWild
	evRepair
	nrEvents
)

// until runs events until done says so, or something is wrong.
func (s *sim) until(done func() bool) error {
	for s.failure == nil && !done() {
		if s.step++; s.step > maxSteps {
			return fmt.Errorf("still not done after %d events: %s", s.step, s.progress())
		}
		if !s.event() {
			return fmt.Errorf("nothing left to happen: %s", s.progress())
		}
		if s.each != nil && s.failure == nil {
			s.failure = s.each()
		}
	}
	return s.failure
}

// progress is for messages: what is in flight and how far hydration is.
func (s *sim) progress() string {
	r := s.core.Regions()
	text := fmt.Sprintf("%d requests to be issued, mode %v, %d of %d regions hydrated, %d durably, %d zero", s.left,
		s.core.Mode(), r.NrHydrated(), s.geo.Regions(), s.core.DurableHydrated(), r.NrZero())
	if s.hydrator != nil {
		text += fmt.Sprintf(", hydrator %+v", s.hydrator.Status())
	}
	for _, l := range s.lanes {
		for _, c := range l.clients {
			if c.doing != nil {
				text += fmt.Sprintf("\nlane %d: %v", l.nr, c.doing)
			}
		}
		for _, q := range l.ios {
			text += fmt.Sprintf("\nlane %d: %v of sectors [%d, %d), %d bytes of it done", l.nr, q.kind,
				q.off/sectorBytes, (q.off+q.length)/sectorBytes, q.at)
		}
	}
	return text
}

// event picks one event that can happen now, by weight, and lets it.
func (s *sim) event() bool {
	weight, total := s.cfg.Weight, 0
	for ev := range weight {
		if !s.possible(ev) {
			weight[ev] = 0
		}
		total += weight[ev]
	}
	if total == 0 {
		return false
	}
	n := s.rng.IntN(total)
	for ev, w := range weight {
		if n < w {
			s.happen(ev)
			return true
		}
		n -= w
	}
	return false
}

func (s *sim) possible(ev int) bool {
	switch ev {
	case evSubmit:
		return s.left+len(s.reissue) > 0 && s.inFlight-len(s.reissue) < s.cfg.Lanes*s.cfg.Depth
	case evExecute:
		return s.queued(false) > 0
	case evComplete:
		return s.queued(true) > 0
	case evAnswer:
		return len(s.answers()) > 0
	case evRound:
		return s.dueLanes() > 0
	case evCommit:
		return !s.committer.idle || s.committer.kicked || s.core.Dirty() && s.core.Mode() == clone.ReadWrite
	case evClock:
		return !s.timer.IsZero()
	case evRepair:
		return s.repairs > 0 && s.committer.idle && s.core.Mode() == clone.ReadOnly && !s.core.FlushLost()
	}
	return s.left > 0 && len(s.wild) > 0
}

// busy says that something is left to happen that neither a timer nor the once-a-second commit does.
func (s *sim) busy() bool {
	return s.left+len(s.reissue) > 0 || s.queued(true)+s.queued(false)+s.dueLanes()+len(s.answers()) > 0 || !s.committer.idle || s.committer.kicked
}

func (s *sim) happen(ev int) {
	switch ev {
	case evSubmit:
		s.turnSwitches()
		s.submit()
	case evExecute:
		if l, q := s.pick(false); s.rng.Float64() >= s.cfg.Slow[l.ios[q].kind] {
			l.execute(l.ios[q])
		}
	case evComplete:
		l, q := s.pick(true)
		l.complete(q)
	case evAnswer:
		all := s.answers()
		all[s.rng.IntN(len(all))].answer()
	case evRound:
		s.round()
	case evCommit:
		s.committer.resume()
	case evClock:
		s.now, s.timer = s.timer, time.Time{}
		s.lanes[len(s.lanes)-1].due = true
	case evWild:
		s.hydrateWildly()
	case evRepair:
		s.repair()
	}
}

// submit sends a new request, or one that the daemon's death has left unanswered; those mostly come first.
func (s *sim) submit() {
	c := s.pickClient()
	if n := len(s.reissue); n > 0 && (s.left == 0 || s.rng.IntN(4) > 0) {
		i := s.rng.IntN(n)
		p := s.reissue[i]
		s.reissue = slices.Delete(s.reissue, i, i+1)
		c.send(p, "reissue ")
		return
	}
	c.submit(s.next())
}

func (s *sim) turnSwitches() {
	if s.cfg.Switch {
		s.core.SetReadThrough(s.rng.IntN(2) == 0)
		s.core.SetDiscardPassdown(s.rng.IntN(2) == 0)
		s.core.SetSpareZeros(clone.Spare(s.rng.IntN(2))) // nothing, or what is discarded; a run begins with nothing or all
	}
}

// queued counts the I/Os that have, or have not, taken effect.
func (s *sim) queued(done bool) (n int) {
	for _, l := range s.lanes {
		for _, q := range l.ios {
			if q.done == done {
				n++
			}
		}
	}
	return n
}

func (s *sim) pick(done bool) (*lane, int) {
	n := s.rng.IntN(s.queued(done))
	for _, l := range s.lanes {
		for i, q := range l.ios {
			if q.done != done {
				continue
			}
			if n == 0 {
				return l, i
			}
			n--
		}
	}
	panic("unreachable")
}

// answers gives the clients whose answer is on its way. The slice holds until the next call.
func (s *sim) answers() []*client {
	s.answered = s.answered[:0]
	for _, l := range s.lanes {
		for _, c := range l.clients {
			if c.ended {
				s.answered = append(s.answered, c)
			}
		}
	}
	return s.answered
}

func (s *sim) dueLanes() (n int) {
	for _, l := range s.lanes {
		if l.due {
			n++
		}
	}
	return n
}

// round is a turn of a lane's loop.
func (s *sim) round() {
	n := s.rng.IntN(s.dueLanes())
	for _, l := range s.lanes {
		if !l.due {
			continue
		}
		if n == 0 {
			l.due = false
			l.Drain()
			if l == s.lanes[len(s.lanes)-1] && s.hydrator != nil {
				s.hydrator.Pump()
			}
			return
		}
		n--
	}
}

func (s *sim) pickClient() *client {
	for {
		l := s.lanes[s.rng.IntN(s.cfg.Lanes)]
		if c := l.clients[s.rng.IntN(len(l.clients))]; c.doing == nil {
			return c
		}
	}
}

// openBackground starts what the configuration has in the background.
func (s *sim) openBackground() {
	s.hydrator, s.wild, s.timer = nil, nil, time.Time{}
	switch s.cfg.Background {
	case policy:
		s.newHydrator(hydrate.Settings{Enabled: true, Threshold: s.cfg.Threshold, Batch: s.cfg.Batch})
		s.lanes[len(s.lanes)-1].due = true
	case wildBackground:
		for range 4 {
			s.wild = append(s.wild, &clone.Hydration{Done: func(h *clone.Hydration, err error) {
				s.note("hydrated", nil, 0, s.geo.Start(h.First), s.geo.Start(h.End)-s.geo.Start(h.First), err)
				s.wild = append(s.wild, h)
			}})
		}
	}
}

func (s *sim) newHydrator(settings hydrate.Settings) {
	l := s.lanes[len(s.lanes)-1]
	s.hydrator = hydrate.New(hydrate.Config{
		Core:     s.core,
		Lane:     l.Lane,
		Holes:    holes{s.disks},
		Batches:  s.cfg.Buffers,
		Now:      func() time.Time { return s.now },
		After:    s.after,
		Wake:     func() { l.due = true },
		Settings: settings,
	})
}

func (s *sim) after(d time.Duration) {
	if t := s.now.Add(max(d, 1)); s.timer.IsZero() || t.Before(s.timer) {
		s.timer = t
	}
}

// hydrateWildly hydrates some run of regions without any policy.
func (s *sim) hydrateWildly() {
	l := s.lanes[len(s.lanes)-1]
	w := s.area[s.rng.IntN(len(s.area))]
	first, _ := s.geo.Touched(w.first*sectorBytes, 1)
	_, end := s.geo.Touched(w.first*sectorBytes, (w.end-w.first)*sectorBytes)
	first += s.rng.Uint64N(end - first)
	st, stop := s.core.Regions().Run(first, min(end, first+1+s.rng.Uint64N(12)))
	h := s.wild[len(s.wild)-1]
	h.First, h.End, h.Kind = first, stop, clone.ZeroZero
	switch {
	case st == bitmap.Hydrated:
		return
	case st == bitmap.Source && s.rng.IntN(4) == 0:
		if h.Kind = clone.ZeroHole; !s.hole(h) {
			return
		}
	case st == bitmap.Source:
		h.Kind, h.End = clone.CopySource, min(stop, first+l.CopyRegions())
	}
	s.wild = s.wild[:len(s.wild)-1]
	if !l.Hydrate(h) {
		s.wild = append(s.wild, h)
	}
}

// hole cuts h to the regions from its first on that lie in a hole of the source; false: there are none.
func (s *sim) hole(h *clone.Hydration) bool {
	from := s.geo.Start(h.First)
	data, err := holes{s.disks}.NextData(from)
	if err != nil {
		return false
	}
	first, end := s.geo.Covered(from, data-from)
	h.End = min(h.End, end)
	return first == h.First && first < h.End
}

// holes tells of holes in the source, sector by sector.
type holes struct{ disks *disks }

func (h holes) NextData(off int64) (int64, error) { return h.disks.source.NextData(off) }

func (h holes) NextHole(off int64) (int64, error) {
	for ; off < h.disks.source.Size(); off += sectorBytes {
		if v, _ := look(h.disks.source, off/sectorBytes); v == valueZeros {
			break
		}
	}
	return off, nil
}
