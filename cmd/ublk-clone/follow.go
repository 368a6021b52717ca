package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

func eventsCommand(action cli.ActionFunc) *cli.Command {
	return &cli.Command{
		Name: "events", Usage: "print what happens to clones, as it happens", ArgsUsage: "[NAME]", Action: action,
		Description: `One line for each event, until interrupted or the clone is deleted. Kinds: started,
settings, source (opened again), source-error and dest-error (the first of a
burst), stalled, resumed, mode, hydrated, direct, request-refused, finish-waits,
finished (the last one).`,
		Flags: []cli.Flag{outputFlag("json, an object a line")},
	}
}

// follower has the commands that follow a clone: events, wait and watch.
type follower struct {
	dir control.Dir
	out io.Writer
}

func (f follower) events(c *cli.Context) error {
	args, output, err := wordsForm(c, 0, 1, "json")
	if err != nil {
		return err
	}
	show := func(ev control.Event) error { return printEvent(f.out, ev, output) }
	if len(args) == 1 {
		if err := definition.CheckName(args[0]); err != nil {
			return err
		}
		err := f.dir.Follow(c.Context, args[0], nil, show)
		if errors.Is(err, control.ErrDeleted) {
			return nil
		}
		return err
	}
	return f.dir.FollowAll(c.Context, show)
}

func printEvent(out io.Writer, ev control.Event, output string) error {
	if output != "" {
		return encodeLine(out, struct {
			Schema string `json:"schema"`
			control.Event
		}{control.Schema, ev})
	}
	_, err := fmt.Fprintf(out, "%s  %s  %s  %s\n", ev.Time.Local().Format(time.DateTime), ev.Clone, ev.Kind, ev.Text)
	return err
}

// errSeen ends a follow.
var errSeen = errors.New("event seen")

// waitFinished waits for a clone's last event; exit code 3 if it was deleted, not finished.
func waitFinished(ctx context.Context, dir control.Dir, name string, limit time.Duration) error {
	err := followFor(ctx, dir, name, nil, limit, func(ev control.Event) error {
		if ev.Kind == control.EventFinished {
			return errSeen
		}
		return nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return &exit.Error{Code: exit.Timeout, Doing: "wait for the end of clone", Object: name, Cause: fmt.Errorf("not finished within %s", limit),
			Next: "`ublk-clone finish " + name + "` finishes one that is hydrated."}
	}
	return err
}

// waitEvent shows the next events of a clone behind number after; nil: those to come.
func waitEvent(ctx context.Context, dir control.Dir, name string, after *uint64, limit time.Duration, show func(control.Event) error) error {
	err := followFor(ctx, dir, name, after, limit, func(ev control.Event) error {
		if err := show(ev); err != nil {
			return err
		}
		return errSeen
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return &exit.Error{Code: exit.Timeout, Doing: "wait for an event of clone", Object: name, Cause: fmt.Errorf("none within %s", limit)}
	}
	return err
}

// followFor follows a clone's events until see returns errSeen, at most for limit; 0: for ever.
func followFor(ctx context.Context, dir control.Dir, name string, after *uint64, limit time.Duration, see func(control.Event) error) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err := dir.Follow(ctx, name, after, see)
	if errors.Is(err, errSeen) {
		return nil
	}
	return err
}
