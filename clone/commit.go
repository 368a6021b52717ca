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
// If a step fails, the frozen set stays as it is: nothing of it counts as committed, the mode becomes ro and
// no commit follows, unless a Repair ends that. That includes step 2: the kernel reports a failed flush once, and
// a second one that succeeds proves nothing about the bytes that the first one lost (H24).

// Commit is one commit, with nothing marked and somebody waiting just a flush of the destination. One
// caller at a time: the committer. An error has been acted on already and is for the log. While a lane
// flushes the destination, or writes it durably, it is ErrCommitPutOff: the end of that kicks, if somebody waits.
func (c *Core) Commit(dest Flusher, store MapStore) error {
	served, work, err := c.freeze()
	if work {
		err = c.write(dest, store)
		c.thaw(err)
	}
	for r := served.head; r != nil; r = r.next {
		if r.after == endCommit {
			r.err = err
		}
	}
	c.wake(served)
	return err
}

// WantFlush makes the next Commit flush the destination though nothing is marked and nobody waits.
func (c *Core) WantFlush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.flushWanted = true
}

// freeze is step 1; work says that there is something to do. In a mode that allows no commit of marks
// whoever waited for one gets the error.
func (c *Core) freeze() (served requestList, work bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.flushing {
		return served, false, ErrCommitPutOff
	}
	if c.mu.putOff = c.mu.durable > 0; c.mu.putOff {
		return served, false, ErrCommitPutOff
	}
	served = c.mu.waiters.take()
	if err := c.committable(); err != nil {
		return served, false, err
	}
	c.mu.active, c.mu.frozen = c.mu.frozen, c.mu.active
	c.mu.flushing = !c.mu.frozen.Empty() || !served.empty() || c.mu.flushWanted
	c.mu.flushWanted = false
	return served, c.mu.flushing, nil
}

// committable says why a commit cannot succeed, if so. In mode ro there may still be nothing to commit,
// and then a flush is enough. mu must be held.
func (c *Core) committable() error {
	switch {
	case c.mu.flushLost:
		return ErrFlushLost
	case c.mu.mode != ReadWrite && !c.clean():
		return ErrReadOnly
	}
	return nil
}

// write is steps 2 to 4.
func (c *Core) write(dest Flusher, store MapStore) error {
	if err := c.flushDest(dest); err != nil {
		return err
	}
	if c.mu.frozen.Empty() {
		return nil
	}
	var img bitmap.Page
	err := c.mu.frozen.Each(func(page uint64) error { return c.writePage(store, page, &img) })
	if err != nil {
		return err
	}
	if err := store.Flush(); err != nil {
		return fmt.Errorf("flush metadata: %w", err)
	}
	c.releasePages()
	return nil
}

func (c *Core) flushDest(dest Flusher) error {
	if err := dest.Flush(); err != nil {
		c.mu.Lock()
		c.loseFlush()
		c.mu.Unlock()
		return fmt.Errorf("flush destination: %w", err)
	}
	return nil
}

// writePage writes a page without what was marked after the freeze; img is for the image.
func (c *Core) writePage(store MapStore, page uint64, img *bitmap.Page) error {
	c.mu.Lock()
	c.regions.DurableImage(page, c.mu.active, img)
	c.mu.Unlock()
	if err := store.WritePage(page, img); err != nil {
		return fmt.Errorf("write map page %d: %w", page, err)
	}
	return nil
}

// releasePages gives back the memory of the pages that this commit has made durably hydrated, or zero, throughout (I9).
func (c *Core) releasePages() {
	if c.release == nil {
		return
	}
	_ = c.mu.frozen.Each(func(page uint64) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.mu.active.Touches(page) && !c.regions.Release(page, func(memory *bitmap.Page) { c.release(page, memory) }) {
			c.releaseZero(page)
		}
		return nil
	})
}

// releaseZero gives back the memory of a page that is durably zero throughout, unless a claim is open there: its end may
// mark the page. Whoever claims next takes the memory again (claimFor). mu must be held.
func (c *Core) releaseZero(page uint64) {
	first := page * bitmap.RegionsPerPage
	c.touching.Lock()
	defer c.touching.Unlock()
	if !c.touched[page].Load() || c.mu.claims.find(first, first+bitmap.RegionsPerPage) != nil {
		return
	}
	if c.regions.ReleaseZero(page, func(memory *bitmap.Page) { c.release(page, memory) }) {
		c.touched[page].Store(false)
	}
}

// thaw is step 5 for the set; who waited is answered by Commit.
func (c *Core) thaw(err error) {
	c.mu.Lock()
	c.mu.flushing = false
	if err != nil {
		c.setMode(ReadOnly)
		c.mu.Unlock()
		c.tell()
		return
	}
	c.mu.frozen.Reset()
	done := !c.complete.Load() && c.durableHydrated() == c.geo.Regions()
	if done { // every region is hydrated: no claim will be opened any more
		c.complete.Store(true)
		c.mu.active.Drop()
		c.mu.frozen.Drop()
	}
	c.mu.Unlock()
	if done {
		c.tell()
	}
}

// waitCommit defers r until a commit that begins from now on has ended, or says why none will.
func (c *Core) waitCommit(r *Request) error {
	c.mu.Lock()
	if err := c.committable(); err != nil {
		c.mu.Unlock()
		return err
	}
	r.after = endCommit
	c.mu.waiters.push(r)
	c.mu.Unlock()
	c.kick()
	return nil
}
