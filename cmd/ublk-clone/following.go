package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// follow shows the events of a clone behind number after, nil for those to come, until ctx ends or show
// or the clone does.
func (d runDir) follow(ctx context.Context, name string, after *uint64, show func(event) error) error {
	for ctx.Err() == nil {
		wait := pollLimit
		if end, ok := ctx.Deadline(); ok {
			wait = max(0, min(wait, time.Until(end)))
		}
		ans, err := d.call(name, request{Verb: verbEvents, After: after, WaitMS: wait.Milliseconds()}, askLimit)
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

// errDeleted ends a follow, with exit code 3, whose clone was deleted in order.
var errDeleted = errors.New("it was deleted meanwhile")

// lost says why a daemon does not answer any more: it removes the definition before it ends in order.
func (d runDir) lost(name string, answered bool, err error) error {
	if _, gone := d.load(name); answered && exit.Code(gone) == exit.NoClone {
		return &exit.Error{Code: exit.NoClone, Doing: "follow clone", Object: name, Cause: errDeleted, Next: "`ublk-clone list` shows the clones."}
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

// followAll shows the events of all clones, also of those to come, until ctx ends or show fails.
func (d runDir) followAll(ctx context.Context, show func(event) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // one line at a time; following is under it, too
	following := map[string]bool{}
	one := func(ev event) error {
		mu.Lock()
		defer mu.Unlock()
		err := show(ev)
		if err != nil {
			cancel(err)
		}
		return err
	}
	for after := (*uint64)(nil); ctx.Err() == nil; after = new(uint64) { // all of those that come later
		names, err := d.names()
		if err != nil {
			return err
		}
		mu.Lock()
		for _, name := range names {
			if following[name] || !d.alive(name) {
				continue
			}
			following[name] = true
			guard.Go("follow "+name, func() {
				_ = d.follow(ctx, name, after, one) // it ends with the clone
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
