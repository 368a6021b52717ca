package clonetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// maxSteps is more than any run takes: one that gets there spins. Of 200 000 seeds one takes more
// than 2^20, where slow reads of the source meet a background that is chosen 64 times as often and
// refused at once.
const maxSteps = 1 << 23

// sim is one run. Its parts are embedded, and each says what it owns. Some of them are what acts,
// and reach the rest of the run through sim, as lanes, clients and the committer do.
type sim struct {
	cfg  Config
	rng  *rand.Rand
	geo  clone.Geometry
	area area

	world
	daemon
	copying
	stocked
	opening
	endings
	injector
	workload
	repairing
	scheduler

	failure error
}

// world is what there is whatever becomes of the daemon, and what is known of it. live dies with
// the power.
type world struct {
	oracle *oracle
	disks  *disks
	// initial is what the source holds, by sector.
	initial map[int64]value
	live    *liveMap
	trace   trace
	scratch scratch // of the store
	spare   scratch // of stores that are only looked at
}

// daemon is the running daemon: what dies with it.
type daemon struct {
	core      *clone.Core
	store     *metadata.Store
	lanes     []*lane // the last one is the hydrator's
	committer *committer
	answered  []*client // of answers
}

// Run runs one configuration and gives what went wrong, with the history.
func Run(cfg Config) error { return newSim(cfg).report() }

func newSim(cfg Config) *sim {
	s := &sim{cfg: cfg, area: newArea(cfg.Windows), rng: rand.New(rand.NewPCG(cfg.Seed, 2))}
	s.opening.sim, s.endings.sim, s.scheduler.sim, s.copying.sim = s, s, s, s
	s.injector.cfg, s.injector.rng = &s.cfg, s.rng
	s.workload = workload{cfg: &s.cfg, rng: s.rng, area: s.area, lastID: firstValue}
	return s
}

// report runs and describes what went wrong.
func (s *sim) report() error {
	err := s.runAll()
	if s.committer != nil {
		s.committer.stop()
	}
	s.scratch.put()
	s.spare.put()
	if err == nil {
		return nil
	}
	var w *wrongSector
	if errors.As(err, &w) {
		err = fmt.Errorf("%w\nwhat happened there:\n%s", err, s.trace.around(w.sector))
	} else {
		err = fmt.Errorf("%w\nwhat happened last:\n%s", err, s.trace.last(40))
	}
	return err
}

// String gives the configuration as -config takes it.
func (c Config) String() string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// runAll is run; a panic is a failure like any other.
func (s *sim) runAll() error { return recovered(s.run) }

func recovered(run func() error) (err error) {
	defer func() {
		if e := recover(); e != nil {
			err = fmt.Errorf("panic: %v\n%s", e, debug.Stack())
		}
	}()
	return run()
}

func (s *sim) run() error {
	if err := s.begin(); err != nil {
		return err
	}
	interruptions := s.interruptions()
	for i, in := range interruptions {
		s.left += s.share(i, len(interruptions))
		if err := s.until(in.when()); err != nil {
			return err
		}
		if err := in.do(); err != nil {
			return err
		}
	}
	s.left += s.share(len(interruptions), len(interruptions))
	if err := s.finish(); err != nil {
		return err
	}
	return s.untouched()
}

// begin makes the disks, the oracle and the first core.
func (s *sim) begin() (err error) {
	if s.geo, err = clone.NewGeometry(s.cfg.Size, s.cfg.RegionSize); err != nil {
		return err
	}
	if s.disks, err = newDisks(s); err != nil {
		return err
	}
	s.injector.bad = s.disks.bad
	s.initial = make(map[int64]value, s.area.sectors())
	s.area.each(func(sector int64, _ int) { s.initial[sector], _ = look(s.disks.source, sector) })
	s.oracle = newOracle(s.geo, s.area, func(sector int64) value { return s.initial[sector] })
	s.repairs = s.cfg.Repairs
	return s.open()
}

// untouched: the source, and the destination behind the device's end, are as they were.
func (s *sim) untouched() error {
	return s.disks.untouched(&s.cfg, s.area, func(sector int64) value { return s.initial[sector] })
}

// share is how many requests come before the i-th of n interruptions, or after the last one.
func (w *workload) share(i, n int) int {
	if w.cfg.Script != nil {
		return max(0, len(w.cfg.Script)*(1-i))
	}
	return w.cfg.Requests*(i+1)/(n+1) - w.cfg.Requests*i/(n+1)
}

// fail keeps the first failure; the run ends with it.
func (s *sim) fail(err error) {
	if s.failure == nil {
		s.failure = err
	}
}

func (s *sim) log(what string, l *lane, id value, off, length int64, err error) {
	nr := -1
	if l != nil {
		nr = l.nr
	}
	s.trace.events = append(s.trace.events, event{s.step, what, nr, id, off, length, err})
}

