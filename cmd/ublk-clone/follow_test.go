package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/testkit"
)

// eventServer answers as a daemon does that has only events.
func eventServer(t *testing.T) (*program, *events.Log, *bytes.Buffer) {
	t.Helper()
	l := events.NewLog("c", zerolog.Nop())
	dir := testkit.ServeRequests(t, func(ctx context.Context, req control.Request) control.Answer {
		return l.Answer(ctx, req.After, time.Duration(req.WaitMS)*time.Millisecond)
	})
	out := &bytes.Buffer{}
	return &program{out: out, errs: out, dir: dir}, l, out
}

func TestWaitForEvent(t *testing.T) {
	p, l, out := eventServer(t)
	if code := p.run(strings.Fields("ublk-clone wait c --for event --timeout 1ms")); code != exit.Timeout {
		t.Errorf("nothing happens: exit code %d: %s", code, out)
	}
	l.Add(control.EventStalled, "the source is away")
	l.Add(control.EventResumed, "again")
	out.Reset()
	if code := p.run(strings.Fields("ublk-clone wait c --for event --after 1")); code != 0 || !strings.HasSuffix(out.String(), "  c  resumed  again\n") {
		t.Errorf("exit code %d: %s", code, out)
	}
	out.Reset()
	code := p.run(strings.Fields("ublk-clone wait c --for event --after 0 -o json"))
	var got struct {
		Schema, Clone, Kind, Text string
		Seq                       uint64
		Time                      time.Time
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || code != 0 || got.Schema != control.Schema || got.Clone != "c" || got.Seq != 1 || got.Kind != control.EventStalled || got.Time.IsZero() {
		t.Errorf("exit code %d: %s (%v)", code, out, err)
	}
}

// A follower sees every event once and in order, also those that come while it prints.
func TestFollow(t *testing.T) {
	p, l, _ := eventServer(t)
	const n = 20
	l.Add(control.EventStarted, "first")
	var seen []uint64
	err := p.dir.Follow(t.Context(), "c", new(uint64), func(ev control.Event) error {
		seen = append(seen, ev.Seq)
		if ev.Seq == n {
			return errSeen
		}
		l.Add(control.EventSettings, "next")
		return nil
	})
	if !errors.Is(err, errSeen) || len(seen) != n || seen[0] != 1 || seen[n-1] != n {
		t.Errorf("followed %v, %v", seen, err)
	}
}

// A clone that is deleted ends its followers in order, one whose daemon dies does not.
func TestFollowUntilDeleted(t *testing.T) {
	for _, deleted := range []bool{true, false} {
		var dir control.Dir
		dir = testkit.ServeRequests(t, func(context.Context, control.Request) control.Answer { // the last answer
			err := os.Remove(dir.SocketPath("c"))
			if deleted {
				err = errors.Join(err, os.Remove(dir.DefinitionPath("c")))
			}
			return control.Answer{Last: 1, Error: control.ToWire(err)}
		})
		p := &program{dir: dir}
		want := exit.NoAnswer
		if deleted {
			want = exit.NoClone
		}
		after := uint64(1)
		if err := p.dir.Follow(t.Context(), "c", &after, nil); exit.Code(err) != want || errors.Is(err, control.ErrDeleted) != deleted {
			t.Errorf("deleted %v: follow: %v", deleted, err)
		}
	}
}

// `events` shows those of every clone whose daemon lives, until it is interrupted.
func TestFollowAll(t *testing.T) {
	p, l, _ := eventServer(t)
	lock, err := p.dir.Acquire("c") // as its daemon does
	if err != nil {
		t.Fatal(err)
	}
	defer released(t, lock)
	ctx, interrupt := context.WithCancel(t.Context())
	tell := func() { l.Add(control.EventMode, "text") }
	asked := time.AfterFunc(0, func() {
		for len(l.Polls) == 0 { // until it follows
			time.Sleep(time.Millisecond)
		}
		tell()
	})
	defer asked.Stop()
	var seen []control.Event
	err = p.dir.FollowAll(ctx, func(ev control.Event) error {
		seen = append(seen, ev)
		interrupt()
		return nil
	})
	if !errors.Is(err, context.Canceled) || testkit.KindsOf(seen) != control.EventMode {
		t.Errorf("followed %v, %v", seen, err)
	}
}
