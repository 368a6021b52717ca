package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

func (p *program) eventsCommand() *cli.Command {
	return &cli.Command{
		Name: "events", Usage: "print what happens to clones, as it happens", ArgsUsage: "[NAME]", Action: p.events,
		Description: `One line for each event, until interrupted or the clone is deleted. Kinds: started,
settings, source (opened again), source-error and dest-error (the first of a burst), stalled, resumed, mode, hydrated, request-refused,
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
	show := func(ev control.Event) error { return p.printEvent(ev, output) }
	if len(args) == 1 {
		if err := definition.CheckName(args[0]); err != nil {
			return err
		}
		err := p.dir.Follow(c.Context, args[0], nil, show)
		if errors.Is(err, control.ErrDeleted) {
			return nil
		}
		return err
	}
	return p.dir.FollowAll(c.Context, show)
}

func (p *program) printEvent(ev control.Event, output string) error {
	if output != "" {
		return encodeLine(p.out, struct {
			Schema string `json:"schema"`
			control.Event
		}{control.Schema, ev})
	}
	_, err := fmt.Fprintf(p.out, "%s  %s  %s  %s\n", ev.Time.Local().Format(time.DateTime), ev.Clone, ev.Kind, ev.Text)
	return err
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
	err := p.dir.Follow(ctx, name, nil, func(ev control.Event) error {
		if ev.Kind == control.EventFinished {
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
func (p *program) waitEvent(ctx context.Context, name string, after *uint64, limit time.Duration, show func(control.Event) error) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err := p.dir.Follow(ctx, name, after, func(ev control.Event) error {
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
