package steps

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/faults"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// Step is one thing that a start does and a stop takes back.
type Step struct {
	Name string
	Do   func(context.Context) error
	// Undo takes back what do did, after a failed start and at a stop. nil:
	// there is nothing to take back.
	Undo func() error
	// Revert comes before undo and after a failed start only: it removes what a
	// stop leaves, such as a file that this start has created.
	Revert func() error
	// Limit is how long undo may take; 0 is UndoLimit.
	Limit time.Duration
}

// UndoLimit is for an undo that closes a file or removes one.
const UndoLimit = 10 * time.Second

// List are the steps that were done, in order. A start that fails takes all of
// them back in reverse, and so does a stop.
type List struct {
	done  []Step
	doing atomic.Pointer[string]
}

// Current names the step that was begun last. Any goroutine may ask.
func (s *List) Current() string {
	if name := s.doing.Load(); name != nil {
		return *name
	}
	return "the beginning"
}

// Run does the steps in order. If one fails, or ctx ends, all that were done
// are taken back and the error of the step is returned, joined with those of the
// undo.
func (s *List) Run(ctx context.Context, list []Step) error {
	for i, st := range list {
		err := ctx.Err()
		if err == nil {
			s.doing.Store(&st.Name)
			err = st.Do(ctx)
		} else {
			err = &exit.Error{Code: exit.Other, Doing: st.Name, Cause: errors.New("interrupted")}
		}
		if err == nil {
			s.done = append(s.done, st)
			err = faults.Start(i + 1)
		}
		if err != nil {
			return errors.Join(err, s.takeBack(true))
		}
	}
	return nil
}

// Stop takes everything back in reverse order.
func (s *List) Stop() error { return s.takeBack(false) }

// takeBack ends at an undo that passes its limit: what comes after it may rely
// on it. The process is to end then, which gives everything else back.
func (s *List) takeBack(failed bool) error {
	var errs error
	for len(s.done) > 0 {
		st := s.done[len(s.done)-1]
		s.done = s.done[:len(s.done)-1]
		if failed && st.Revert != nil {
			errs = errors.Join(errs, st.Revert())
		}
		if st.Undo == nil {
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
func (st *Step) within() error {
	limit := st.Limit
	if limit == 0 {
		limit = UndoLimit
	}
	result := make(chan error, 1)
	guard.Go("undo: "+st.Name, func() { result <- st.Undo() })
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
		return &exit.Error{Code: exit.Timeout, Doing: "undo: " + st.Name, Cause: fmt.Errorf("%w (%s)", errUndoLimit, limit)}
	}
}
