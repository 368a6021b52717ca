package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// step is one thing that a start does and a stop takes back.
type step struct {
	name string
	do   func(context.Context) error
	// undo takes back what do did, after a failed start and at a stop. nil:
	// there is nothing to take back.
	undo func() error
	// revert comes before undo and after a failed start only: it removes what a
	// stop leaves, such as a file that this start has created.
	revert func() error
	// limit is how long undo may take; 0 is undoLimit.
	limit time.Duration
}

// undoLimit is for an undo that closes a file or removes one.
const undoLimit = 10 * time.Second

// steps are the steps that were done, in order. A start that fails takes all of
// them back in reverse, and so does a stop.
type steps struct {
	done  []step
	doing atomic.Pointer[string]
}

// current names the step that was begun last. Any goroutine may ask.
func (s *steps) current() string {
	if name := s.doing.Load(); name != nil {
		return *name
	}
	return "the beginning"
}

// run does the steps in order. If one fails, or ctx ends, all that were done
// are taken back and the error of the step is returned, joined with those of the
// undo.
func (s *steps) run(ctx context.Context, list []step) error {
	for i, st := range list {
		err := ctx.Err()
		if err == nil {
			s.doing.Store(&st.name)
			err = st.do(ctx)
		} else {
			err = &exit.Error{Code: exit.Other, Doing: st.name, Cause: errors.New("interrupted")}
		}
		if err == nil {
			s.done = append(s.done, st)
			err = fault(i + 1)
		}
		if err != nil {
			return errors.Join(err, s.takeBack(true))
		}
	}
	return nil
}

// stop takes everything back in reverse order.
func (s *steps) stop() error { return s.takeBack(false) }

// takeBack ends at an undo that passes its limit: what comes after it may rely
// on it. The process is to end then, which gives everything else back.
func (s *steps) takeBack(failed bool) error {
	var errs error
	for len(s.done) > 0 {
		st := s.done[len(s.done)-1]
		s.done = s.done[:len(s.done)-1]
		if failed && st.revert != nil {
			errs = errors.Join(errs, st.revert())
		}
		if st.undo == nil {
			continue
		}
		err := st.within()
		errs = errors.Join(errs, err)
		if errors.Is(err, errUndoLimit) {
			return errs
		}
	}
	return errs
}

// errUndoLimit: an undo took too long and is still under way.
var errUndoLimit = errors.New("not done in time")

// within runs undo with its limit.
func (st *step) within() error {
	limit := st.limit
	if limit == 0 {
		limit = undoLimit
	}
	result := make(chan error, 1)
	guard.Go("undo: "+st.name, func() { result <- st.undo() })
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
		return &exit.Error{Code: exit.Timeout, Doing: "undo: " + st.name, Cause: fmt.Errorf("%w (%s)", errUndoLimit, limit)}
	}
}
