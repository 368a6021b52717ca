package engine

import (
	"context"
	"errors"
	"sync"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
)

// settings are those that are in force. Any goroutine may read and change them.
type settings struct {
	mu struct {
		sync.Mutex
		now definition.Settings
	}
}

func (s *settings) get() definition.Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.now
}

func (s *settings) set(now definition.Settings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.now = now
}

// change makes a change and tells of it before anybody makes the next. It says whether that makes any difference.
func (s *settings) change(c definition.Change, tell func(definition.Settings)) (different bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.mu.now
	c.Apply(&s.mu.now)
	tell(s.mu.now)
	return s.mu.now != was
}

// Configure makes a change of the settings, or refuses it as a whole, and writes it down. It does not wait longer for
// the metadata than ctx: the next superblock that is written has the change.
func (e *Engine) Configure(ctx context.Context, c definition.Change) error {
	if c.DiscardPassdown != nil && *c.DiscardPassdown && e.dest.noPassdown != "" {
		return &exit.Error{Code: exit.Dest, Doing: "switch on discard passdown to", Object: e.dest.Path(), Cause: errors.New(e.dest.noPassdown),
			Next: "Nothing was changed."}
	}
	different := e.settings.change(c, func(s definition.Settings) {
		e.lanes.tellCore(s)
		e.lanes.background.Configure(s.ForHydrator())
	})
	if different {
		e.happened.Add(control.EventSettings, c.String())
	}
	err := e.session.committer.Save(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return &exit.Error{Code: exit.Timeout, Doing: "write the settings down in", Object: e.start.Definition.Metadata, Cause: errors.New("the metadata does not answer"),
			Next: "The change is in effect, and is written down as soon as the metadata answers."}
	case err != nil:
		return explain.Metadata("keep the settings in", e.start.Definition.Metadata, err)
	}
	return nil
}
