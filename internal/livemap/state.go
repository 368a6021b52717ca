package livemap

import (
	"bytes"
	"sync/atomic"
)

// State of the clone as its last daemon left it.
type State struct {
	Commit    uint64 // sequence of the last commit
	Mode      uint8  // 0 is rw
	FlushLost bool   // a flush of the destination has failed
	Loaded    bool   // all that the metadata holds is in the map
}

// words is the state as it lies in memory, behind the fixed part. Any thread sets it.
type words struct {
	_         [64]byte
	commit    atomic.Uint64
	mode      atomic.Uint32
	flushLost atomic.Uint32
	events    atomic.Uint64
	loaded    atomic.Uint32
	newer     atomic.Uint32 // 1 + which copy of the superblock counts; 0: none

	// Of version 2 from here on, and 0 where a daemon of before has made the map.
	zeros     atomic.Uint32 // there are bits beside the map (zeros.go)
	loadedToo atomic.Uint32 // as loaded, with those bits

	life atomic.Uint32 // a Life
}

// State is what the last daemon has set.
func (w *words) State() State {
	return State{
		Commit: w.commit.Load(), Mode: uint8(w.mode.Load()),
		FlushLost: w.flushLost.Load() != 0, Loaded: w.loaded.Load() != 0 || w.loadedToo.Load() != 0,
	}
}

// SetCommit notes the sequence of a commit that has succeeded.
func (w *words) SetCommit(sequence uint64) { w.commit.Store(sequence) }

// SetState notes mode and failed flush. They get better only by an explicit verb (I10), the latter
// never.
func (w *words) SetState(mode uint8, flushLost bool) {
	w.mode.Store(uint32(mode))
	if flushLost {
		w.flushLost.Store(1)
	}
}

// Events is the number of the last event that a daemon of the session has told of.
func (w *words) Events() uint64 { return w.events.Load() }

// SetEvents notes it.
func (w *words) SetEvents(last uint64) { w.events.Store(last) }

// Life is what was noted last.
func (w *words) Life() Life { return Life(w.life.Load()) }

// SetLife notes it.
func (w *words) SetLife(l Life) { w.life.Store(uint32(l)) }

// copies are the two places of the superblock, behind the state's block, and the word that says
// which of them counts.
type copies struct {
	newer  *atomic.Uint32
	blocks []byte
}

// SetSuperblock keeps a copy of the superblock, of SuperblockBytes. One caller at a time.
func (c *copies) SetSuperblock(b []byte) {
	next := c.newer.Load() % 2 // the other one, which a death in between leaves as it is
	copy(c.superblock(next), b)
	c.newer.Store(1 + next)
}

// Superblock is the copy that SetSuperblock has kept, nil if there is none.
func (c *copies) Superblock() []byte {
	newer := c.newer.Load()
	if newer == 0 || newer > 2 {
		return nil
	}
	return bytes.Clone(c.superblock(newer - 1))
}

func (c *copies) superblock(i uint32) []byte {
	return c.blocks[i*block:][:block]
}
