package clonetest

import (
	"iter"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

// committer is the goroutine that commits, as a coroutine: pause gives the scheduler its turn, so
// that anything may happen between two steps of a commit.
type committer struct {
	sim    *sim
	kicked bool
	idle   bool
	repair bool // what is to be done next, in place of a commit
	failed bool // a flush has, which the core has not been told yet
	slots  bool // the metadata is flushed for a commit's slots alone
	mode   clone.Mode
	full   bool // the superblock says that hydration is complete
	// flushing: a flush of the destination is in flight.
	flushing bool
	err      error // of what was done last
	resume   func() (struct{}, bool)
	stop     func()
	yield    func(struct{}) bool
}

// poweredOff ends a committer that is stopped within a commit.
type poweredOff struct{}

func (s *sim) newCommitter() *committer {
	c := &committer{sim: s, idle: true, mode: s.core.Mode(), full: s.core.Complete()}
	c.resume, c.stop = iter.Pull(c.run)
	return c
}

// run commits whenever it is resumed.
func (c *committer) run(yield func(struct{}) bool) {
	defer func() {
		if e := recover(); e != nil && e != (poweredOff{}) {
			panic(e)
		}
	}()
	c.yield = yield
	for {
		c.idle = false
		what, do := "commit", c.commit
		if c.repair {
			what, do = "repair", c.doRepair
		} else {
			c.kicked = false
		}
		c.sim.log(what+" begins", nil, 0, 0, 0, nil)
		c.err = do()
		c.sim.log(what+" ends", nil, 0, 0, 0, c.err)
		c.idle, c.repair = true, false
		c.pause()
	}
}

// commit is one commit, and what the superblock has to say about it, now and then its counters.
func (c *committer) commit() error {
	s := c.sim
	err := s.core.Commit(c, mapStore{s})
	changed := s.core.Mode() != c.mode || s.core.Complete() != c.full
	c.mode, c.full = s.core.Mode(), s.core.Complete()
	if changed || s.rng.IntN(8) == 0 {
		if err := s.update(s.refresh); err != nil {
			s.log("superblock", nil, 0, 0, 0, err)
			s.core.SetMode(clone.ReadOnly)
			c.mode = s.core.Mode()
		}
	}
	return err
}

// mapStore is the store as the core has it: the live map knows of a commit before anybody is
// answered.
type mapStore struct{ sim *sim }

func (m mapStore) WritePage(page uint64, img *bitmap.Page) error {
	return m.sim.store.WritePage(page, img)
}

func (m mapStore) Flush() error {
	m.sim.committer.slots = true
	err := m.sim.store.Flush()
	m.sim.committer.slots = false
	if err == nil {
		m.sim.live.commit = m.sim.store.CommitSequence()
	}
	return err
}

func (c *committer) pause() {
	if !c.yield(struct{}{}) {
		panic(poweredOff{})
	}
}

// Flush is the destination's (clone.Flusher).
func (c *committer) Flush() error {
	c.sim.alone(false)
	c.flushing = true
	defer func() { c.flushing = false }()
	return c.flush(c.sim.disks.dest, flushDest)
}

func (c *committer) flush(disk *fakedisk.Disk, k kind) error {
	position := disk.Position()
	c.pause()
	err := c.sim.disks.flush(disk, position, c.sim.fails(k, 0, 0))
	c.sim.log("did "+short[k], nil, 0, 0, 0, err)
	c.failed = err != nil && !c.slots
	c.pause()
	c.failed = false
	return err
}

// metaDevice is the metadata's device: the committer pauses in its calls.
type metaDevice struct {
	*fakedisk.Disk
	sim *sim
}

// AllocBuffer gives the same buffer to every store of a run: there is one at a time.
func (m metaDevice) AllocBuffer(size int) []byte { return m.sim.scratch.get(size) }

func (m metaDevice) WriteAt(b []byte, off int64) error {
	s := m.sim
	if s.committer == nil {
		return m.writeOpening(b, off)
	}
	for at := int64(0); at < int64(len(b)); {
		s.committer.pause()
		end := at + s.piece(int64(len(b))-at)
		if err := s.fails(writeMeta, off+at, off+end); err != nil {
			s.log("did wm", nil, 0, 0, 0, err)
			return err
		}
		if err := m.Disk.WriteAt(b[at:end], off+at); err != nil {
			return err
		}
		at = end
	}
	s.log("did wm", nil, 0, 0, 0, nil)
	s.committer.pause()
	return nil
}

func (m metaDevice) Flush() error {
	if m.sim.committer == nil {
		return m.flushOpening()
	}
	return m.sim.committer.flush(m.Disk, flushMeta)
}

// cutShort ends an open whose daemon dies, or whose machine does.
type cutShort struct{}

// writeOpening writes while a daemon opens, which nothing else happens beside.
func (m metaDevice) writeOpening(b []byte, off int64) error {
	s := m.sim
	cut, length := s.cutNow(), int64(len(b))
	var err *diskError
	if s.faulty {
		err = s.fails(writeMeta, off, off+length)
	}
	switch {
	case err != nil:
		length = err.sector*sectorBytes - off
	case cut:
		length = s.piece(length)
	}
	if e := m.Disk.WriteAt(b[:length], off); e != nil {
		return e
	}
	if cut {
		panic(cutShort{})
	}
	if err != nil {
		return err
	}
	return nil
}

func (m metaDevice) flushOpening() error {
	s := m.sim
	if s.cutNow() {
		panic(cutShort{})
	}
	if s.faulty {
		return s.disks.flush(m.Disk, m.Disk.Position(), s.fails(flushMeta, 0, 0))
	}
	return m.Disk.Flush()
}

// cutNow says that the open ends with this call.
func (o *opening) cutNow() bool {
	o.cutIn--
	return o.cutIn == 0
}
