package clonetest

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// liveMap is what outlives the process and not the machine (I6): the memory of the region map, and
// of the mode what the core has told of.
type liveMap struct {
	pages      []bitmap.Page
	full       []bool          // of pages that are durably hydrated throughout
	zeros      []atomic.Uint64 // of bitmap.Map.KeepZeros
	mode       clone.Mode
	flushLost  bool
	session    uint64 // of the metadata
	commit     uint64 // the last that has succeeded
	superblock []byte // as last written
}

// newLiveMap makes one for a session that begins.
func newLiveMap(geo clone.Geometry, sb *metadata.Superblock) *liveMap {
	pages := bitmap.PagesFor(geo.Regions())
	return &liveMap{
		pages: make([]bitmap.Page, pages), full: make([]bool, pages), zeros: make([]atomic.Uint64, (pages+63)/64), session: sb.Session + 1,
		mode: clone.Mode(sb.Mode), flushLost: sb.DestFlushFailed,
	}
}

// zero says whether a page is noted as zero throughout.
func (m *liveMap) zero(page int) bool { return m.zeros[page/64].Load()>>(page%64)&1 != 0 }

// release gives the memory of a page back.
func (s *sim) release(page uint64, memory *bitmap.Page) {
	s.live.full[page] = s.live.full[page] || s.core.Regions().Full(page)
	*memory = bitmap.Page{}
}

// touch takes memory of the live map, or finds that there is none left.
func (s *sim) touch(uint64) error {
	if err := s.fails(touchMap, 0, 0); err != nil {
		s.log("no memory", nil, 0, 0, 0, err)
		return err
	}
	return nil
}

// load fills a map from the metadata, of a session that begins.
func (m *liveMap) load(store *metadata.Store, regions *bitmap.Map) error {
	err := store.Load(func(page uint64, img *bitmap.Page) error { return m.loadPage(regions, page, img) })
	m.commit = store.CommitSequence()
	return err
}

func (m *liveMap) loadPage(regions *bitmap.Map, page uint64, img *bitmap.Page) error {
	m.full[page] = m.full[page] || regions.FullImage(page, img)
	return regions.Load(page, img)
}

// takeOver makes the region map of what the metadata holds and what a dead daemon has marked in the
// live map. The marks that only the latter has are uncommitted.
func (m *liveMap) takeOver(store *metadata.Store, regions *bitmap.Map) (*bitmap.Delta, error) {
	used := make([]bool, len(m.pages))
	for page := range m.pages {
		used[page] = m.pages[page] != bitmap.Page{}
	}
	durable := map[uint64]*bitmap.Page{}
	err := store.LoadKnown(m.commit, func(page uint64, img *bitmap.Page) error {
		if !used[page] && (!m.zero(int(page)) || regions.FullImage(page, img)) {
			return m.loadPage(regions, page, img)
		}
		durable[page] = new(*img)
		return nil
	})
	uncommitted := bitmap.NewDelta(uint64(len(m.pages)), 0)
	for page := range used {
		switch {
		case err != nil:
		case used[page]:
			err = regions.Recover(uint64(page), durable[uint64(page)], uncommitted)
		case m.zero(page) && !regions.Used(uint64(page)):
			err = regions.RecoverZero(uint64(page), durable[uint64(page)], uncommitted)
		}
	}
	return uncommitted, err
}

// death kills the daemon and starts another. What was acknowledged must be there, flushed or not
// (I6); what was not answered will be asked again.
func (e *endings) death() error {
	s := e.sim
	s.log("DAEMON DIES", nil, 0, 0, 0, nil)
	e.diedAt = s.step
	regions, complete, durable := s.core.Regions(), s.core.Complete(), s.core.DurableHydrated()
	mode, flushLost := s.core.Mode(), s.core.FlushLost()
	e.fence()
	s.committer.stop()
	s.died = true
	for _, l := range s.lanes {
		for _, c := range l.clients {
			if c.doing != nil {
				s.reissue = append(s.reissue, c.doing)
			}
		}
	}
	if err := s.open(); err != nil {
		return fmt.Errorf("open after the daemon's death: %w", err)
	}
	if err := e.stillDurable("daemon's death", complete, durable); err != nil {
		return err
	}
	if e.lostPower {
		return e.crashed()
	}
	if now := s.core.Regions(); now.NrHydrated() != regions.NrHydrated() || now.NrZero() != regions.NrZero() {
		return fmt.Errorf("%d regions hydrated and %d zero after the daemon's death, %d and %d before it",
			now.NrHydrated(), now.NrZero(), regions.NrHydrated(), regions.NrZero())
	}
	if s.detached {
		mode = max(mode, clone.ReadOnly)
	}
	if s.core.Mode() != mode || s.core.FlushLost() != flushLost {
		return fmt.Errorf("mode %v after the daemon's death, flush lost %t; %v and %t before it (I10)",
			s.core.Mode(), s.core.FlushLost(), mode, flushLost)
	}
	return s.oracle.died(s.peek)
}

