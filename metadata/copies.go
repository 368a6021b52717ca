package metadata

import (
	"fmt"
	"sync"
)

// copies are the two copies of the superblock, and which of them is written next.
type copies struct {
	// shown is a copy of sb, for those who must not wait for the device. A leaf lock.
	shown struct {
		sync.Mutex
		sb Superblock
	}

	sb        Superblock // as last written with success
	raw       []byte     // the block it came from, for bytes that we do not know
	sequence  uint64     // last superblock sequence tried
	safe      int        // a copy that is known to be good and flushed, once it is secured
	unsecured []byte     // that copy as it was found, until it was written again; nil: it is secured
	flagged   bool       // a copy on disk has, or may have after a failed Update, the clean flag
}

// adopt takes over a valid superblock.
func (c *copies) adopt(sb Superblock, raw []byte) {
	c.raw, c.flagged, c.sequence = raw, sb.Clean, sb.Sequence
	c.set(sb)
}

// Superblock returns a copy of the superblock as it was last written. It never waits for the
// device.
func (c *copies) Superblock() Superblock {
	c.shown.Lock()
	defer c.shown.Unlock()
	return c.shown.sb
}

// set takes what was read or written.
func (c *copies) set(sb Superblock) {
	c.sb = sb
	c.shown.Lock()
	defer c.shown.Unlock()
	c.shown.sb = sb
}

// write writes sb to both copies; see Update for the steps.
func (c *copies) write(m *medium, sb Superblock, flush func() error) error {
	if err := c.secure(m, flush); err != nil { // 0
		return err
	}
	c.sequence = sb.Sequence // used up, whether or not it gets there
	c.flagged = c.flagged || sb.Clean
	for range 2 {
		i := 1 - c.safe
		copy(m.block, c.raw)
		sb.encode(m.block, copyOffset(i))
		if err := m.dev.WriteAt(m.block, copyOffset(i)); err != nil { // 1, 3
			return fmt.Errorf("write superblock copy %d: %w", i, err)
		}
		if err := flush(); err != nil { // 2, 4
			return fmt.Errorf("flush superblock copy %d: %w", i, err)
		}
		c.safe = i
	}
	copy(c.raw, m.block)
	c.flagged = sb.Clean
	c.set(sb)
	return nil
}

// secure makes the safe copy durable before the other one is touched, by writing it again as it was
// found. See "The superblock copy that is overwritten" in the package comment.
func (c *copies) secure(m *medium, flush func() error) error {
	if c.unsecured == nil {
		return nil
	}
	copy(m.block, c.unsecured)
	if err := m.dev.WriteAt(m.block, copyOffset(c.safe)); err != nil {
		return fmt.Errorf("write superblock copy %d again: %w", c.safe, err)
	}
	if err := flush(); err != nil {
		return fmt.Errorf("flush superblock copy %d: %w", c.safe, err)
	}
	c.unsecured = nil
	return nil
}
