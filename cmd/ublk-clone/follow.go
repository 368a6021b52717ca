package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

func (p *program) eventsCommand() *cli.Command {
	return &cli.Command{
		Name: "events", Usage: "print what happens to clones, as it happens", ArgsUsage: "[NAME]", Action: p.events,
		Description: `One line for each event, until interrupted or the clone is deleted. Kinds: started,
settings, source (opened again), source-error and dest-error (the first of a burst), stalled, resumed, mode, hydrated,
finished (the last one).`,
		Flags: []cli.Flag{outputFlag("json, an object a line")},
	}
}

func (p *program) events(c *cli.Context) error {
	output, err := form(c, "json")
	if err != nil {
		return err
	}
	args, err := words(c, 0, 1)
	if err != nil {
		return err
	}
	show := func(ev event) error { return p.printEvent(ev, output) }
	if len(args) == 1 {
		if err := checkName(args[0]); err != nil {
			return err
		}
		err := p.follow(c.Context, args[0], nil, show)
		if errors.Is(err, errDeleted) {
			return nil
		}
		return err
	}
	return p.followAll(c.Context, show)
}

func (p *program) printEvent(ev event, output string) error {
	if output != "" {
		return encodeLine(p.out, struct {
			Schema string `json:"schema"`
			event
		}{schema, ev})
	}
	_, err := fmt.Fprintf(p.out, "%s  %s  %s  %s\n", ev.Time.Local().Format(time.DateTime), ev.Clone, ev.Kind, ev.Text)
	return err
}

// follow shows the events of a clone behind number after, nil for those to come, until ctx ends or show
// or the clone does.
func (p *program) follow(ctx context.Context, name string, after *uint64, show func(event) error) error {
	for ctx.Err() == nil {
		wait := pollLimit
		if end, ok := ctx.Deadline(); ok {
			wait = max(0, min(wait, time.Until(end)))
		}
		ans, err := p.dir.call(name, request{Verb: verbEvents, After: after, WaitMS: wait.Milliseconds()}, askLimit)
		if err != nil {
			return p.lost(name, after != nil, err)
		}
		for _, ev := range ans.Events {
			if err := show(ev); err != nil {
				return err
			}
		}
		if after != nil && len(ans.Events) == 0 {
			pause(ctx, pollPause) // too many wait at that daemon
		}
		after = &ans.Last
	}
	return ctx.Err()
}

// errDeleted ends a follow, with exit code 3, whose clone was deleted in order.
var errDeleted = errors.New("it was deleted meanwhile")

// lost says why a daemon does not answer any more: it removes the definition before it ends in order.
func (p *program) lost(name string, answered bool, err error) error {
	if _, gone := p.dir.load(name); answered && exit.Code(gone) == exit.NoClone {
		return &exit.Error{Code: exit.NoClone, Doing: "follow clone", Object: name, Cause: errDeleted, Next: "`ublk-clone list` shows the clones."}
	}
	return err
}

// pause ends early if ctx does.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// followAll shows the events of all clones, also of those to come, until ctx ends or show fails.
func (p *program) followAll(ctx context.Context, show func(event) error) error {
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
		names, err := p.dir.names()
		if err != nil {
			return err
		}
		mu.Lock()
		for _, name := range names {
			if following[name] || !p.dir.alive(name) {
				continue
			}
			following[name] = true
			guard.Go("follow "+name, func() {
				_ = p.follow(ctx, name, after, one) // it ends with the clone
				mu.Lock()
				defer mu.Unlock()
				delete(following, name)
			})
		}
		mu.Unlock()
		pause(ctx, pollPause)
	}
	return context.Cause(ctx)
}

// errSeen ends a follow.
var errSeen = errors.New("event seen")

// waitFinished returns when the clone is finished, which is its last event; exit code 3 if it was deleted instead.
func (p *program) waitFinished(ctx context.Context, name string, limit time.Duration) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err := p.follow(ctx, name, nil, func(ev event) error {
		if ev.Kind == eventFinished {
			return errSeen
		}
		return nil
	})
	switch {
	case errors.Is(err, errSeen):
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return &exit.Error{Code: exit.Timeout, Doing: "wait for the end of clone", Object: name, Cause: fmt.Errorf("not finished within %s", limit),
			Next: "`ublk-clone finish " + name + "` finishes one that is hydrated."}
	}
	return err
}

// waitEvent shows the events of a clone behind number after, nil for those to come, as soon as there is one.
func (p *program) waitEvent(ctx context.Context, name string, after *uint64, limit time.Duration, show func(event) error) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err := p.follow(ctx, name, after, func(ev event) error {
		if err := show(ev); err != nil {
			return err
		}
		return errSeen
	})
	switch {
	case errors.Is(err, errSeen):
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return &exit.Error{Code: exit.Timeout, Doing: "wait for an event of clone", Object: name, Cause: fmt.Errorf("none within %s", limit)}
	}
	return err
}
