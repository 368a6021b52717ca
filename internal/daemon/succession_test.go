package daemon

import (
	"context"
	"errors"
	"testing"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/testkit"
)

// TestReplace: a daemon that replaces another begins when that has left, and not at all if it stays
// or the clone is another by then.
func TestReplace(t *testing.T) {
	refusal := &exit.Error{Code: exit.Busy, Doing: "end the daemon of", Object: "c", Cause: errors.New("another command is ending it already")}
	complaint := &exit.Error{Code: exit.Metadata, Doing: "commit", Object: "meta", Cause: errors.New("input/output error")}
	for _, c := range []struct {
		name   string
		answer *exit.Error
		old    bool // of the previous release: it refuses a leave with a limit
		unfit  bool // the successor could not serve
		leaves bool
		def    definition.Definition // by then
		code   int
		warned bool
	}{
		{name: "it leaves", leaves: true, def: definition.Definition{Name: "c", Source: "/dev/a"}},
		{name: "one of the previous release leaves", old: true, leaves: true, def: definition.Definition{Name: "c", Source: "/dev/a"}},
		{name: "one of the previous release stays", old: true, answer: refusal, def: definition.Definition{Name: "c", Source: "/dev/a"}, code: exit.Busy},
		{name: "the successor could not serve", unfit: true, def: definition.Definition{Name: "c", Source: "/dev/a"}, code: exit.Metadata},
		{name: "it leaves with an error", answer: complaint, leaves: true, def: definition.Definition{Name: "c", Source: "/dev/a"}, warned: true},
		{name: "it stays", answer: refusal, def: definition.Definition{Name: "c", Source: "/dev/a"}, code: exit.Busy},
		{name: "it stays with an error", answer: complaint, def: definition.Definition{Name: "c", Source: "/dev/a"}, code: exit.Metadata},
		{name: "the clone is another", leaves: true, def: definition.Definition{Name: "c", Source: "/dev/b"}, code: exit.Busy},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // one that stays is waited for
			var old *control.NameLock
			dir := testkit.ServeRequests(t, func(_ context.Context, r control.Request) control.Answer {
				if r.Verb != control.VerbLeave || c.unfit {
					t.Errorf("asked for %s", r.Verb)
				}
				if c.old && r.WaitMS != 0 {
					return control.Answer{Error: control.ToWire(&exit.Error{Code: exit.Usage, Doing: "read control request", Cause: errors.New("nothing is to be waited for")})}
				}
				if c.old == (r.WaitMS != 0) {
					t.Errorf("it may take %d ms", r.WaitMS)
				}
				if c.leaves {
					if err := old.Release(); err != nil {
						t.Error(err)
					}
				}
				if c.answer == nil {
					return control.Answer{}
				}
				return control.Answer{Error: control.ToWire(c.answer)}
			})
			old, err := dir.Acquire("c")
			if err != nil {
				t.Fatal(err)
			}
			if err := dir.Store(&c.def); err != nil {
				t.Fatal(err)
			}
			e := newFakeEngine()
			if c.unfit {
				e.unfit = complaint
			}
			d := New(dir, definition.Start{Definition: definition.Definition{Name: "c", Source: "/dev/a"}, Recover: true, Replace: true}, e, zerolog.Nop())
			err = d.takeName()
			if err == nil {
				err = d.clearUp("c")
			}
			if exit.Code(err) != c.code || e.warned != c.warned {
				t.Errorf("%v with code %d, warned %v; expected code %d, warned %v", err, exit.Code(err), e.warned, c.code, c.warned)
			}
			if (d.lock != nil) != c.leaves {
				t.Errorf("the name is locked: %v", d.lock != nil)
			}
			if !c.leaves && !dir.Alive("c") {
				t.Error("who stays has lost the name")
			}
		})
	}
}
