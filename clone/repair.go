package clone

import (
	"errors"
	"fmt"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// ErrNoRepair: the mode is one that a repair does not end.
var ErrNoRepair = errors.New("the mode is not ro, or for another reason than the metadata")

// A repair ends mode ro when somebody says that the metadata can be written again (I10). What they hold of the
// commit that has failed, or of any other of a process that died, is not known: it may be in a cache that has lost
// it already. The region map in memory is known, so all of it is written:
//
//	1  freeze   every mark up to now is to be written, the set of the failed commit and what was marked since
//	2  flush    the destination: the data of all those marks
//	3  write    every page in which something is marked, without any mark that was made after step 1
//	4  flush    the metadata
//	5  record   that the mode is rw, where a restart finds it
//	6  rw       marks are made again, unless the mode has become worse meanwhile; the frozen set is empty
//
// Death or a power loss before step 4 has ended leaves old pages, new ones and, in the slot that was not the current
// one, torn ones: every bit is true, as its data were flushed in step 2, and the mode that is found is ro, or what the
// superblock said before. From step 4 on every mark of step 1 is durable whatever the mode says, so that a
// record that got half way does no harm. If a step fails the mode stays ro, and what was not committed still is not.

// Repair is one repair, by the committer. record is step 5; it may block. ErrCommitPutOff: a flush of the
// destination is in flight, try again.
func (c *Core) Repair(dest Flusher, store MapStore, record func() error) error {
	if err := c.freezeAll(); err != nil {
		return err
	}
	err := c.writeAll(dest, store)
	if err == nil {
		err = record()
	}
	if err != nil {
		c.thaw(err)
		return err
	}
	return c.readWrite()
}

// freezeAll is step 1. The failed set itself is of no use: from here on nothing is known to be durable, unless
// everything was.
func (c *Core) freezeAll() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.mu.flushLost:
		return ErrFlushLost
	case c.mu.mode != ReadOnly:
		return ErrNoRepair
	case c.mu.flushing:
		return ErrCommitPutOff
	case c.mu.durable > 0:
		c.mu.putOff = true
		return ErrCommitPutOff
	}
	c.mu.putOff = false
	c.mu.doubt = c.mu.doubt || !c.clean()
	c.mu.frozen.Reset()
	c.mu.active, c.mu.frozen = c.mu.frozen, c.mu.active
	c.mu.flushing = true
	return nil
}

// writeAll is steps 2 to 4.
func (c *Core) writeAll(dest Flusher, store MapStore) error {
	if err := c.flushDest(dest); err != nil {
		return err
	}
	var img bitmap.Page
	for page := range c.regions.NrPages() {
		if !c.regions.Used(page) {
			continue
		}
		if err := c.writePage(store, page, &img); err != nil {
			return err
		}
	}
	if err := store.Flush(); err != nil {
		return fmt.Errorf("flush metadata: %w", err)
	}
	return nil
}

// readWrite is step 6. This is the only place where the mode gets better.
func (c *Core) readWrite() (err error) {
	c.releasePages()
	c.mu.Lock()
	c.mu.doubt = false
	if c.mu.mode == ReadOnly {
		c.mu.mode = ReadWrite
		c.mode.Store(uint32(ReadWrite))
		c.keepState()
	} else {
		err = ErrNoRepair
	}
	c.mu.Unlock()
	c.thaw(nil)
	c.tell()
	return err
}
