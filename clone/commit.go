package clone

import (
	"fmt"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// MapStore writes pages of the region map, as metadata.Store does. WritePage need not be durable
// before Flush has succeeded; both may block.
type MapStore interface {
	WritePage(page uint64, img *bitmap.Page) error
	Flush() error
}

// A commit makes marks durable (I4). Whoever sees the process die or the power go between any two
// steps finds a map of which every bit is true, because a bit reaches the metadata only in step 3,
// when its data are already durable:
//
//	1  freeze   what is marked since the last commit becomes the frozen set; who waits now is served
//	2  flush    the destination: the data of all frozen marks, and of all answered writes
//	3  write    the pages of the frozen set, without any mark that was made after step 1
//	4  flush    the metadata
//	5  answer   who waited; the frozen set is empty
//
// If a step fails, the frozen set stays as it is: nothing of it counts as committed, the mode
// becomes ro and no commit follows, unless a Repair ends that. That includes step 2: the kernel
// reports a failed flush once, and a second one that succeeds proves nothing about the bytes that
// the first one lost (H24).

// Commit is one commit, with nothing marked and somebody waiting just a flush of the destination,
// if it needs one.
// One caller at a time: the committer. An error has been acted on already and is for the log. While
// a lane flushes the destination, or writes it durably, it is ErrCommitPutOff: the end of that
// kicks, if somebody waits.
func (c *Core) Commit(dest Flusher, store MapStore) error {
	served, work, err := c.mu.freeze()
	if work {
		err = (&commit{Core: c, dest: dest, store: store}).write()
		c.thaw(err)
	}
	for r := served.head; r != nil; r = r.next {
		if r.after == endCommit {
			r.err = err
		}
	}
	wake(served)
	return err
}

// WantFlush makes the next Commit flush the destination though nothing is marked and nobody waits.
func (c *Core) WantFlush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.flushWanted = true
	c.unflushed.changed()
}

// freeze is step 1; work says that there is something to do. In a mode that allows no commit of
// marks whoever waited for one gets the error. It takes the lock.
func (g *guarded) freeze() (served requestList, work bool, err error) {
	g.Lock()
	defer g.Unlock()
	if g.flushing {
		return served, false, ErrCommitPutOff
	}
	if g.putOff = g.durable > 0; g.putOff {
		return served, false, ErrCommitPutOff
	}
	served = g.waiters.take()
	if err := g.committable(); err != nil {
		return served, false, err
	}
	g.active, g.frozen = g.frozen, g.active
	g.flushing = !g.frozen.Empty() || !served.empty() || g.flushWanted
	g.flushWanted = false
	return served, g.flushing, nil
}

// commit is a commit, or a repair, that writes: steps 2 to 4.
type commit struct {
	*Core
	dest  Flusher
	store MapStore
	img   *bitmap.Page // of the page that is being written
}

// write writes the frozen set.
func (c *commit) write() error {
	empty := c.mu.frozen.Empty()
	if empty && !c.unflushed.take() {
		return nil
	}
	if err := c.flushDest(); err != nil || empty {
		return err
	}
	c.img = new(bitmap.Page)
	if err := c.mu.frozen.Each(c.writePage); err != nil {
		return err
	}
	if err := c.flushStore(); err != nil {
		return err
	}
	c.releasePages()
	return nil
}

func (c *commit) flushDest() error {
	c.unflushed.take()
	if err := c.dest.Flush(); err != nil {
		c.mu.Lock()
		c.mu.loseFlush()
		c.mu.Unlock()
		return fmt.Errorf("flush destination: %w", err)
	}
	return nil
}

// writePage writes a page without what was marked after the freeze.
func (c *commit) writePage(page uint64) error {
	c.mu.Lock()
	c.regions.DurableImage(page, c.mu.active, c.img)
	c.mu.Unlock()
	if err := c.store.WritePage(page, c.img); err != nil {
		return fmt.Errorf("write map page %d: %w", page, err)
	}
	return nil
}

func (c *commit) flushStore() error {
	if err := c.store.Flush(); err != nil {
		return fmt.Errorf("flush metadata: %w", err)
	}
	return nil
}

// releasePages gives back the memory of the pages that this commit has made durably hydrated, or
// zero, throughout (I9).
func (c *commit) releasePages() {
	if c.memory.release == nil {
		return
	}
	_ = c.mu.frozen.Each(func(page uint64) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.mu.active.Touches(page) {
			c.memory.give(page, &c.mu.claims)
		}
		return nil
	})
}

// thaw is step 5 for the set; who waited is answered by Commit.
func (c *Core) thaw(err error) {
	c.mu.Lock()
	c.mu.flushing = false
	if err != nil {
		c.mu.setMode(ReadOnly)
		c.mu.Unlock()
		c.event()
		return
	}
	c.mu.frozen.Reset()
	done := !c.complete.Load() && c.mu.nrDurable(c.regions) == c.geo.Regions()
	if done { // every region is hydrated: no claim will be opened any more
		c.complete.Store(true)
		c.mu.active.Drop()
		c.mu.frozen.Drop()
	}
	c.mu.Unlock()
	if done {
		c.event()
	}
}
