package main

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// commitInterval is how long a mark waits for a commit that nobody asks for.
const commitInterval = time.Second

// counterInterval is how often the superblock's counters are brought up to date while there is something to
// commit anyway. They are statistics; a crash costs what came since.
const counterInterval = 30 * time.Second

// committer is the goroutine that commits the region map and writes the superblock: nobody else touches the
// store. It may block.
type committer struct {
	core  *clone.Core
	dest  clone.Flusher
	store clone.MapStore
	log   zerolog.Logger
	// update changes the superblock; refresh brings its counters, settings and marks up to date.
	update  func(func(*metadata.Superblock) error) error
	refresh func(*metadata.Superblock) error
	sample  *destSample // nil: none is kept

	wanted chan struct{} // somebody waits for a commit
	tasks  chan task     // something else is to be done with the store now
	quit   chan struct{}
	left   chan struct{}

	complete bool // written as such
	mode     clone.Mode
	written  time.Time // of the counters
}

// task is one for the committer's goroutine.
type task struct {
	do   func() error
	done chan error
}

func newCommitter(log zerolog.Logger) *committer {
	return &committer{
		log:    log,
		wanted: make(chan struct{}, 1),
		tasks:  make(chan task),
		quit:   make(chan struct{}),
		left:   make(chan struct{}),
	}
}

// kick says that somebody waits for a commit. It never blocks.
func (c *committer) kick() {
	select {
	case c.wanted <- struct{}{}:
	default:
	}
}

// run commits when it is asked to, and every second when there is something to commit.
func (c *committer) run() {
	defer close(c.left)
	tick := time.NewTicker(commitInterval)
	defer tick.Stop()
	c.written = time.Now()
	for {
		select {
		case <-c.wanted:
			c.commit()
		case <-tick.C:
			if c.core.Dirty() && c.core.Mode() == clone.ReadWrite {
				c.commit()
			}
		case t := <-c.tasks:
			t.done <- t.do()
		case <-c.quit:
			return
		}
	}
}

// commit is one commit, and what the superblock has to say about it.
func (c *committer) commit() {
	if c.sample.begin() {
		c.core.WantFlush()
	}
	err := c.core.Commit(c.dest, c.store)
	sampled := c.sample.end(err)
	if err != nil && c.core.Mode() != c.mode {
		c.log.Error().Err(err).Msg("commit failed: the metadata are read-only from now on")
	}
	changed := sampled || c.core.Complete() != c.complete || c.core.Mode() != c.mode
	c.complete, c.mode = c.core.Complete(), c.core.Mode()
	if !changed && time.Since(c.written) < counterInterval {
		return
	}
	c.written = time.Now()
	if err := c.update(c.refresh); err != nil {
		c.log.Error().Err(err).Msg("write superblock")
		c.core.SetMode(clone.ReadOnly)
		c.mode = clone.ReadOnly
	}
}

// save writes the superblock now.
func (c *committer) save(ctx context.Context) error {
	return c.do(ctx, func() error { return c.update(c.refresh) })
}

// do does something on the committer's goroutine; nothing after that has left. When ctx ends what has not begun is
// dropped, and what has begun goes on without being waited for: it may hang with the metadata.
func (c *committer) do(ctx context.Context, what func() error) error {
	t := task{do: what, done: make(chan error, 1)}
	select {
	case c.tasks <- t:
	case <-c.left:
		return nil
	case <-ctx.Done():
		return still(ctx)
	}
	select {
	case err := <-t.done:
		return err
	case <-ctx.Done():
		return still(ctx)
	}
}

// stop ends the goroutine; whoever stops it commits what is left with close.
func (c *committer) stop() {
	close(c.quit)
	<-c.left
}
