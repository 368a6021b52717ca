package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"testing"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestFinishDefinition: the definition goes when the daemon has said that nothing is left to be
// cloned, not before, and comes back only if the clone goes on.
func TestFinishDefinition(t *testing.T) {
	t.Cleanup(func() { signal.Reset() }) // a finish ignores some
	refused := &exit.Error{Code: exit.Refused, Doing: "finish clone", Object: "data", Cause: errors.New("not in the destination yet")}
	busy := &exit.Error{Code: exit.Busy, Doing: "finish clone", Object: "data", Cause: errors.New("mounted")}
	late := &exit.Error{Code: exit.Other, Doing: "delete the device", Object: "data", Cause: errors.New("not done in time")}
	for _, c := range []struct {
		name               string
		finishable, finish error
		state              string // afterwards
		asked, there       bool   // the finish; the definition at the end
	}{
		{name: "not complete", finishable: refused, state: "hydrating", there: true},
		{name: "in use", finish: busy, state: "hydrated", asked: true, there: true},
		{name: "what comes last has failed", finish: late, state: control.StateFinishing, asked: true},
		{name: "finished", asked: true},
	} {
		p, _ := withDefinition(t, threePaths)
		path := p.defined.Path("data")
		defined := func() bool {
			_, err := os.Stat(path)
			return err == nil
		}
		asked := false
		s, err := control.Listen(p.dir.SocketPath("data"), zerolog.Nop(), func(_ context.Context, req control.Request) control.Answer {
			switch req.Verb {
			case control.VerbFinishable:
				if !defined() {
					t.Errorf("%s: the definition is gone before anybody was asked", c.name)
				}
				return control.Answer{Error: control.ToWire(c.finishable)}
			case control.VerbFinish:
				asked = true
				if defined() {
					t.Errorf("%s: the definition is there while the clone is finished", c.name)
				}
				return control.Answer{Error: control.ToWire(c.finish)}
			}
			return control.Answer{Status: &control.Status{Identity: control.Identity{Name: "data"}, Condition: control.Condition{State: c.state}}}
		})
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve()
		lock, err := p.dir.Acquire("data")
		if err == nil {
			err = p.dir.Store(&definition.Definition{Name: "data", Source: "/none/s", Dest: "/none/d", Metadata: "/none/m"})
		}
		if err != nil {
			t.Fatal(err)
		}
		err = newApp(p).Run([]string{"ublk-clone", "finish", "data"})
		if want := errors.Join(c.finishable, c.finish); exit.Code(err) != exit.Code(want) {
			t.Errorf("%s: %v, expected %v", c.name, err, want)
		}
		if asked != c.asked || defined() != c.there {
			t.Errorf("%s: asked %t, the definition is there %t", c.name, asked, defined())
		}
		released(t, lock)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
