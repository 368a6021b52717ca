package committer

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/identity"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// commitInterval is how long a mark waits for a commit that nobody asks for.
const commitInterval = time.Second

// counterInterval is how often the superblock's counters are brought up to date while there is
// something to commit anyway. They are statistics; a crash costs what came since.
const counterInterval = 30 * time.Second

// Committer is the goroutine that commits the region map and writes the superblock: nobody else
// touches the store. It may block.
type Committer struct {
	Core  *clone.Core
	Dest  clone.Flusher
	Store clone.MapStore
	log   zerolog.Logger
	// Update changes the superblock; refresh brings its counters, settings and marks up to date.
	Update  func(func(*metadata.Superblock) error) error
	Refresh func(*metadata.Superblock) error
	Sample  *identity.DestSample // nil: none is kept

	wanted chan struct{} // somebody waits for a commit
	tasks  chan task     // something else is to be done with the store now
	quit   chan struct{}
	left   chan struct{}

	Complete bool // written as such
	Mode     clone.Mode
	written  time.Time // of the counters
}

// task is one for the committer's goroutine.
type task struct {
	do   func() error
	done chan error
}

func NewCommitter(log zerolog.Logger) *Committer {
	return &Committer{
		log:    log,
		wanted: make(chan struct{}, 1),
		tasks:  make(chan task),
		quit:   make(chan struct{}),
		left:   make(chan struct{}),
	}
}

// Kick says that somebody waits for a commit. It never blocks.
func (c *Committer) Kick() {
	select {
	case c.wanted <- struct{}{}:
	default:
	}
}

// Run commits when it is asked to, and every second when there is something to commit.
func (c *Committer) Run() {
	defer close(c.left)
	tick := time.NewTicker(commitInterval)
	defer tick.Stop()
	c.written = time.Now()
	for {
		select {
		case <-c.wanted:
			c.commit()
		case <-tick.C:
			if c.Core.Dirty() && c.Core.Mode() == clone.ReadWrite {
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
func (c *Committer) commit() {
	if c.Sample.Begin() {
		c.Core.WantFlush()
	}
	err := c.Core.Commit(c.Dest, c.Store)
	sampled := c.Sample.End(err)
	if err != nil && c.Core.Mode() != c.Mode {
		c.log.Error().Err(err).Msg("commit failed: the metadata is read-only from now on")
	}
	changed := sampled || c.Core.Complete() != c.Complete || c.Core.Mode() != c.Mode
	c.Complete, c.Mode = c.Core.Complete(), c.Core.Mode()
	if !changed && time.Since(c.written) < counterInterval {
		return
	}
	c.written = time.Now()
	if err := c.Update(c.Refresh); err != nil {
		c.log.Error().Err(err).Msg("write superblock")
		c.Core.SetMode(clone.ReadOnly)
		c.Mode = clone.ReadOnly
	}
}

// Save writes the superblock now.
func (c *Committer) Save(ctx context.Context) error {
	return c.Do(ctx, func() error { return c.Update(c.Refresh) })
}

// Do does something on the committer's goroutine; nothing after that has left. When ctx ends what
// has not begun is dropped, and what has begun goes on without being waited for: it may hang with
// the metadata.
func (c *Committer) Do(ctx context.Context, what func() error) error {
	t := task{do: what, done: make(chan error, 1)}
	select {
	case c.tasks <- t:
	case <-c.left:
		return nil
	case <-ctx.Done():
		return control.Still(ctx)
	}
	select {
	case err := <-t.done:
		return err
	case <-ctx.Done():
		return control.Still(ctx)
	}
}

// Stop ends the goroutine; whoever stops it commits what is left with close.
func (c *Committer) Stop() {
	close(c.quit)
	<-c.left
}