// opening is how a daemon starts, as the engine does it.
type opening struct {
	sim *sim

	died, forced bool // the daemon before has died; --force is given
	faulty       bool // the metadata may fail while they are opened
	cutIn        int  // the call to the metadata from now on in which an open is cut short, if it gets there
	detached     bool // the metadata could not be read when the daemon started
}

// open starts a core over the disks as they are. If its daemon dies meanwhile, or the power is
// lost, it is done again.
func (o *opening) open() error {
	s := o.sim
	s.committer = nil
	for {
		if o.cutIn = 0; s.core != nil && s.rng.Float64() < s.cfg.CutOpens {
			o.cutIn = 1 + s.rng.IntN(12)
		}
		cut, err := o.openOnce()
		if !cut {
			o.died, o.forced, o.cutIn = false, false, 0
			return err
		}
		power := s.rng.IntN(2) == 0
		s.log("CUT SHORT", nil, 0, 0, 0, nil)
		if power {
			s.log("POWER CUT", nil, 0, 0, 0, nil)
			s.losePower()
			o.died = false
		}
	}
}

// openOnce says whether it was cut short.
func (o *opening) openOnce() (cut bool, err error) {
	defer func() {
		if e := recover(); e == (cutShort{}) {
			cut = true
		} else if e != nil {
			panic(e)
		}
	}()
	return false, o.start()
}

// start is one open.
func (o *opening) start() error {
	s := o.sim
	regions, uncommitted, err := o.openMap()
	if err != nil {
		return err
	}
	sb := s.store.Superblock()
	s.core = clone.New(clone.Config{
		Geometry:    s.geo,
		Map:         regions,
		Uncommitted: uncommitted,
		Doubt:       o.detached,
		Mode:        max(s.live.mode, clone.Mode(sb.Mode)),
		FlushLost:   s.live.flushLost || sb.DestFlushFailed,
		Kick:        func() { s.committer.kicked = true },
		State:       func(m clone.Mode, lost bool) { s.live.mode, s.live.flushLost = m, lost },
		Delta:       clone.DeltaConfig{Pages: s.cfg.DeltaPages},
		LeastZeros:  s.cfg.LeastZeros,
		Touch:       s.touch,
		Classify:    classify,
		Now:         func() time.Time { return time.Time{} }, // tries have a limit in number only
		Release:     s.release,
	})
	s.core.SetReadThrough(s.cfg.ReadThrough)
	s.core.SetDiscardPassdown(s.cfg.Passdown)
	if s.cfg.Spares {
		s.core.SetSpareZeros(clone.SpareAll)
	}
	s.lanes = nil
	s.stocked.fresh(&s.cfg)
	for nr := range s.cfg.Lanes {
		s.lanes = append(s.lanes, s.newLane(nr, s.cfg.Ops))
		s.lanes[nr].addClients(s.cfg.Depth)
	}
	s.lanes = append(s.lanes, s.newLane(s.cfg.Lanes, s.cfg.Buffers+2))
	s.committer = s.newCommitter()
	s.openBackground()
	return nil
}

// endings are how daemons end, and what must hold afterwards.
type endings struct {
	sim *sim

	diedAt    int  // the step of the last death
	boot      byte // a power loss begins another one
	lostPower bool // since the oracle was told
}

// interruption is a power cut, a death or a restart; when makes its condition.
type interruption struct {
	when func() func() bool
	do   func() error
}

// interruptions are those of the run, in any order.
func (e *endings) interruptions() (all []interruption) {
	s := e.sim
	for range s.cfg.PowerCuts {
		all = append(all, interruption{e.moment, e.powerCut})
	}
	for range s.cfg.Deaths {
		all = append(all, interruption{e.moment, e.death})
	}
	for range s.cfg.Restarts {
		all = append(all, interruption{e.moment, e.restart})
	}
	s.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if s.cfg.DieAt > 0 {
		all = append(all, interruption{e.dieAt, e.death})
	}
	return all
}

// dieAt gives the condition that Config.DieAt names, or that nothing is left to happen.
func (e *endings) dieAt() func() bool {
	s := e.sim
	return func() bool { return s.step+1 >= s.cfg.DieAt || !s.busy() }
}

// moment gives a condition for the next break: mostly within a commit, either soon or some time
// after the last request.
func (e *endings) moment() func() bool {
	s := e.sim
	within, early := s.rng.IntN(2) == 0, s.rng.IntN(2) == 0
	from := s.step + s.rng.IntN(1<<s.rng.IntN(9))
	return func() bool {
		switch {
		case s.untold():
			return false
		case !s.busy():
			return true
		case within && s.committer.idle:
			return false
		case early:
			return s.step >= from
		}
		return s.left+len(s.reissue) == 0 && s.rng.IntN(20) == 0
	}
}