// restart stops the daemon in order and starts another: with the clean flag the live map is of no
// use any more. Where the last commit fails, as in mode ro with marks that are not committed, there
// is no clean flag, and the end is a death; so it is where a slot that a failed repair has written
// keeps the store from setting the mark.
func (e *endings) restart() error {
	s := e.sim
	left := s.left
	s.left = 0
	s.log("THE DAEMON STOPS", nil, 0, 0, 0, nil)
	clean := func() bool { return s.committer.idle && !(s.core.Dirty() && s.core.Mode() == clone.ReadWrite) }
	if err := errors.Join(s.dry(), s.rest(), s.until(clean)); err != nil {
		return err
	}
	if s.core.Mode() != clone.ReadWrite {
		s.committer.kicked = true
		if err := s.until(func() bool { return s.committer.idle && !s.committer.kicked }); err != nil {
			return err
		}
	}
	s.left = left
	mode := s.core.Mode()
	if mode != clone.ReadWrite && s.committer.err != nil {
		return e.death()
	}
	committer := s.committer
	s.committer = nil
	err := s.store.Update(func(sb *metadata.Superblock) error { sb.Clean = true; return s.refresh(sb) })
	if mode != clone.ReadWrite && errors.Is(err, metadata.ErrUnflushed) {
		s.committer = committer
		return e.death()
	}
	committer.stop()
	if err != nil {
		return fmt.Errorf("stop in order: %w", err)
	}
	regions, complete, durable := s.core.Regions(), s.core.Complete(), s.core.DurableHydrated()
	if err := s.open(); err != nil {
		return fmt.Errorf("open after a stop in order: %w", err)
	}
	if err := e.stillDurable("restart", complete, durable); err != nil {
		return err
	}
	if e.lostPower {
		return e.crashed()
	}
	if now := s.core.Regions(); now.NrHydrated() != regions.NrHydrated() || now.NrZero() != regions.NrZero() || s.core.Dirty() {
		return fmt.Errorf("%d regions hydrated and %d zero after a restart, %d and %d before it, marks to commit: %t",
			now.NrHydrated(), now.NrZero(), regions.NrHydrated(), regions.NrZero(), s.core.Dirty())
	}
	if s.core.Mode() != mode {
		return fmt.Errorf("mode %v after a restart, %v before it (I10)", s.core.Mode(), mode)
	}
	return s.oracle.died(s.peek)
}

// fence lets each I/O in flight take effect not at all, in part or whole, in any order. Nothing of
// it lands later: the next daemon waits for that (I7).
func (e *endings) fence() {
	s := e.sim
	type flying struct {
		*lane
		*io
	}
	var all []flying
	for _, l := range s.lanes {
		for _, q := range l.ios {
			if !q.done {
				all = append(all, flying{l, q})
			}
		}
	}
	s.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, f := range all {
		what := s.cfg.Fate
		if what == anyFate {
			what = allLost + fate(s.rng.IntN(3))
		}
		f.lane.land(f.io, what)
	}
}

// land makes none, some or all pieces of an I/O take effect.
func (l *lane) land(q *io, what fate) {
	s := l.sim
	if q.kind == flushDest && what != allLost {
		if err := s.disks.flush(s.disks.dest, q.position, nil); err != nil {
			s.fail(err)
		}
	}
	for lo := q.at; lo < q.length; {
		hi := lo + s.piece(q.length-lo)
		if what == allLand || what == someLand && s.rng.IntN(2) == 0 {
			l.effect(q, lo, hi)
			s.log("landed "+short[q.kind], l, q.id, q.off+lo, hi-lo, nil)
		}
		lo = hi
	}
}

// untold says that a flush has failed and nobody knows it yet, but for one of a commit's slots,
// which the next daemon does not believe in. If the daemon dies now the error dies with it, and no
// daemon could tell what was lost: that is left out.
func (d *daemon) untold() bool {
	if d.committer.failed {
		return true
	}
	for _, l := range d.lanes {
		if slices.ContainsFunc(l.ios, func(q *io) bool { return (q.kind == flushDest || q.durable) && q.done && q.err != nil }) {
			return true
		}
	}
	return false
}

// powerCut loses what was not flushed, the live map with it, checks what is left, and starts anew.
func (e *endings) powerCut() error {
	s := e.sim
	s.log("POWER CUT", nil, 0, 0, 0, nil)
	complete, durable := s.core.Complete(), s.core.DurableHydrated()
	s.committer.stop()
	e.losePower()
	s.forced = s.healed || s.rng.IntN(4) > 0 // else the next one goes on in the mode that the superblock has (I10)
	if err := s.open(); err != nil {
		return fmt.Errorf("open after power loss: %w", err)
	}
	if err := e.stillDurable("power loss", complete, durable); err != nil {
		return err
	}
	return e.crashed()
}

// stillDurable: what a core has called durable is so to the next one, and a clone that was
// complete, or that the superblock calls complete, is so, in any mode (I12). Only a daemon that
// cannot use the metadata does not know.
func (e *endings) stillDurable(after string, complete bool, durable uint64) error {
	s := e.sim
	switch {
	case s.detached || s.core.Complete():
		return nil
	case complete:
		return fmt.Errorf("hydration was complete before the %s and is not after it", after)
	case s.store.Superblock().Complete:
		return fmt.Errorf("the superblock says after the %s that hydration is complete, and it is not", after)
	}
	if n := s.core.DurableHydrated(); n < durable {
		return fmt.Errorf("%d regions durably hydrated after the %s, %d before it", n, after, durable)
	}
	return nil
}

// losePower ends the boot.
func (e *endings) losePower() {
	s := e.sim
	s.disks.powerCut(s.rng)
	e.boot++
	e.lostPower = true
}

// crashed checks what a power loss has left.
func (e *endings) crashed() error {
	s := e.sim
	e.lostPower, s.inFlight, s.reissue = false, 0, nil
	return s.oracle.crash(s.peek)
}

// peek gives what the clone holds in a sector, by its map.
func (s *sim) peek(sector int64) (value, error) {
	switch s.core.Regions().State(s.geo.Region(sector * sectorBytes)) {
	case bitmap.Source:
		return look(s.disks.source, sector)
	case bitmap.Zero:
		return valueZeros, nil
	}
	return look(s.disks.dest, sector)
}
