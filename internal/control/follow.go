package control

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// Follow shows the events of a clone behind number after, nil for those to come, until ctx ends or
// show or the clone does.
func (d Dir) Follow(ctx context.Context, name string, after *uint64, show func(Event) error) error {
	for ctx.Err() == nil {
		wait := PollLimit
		if end, ok := ctx.Deadline(); ok {
			wait = max(0, min(wait, time.Until(end)))
		}
		ans, err := d.Call(name, Request{Verb: VerbEvents, After: after, WaitMS: wait.Milliseconds()}, AskLimit)
		if err != nil {
			return d.lost(name, after != nil, err)
		}
		for _, ev := range ans.Events {
			if err := show(ev); err != nil {
				return err
			}
		}
		if after != nil && len(ans.Events) == 0 {
			pause(ctx, followPause) // too many wait at that daemon
		}
		after = &ans.Last
	}
	return ctx.Err()
}

// followPause is between two looks for events, or for clones, where nobody can be waited for.
const followPause = 200 * time.Millisecond

// ErrDeleted ends a follow, with exit code 3, whose clone was deleted in order.
var ErrDeleted = errors.New("it was deleted meanwhile")

// lost says why a daemon does not answer any more: it removes the definition before it ends in
// order.
func (d Dir) lost(name string, answered bool, err error) error {
	if _, gone := d.Load(name); answered && exit.Code(gone) == exit.NoClone {
		return &exit.Error{Code: exit.NoClone, Doing: "follow clone", Object: name, Cause: ErrDeleted, Next: "`ublk-clone list` shows the clones."}
	}
	return err
}

// pause ends early if ctx does.
func pause(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// FollowAll shows the events of all clones, also of those to come, until ctx ends or show fails.
func (d Dir) FollowAll(ctx context.Context, show func(Event) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // one line at a time; following is under it, too
	following := map[string]bool{}
	one := func(ev Event) error {
		mu.Lock()
		defer mu.Unlock()
		err := show(ev)
		if err != nil {
			cancel(err)
		}
		return err
	}
	for after := (*uint64)(nil); ctx.Err() == nil; after = new(uint64) { // all of those that come later
		names, err := d.Names()
		if err != nil {
			return err
		}
		mu.Lock()
		for _, name := range names {
			if following[name] || !d.Alive(name) {
				continue
			}
			following[name] = true
			guard.Go("follow "+name, func() {
				_ = d.Follow(ctx, name, after, one) // it ends with the clone
				mu.Lock()
				defer mu.Unlock()
				delete(following, name)
			})
		}
		mu.Unlock()
		pause(ctx, followPause)
	}
	return context.Cause(ctx)
}
