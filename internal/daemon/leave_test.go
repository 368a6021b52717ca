package daemon

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

func (e *fakeEngine) Drain(_ time.Duration, former bool) error {
	e.drained++
	if former {
		e.former++
	}
	return e.hangs
}
func (e *fakeEngine) GoOn()                        {}
func (e *fakeEngine) MayReplace(control.Dir) error { return e.unfit }

// TestLeaveThatHangs: a daemon that cannot come to rest says so and goes on, whoever asks it to
// leave; later it can.
func TestLeaveThatHangs(t *testing.T) {
	e := newFakeEngine()
	e.hangs = &exit.Error{Code: exit.Timeout, Doing: "leave", Object: e.path, Cause: errors.New("3 reads of the source are in flight")}
	d := New("", definition.Start{Definition: definition.Definition{Name: "c"}}, e, zerolog.Nop())
	d.life.enter(phaseUp)
	signals, ended := make(chan os.Signal, 1), make(chan error, 1)
	go func() { ended <- d.live(signals) }()
	signals <- syscall.SIGTERM
	for _, limit := range []int64{0, 1000} { // a request of the previous release, and one of this
		if ans := d.answer(t.Context(), control.Request{Verb: control.VerbLeave, WaitMS: limit, LimitMS: limit}); ans.Error == nil || ans.Error.Code != exit.Timeout {
			t.Errorf("a leave within %d ms is answered with %+v", limit, ans)
		}
	}
	if ans := d.answer(t.Context(), control.Request{Verb: control.VerbStatus}); ans.Status == nil {
		t.Errorf("status is answered with %+v", ans)
	}
	if d.keep || e.drained != 3 || e.former != 1 {
		t.Errorf("it would leave its device: %t; it has tried to rest %d times, %d for the previous release", d.keep, e.drained, e.former)
	}
	go func() { // which has been answered, so that the daemon waits for the next
		d.stops <- stopRequest{ctx: t.Context(), verb: control.VerbFinishable, reply: make(chan error, 1)}
		e.hangs = nil
		signals <- syscall.SIGTERM
	}()
	select {
	case err := <-ended:
		if err != nil || !d.keep {
			t.Errorf("it ends with %v, and leaves its device: %t", err, d.keep)
		}
	case <-time.After(time.Minute):
		t.Fatal("it does not leave")
	}
}
