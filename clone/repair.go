package clone

import (
	"errors"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// ErrNoRepair: the mode is one that a repair does not end.
var ErrNoRepair = errors.New("the mode is not ro, or for another reason than the metadata")

// A repair ends mode ro when somebody says that the metadata can be written again (I10). What they
// hold of the commit that has failed, or of any other of a process that died, is not known: it may
// be in a cache that has lost it already. The region map in memory is known, so all of it is
// written:
//
//	1  freeze   every mark up to now is to be written, the set of the failed commit and what was marked since
//	2  flush    the destination: the data of all those marks
//	3  write    every page in which something is marked, without any mark that was made after step 1
//	4  flush    the metadata
//	5  record   that the mode is rw, where a restart finds it
//	6  rw       marks are made again, unless the mode has become worse meanwhile; the frozen set is empty
//
// Death or a power loss before step 4 has ended leaves old pages, new ones and, in the slot that
// was not the current one, torn ones: every bit is true, as its data were flushed in step 2, and
// the mode that is found is ro, or what the superblock said before. From step 4 on every mark of
// step 1 is durable whatever the mode says, so that a record that got half way does no harm. If a
// step fails the mode stays ro, and what was not committed still is not.

// Repair is one repair, by the committer. record is step 5; it may block. ErrCommitPutOff: a flush
// of the destination is in flight, try again.
func (c *Core) Repair(dest Flusher, store MapStore, record func() error) error {
	if err := c.mu.freezeAll(); err != nil {
		return err
	}
	w := &commit{Core: c, dest: dest, store: store}
	err := w.writeAll()
	if err == nil {
		err = record()
	}
	if err != nil {
		c.thaw(err)
		return err
	}
	w.releasePages()
	return c.readWrite()
}

// freezeAll is step 1. The failed set itself is of no use: from here on nothing is known to be
// durable, unless everything was. It takes the lock.
func (g *guarded) freezeAll() error {
	g.Lock()
	defer g.Unlock()
	switch {
	case g.flushLost:
		return ErrFlushLost
	case g.mode != ReadOnly:
		return ErrNoRepair
	case g.flushing:
		return ErrCommitPutOff
	case g.durable > 0:
		g.putOff = true
		return ErrCommitPutOff
	}
	g.putOff = false
	g.doubt = g.doubt || !g.clean()
	g.frozen.Reset()
	g.active, g.frozen = g.frozen, g.active
	g.flushing = true
	return nil
}

// writeAll writes every page in which something is marked.
func (c *commit) writeAll() error {
	if err := c.flushDest(); err != nil {
		return err
	}
	c.img = new(bitmap.Page)
	for page := range c.regions.NrPages() {
		if !c.regions.Used(page) {
			continue
		}
		if err := c.writePage(page); err != nil {
			return err
		}
	}
	return c.flushStore()
}

// readWrite is step 6.
func (c *Core) readWrite() (err error) {
	c.mu.Lock()
	c.mu.doubt = false
	if !c.mu.heal() {
		err = ErrNoRepair
	}
	c.mu.Unlock()
	c.thaw(nil)
	c.event()
	return err
}
