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
	evEnd
	evAnswer
	evRound
	evCommit
	evClock
	evWild
	evRepair
	nrEvents
)

// scheduler chooses what happens next.
type scheduler struct {
	sim *sim

	step int
	each func() error // after each event; may be nil
}

// until runs events until done says so, or something is wrong.
func (d *scheduler) until(done func() bool) error {
	s := d.sim
	for s.failure == nil && !done() {
		if d.step++; d.step > maxSteps {
			return fmt.Errorf("still not done after %d events: %s", d.step, d.progress())
		}
		s.stocked.turn(&s.cfg, d.step)
		if !d.event() {
			return fmt.Errorf("nothing left to happen: %s", d.progress())
		}
		if d.each != nil && s.failure == nil {
			s.failure = d.each()
		}
	}
	return s.failure
}

// progress is for messages: what is in flight and how far hydration is.
func (d *scheduler) progress() string {
	s := d.sim
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
func (d *scheduler) event() bool {
	s := d.sim
	weight, total := s.cfg.Weight, 0
	for ev := range weight {
		if !d.possible(ev) {
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
			d.happen(ev)
			return true
		}
		n -= w
	}
	return false
}

func (d *scheduler) possible(ev int) bool {
	s := d.sim
	switch ev {
	case evSubmit:
		return s.left+len(s.reissue) > 0 && s.inFlight-len(s.reissue) < s.cfg.Lanes*s.cfg.Depth
	case evExecute:
		return s.queued(false) > 0
	case evEnd:
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

// busy says that something is left to happen that neither a timer nor the once-a-second commit
// does.
func (d *scheduler) busy() bool {
	s := d.sim
	return s.left+len(s.reissue) > 0 || s.queued(true)+s.queued(false)+s.dueLanes()+len(s.answers()) > 0 || !s.committer.idle || s.committer.kicked
}

func (d *scheduler) happen(ev int) {
	s := d.sim
	switch ev {
	case evSubmit:
		d.turnSwitches()
		d.submit()
	case evExecute:
		if l, q := d.pick(false); s.rng.Float64() >= s.cfg.Slow[l.ios[q].kind] {
			l.execute(l.ios[q])
		}
	case evEnd:
		l, q := d.pick(true)
		l.ioDone(q)
	case evAnswer:
		all := s.answers()
		all[s.rng.IntN(len(all))].answer()
	case evRound:
		d.round()
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

// submit sends a new request, or one that the daemon's death has left unanswered; those mostly come
// first.
func (d *scheduler) submit() {
	s := d.sim
	c := d.pickClient()
	if n := len(s.reissue); n > 0 && (s.left == 0 || s.rng.IntN(4) > 0) {
		i := s.rng.IntN(n)
		p := s.reissue[i]
		s.reissue = slices.Delete(s.reissue, i, i+1)
		c.send(p, "reissue ")
		return
	}
	c.submit(s.next())
}

func (d *scheduler) turnSwitches() {
	s := d.sim
	if s.cfg.Switch {
		s.core.SetReadThrough(s.rng.IntN(2) == 0)
		s.core.SetDiscardPassdown(s.rng.IntN(2) == 0)
		s.core.SetSpareZeros(clone.Spare(s.rng.IntN(2))) // nothing, or what is discarded; a run begins with nothing or all
	}
}

// queued counts the I/Os that have, or have not, taken effect.
func (d *daemon) queued(done bool) (n int) {
	for _, l := range d.lanes {
		for _, q := range l.ios {
			if q.done == done {
				n++
			}
		}
	}
	return n
}

func (d *scheduler) pick(done bool) (*lane, int) {
	s := d.sim
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
func (d *daemon) answers() []*client {
	d.answered = d.answered[:0]
	for _, l := range d.lanes {
		for _, c := range l.clients {
			if c.ended {
				d.answered = append(d.answered, c)
			}
		}
	}
	return d.answered
}

func (d *daemon) dueLanes() (n int) {
	for _, l := range d.lanes {
		if l.due {
			n++
		}
	}
	return n
}

// round is a turn of a lane's loop.
func (d *scheduler) round() {
	s := d.sim
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

func (d *scheduler) pickClient() *client {
	s := d.sim
	for {
		l := s.lanes[s.rng.IntN(s.cfg.Lanes)]
		if c := l.clients[s.rng.IntN(len(l.clients))]; c.doing == nil {
			return c
		}
	}
}

// copying is what hydrates in the background. It dies with the daemon.
type copying struct {
	sim *sim

	hydrator *hydrate.Hydrator
	wild     []*clone.Hydration // free ones
	now      time.Time
	timer    time.Time // the hydrator's next, zero: none
}

// openBackground starts what the configuration has in the background.
func (c *copying) openBackground() {
	s := c.sim
	c.hydrator, c.wild, c.timer = nil, nil, time.Time{}
	switch s.cfg.Background {
	case policy:
		c.newHydrator(hydrate.Settings{Enabled: true, Threshold: s.cfg.Threshold, Batch: s.cfg.Batch})
		s.lanes[len(s.lanes)-1].due = true
	case wildBackground:
		for range 4 {
			c.wild = append(c.wild, &clone.Hydration{Done: func(h *clone.Hydration, err error) {
				s.log("hydrated", nil, 0, s.geo.Start(h.First), s.geo.Start(h.End)-s.geo.Start(h.First), err)
				c.wild = append(c.wild, h)
			}})
		}
	}
}

func (c *copying) newHydrator(settings hydrate.Settings) {
	s := c.sim
	l := s.lanes[len(s.lanes)-1]
	c.hydrator = hydrate.New(hydrate.Config{
		Core:     s.core,
		Lane:     l.Lane,
		Holes:    holes{s.disks},
		Batches:  s.cfg.Buffers,
		Now:      func() time.Time { return c.now },
		After:    c.after,
		Wake:     func() { l.due = true },
		Settings: settings,
	})
}

func (c *copying) after(d time.Duration) {
	if t := c.now.Add(max(d, 1)); c.timer.IsZero() || t.Before(c.timer) {
		c.timer = t
	}
}

// hydrateWildly hydrates some run of regions without any policy.
func (c *copying) hydrateWildly() {
	s := c.sim
	l := s.lanes[len(s.lanes)-1]
	w := s.area[s.rng.IntN(len(s.area))]
	first, _ := s.geo.Touched(w.first*sectorBytes, 1)
	_, end := s.geo.Touched(w.first*sectorBytes, (w.end-w.first)*sectorBytes)
	first += s.rng.Uint64N(end - first)
	st, stop := s.core.Regions().Run(first, min(end, first+1+s.rng.Uint64N(12)))
	h := c.wild[len(c.wild)-1]
	h.First, h.End, h.Kind = first, stop, clone.ZeroZero
	switch {
	case st == bitmap.Hydrated:
		return
	case st == bitmap.Source && s.rng.IntN(4) == 0:
		if h.Kind = clone.ZeroHole; !c.hole(h) {
			return
		}
	case st == bitmap.Source:
		h.Kind, h.End = clone.CopySource, min(stop, first+l.CopyRegions())
	}
	c.wild = c.wild[:len(c.wild)-1]
	if !l.Hydrate(h) {
		c.wild = append(c.wild, h)
	}
}

// hole cuts h to the regions from its first on that lie in a hole of the source; false: there are
// none.
func (c *copying) hole(h *clone.Hydration) bool {
	s := c.sim
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
