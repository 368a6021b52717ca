package main

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

func (e *fakeEngine) drain(time.Duration) error { e.drained++; return e.hangs }
func (e *fakeEngine) goOn()                     {}
func (e *fakeEngine) mayReplace(runDir) error   { return e.unfit }

// TestLeaveThatHangs: a daemon that cannot come to rest says so and goes on, whoever asks it to leave; later it can.
func TestLeaveThatHangs(t *testing.T) {
	e := newFakeEngine()
	e.hangs = &exit.Error{Code: exit.Timeout, Doing: "leave", Object: e.path, Cause: errors.New("3 reads of the source are in flight")}
	d := newDaemon("", start{Definition: definition{Name: "c"}}, e, zerolog.Nop())
	d.enter(phaseUp)
	signals, ended := make(chan os.Signal, 1), make(chan error, 1)
	go func() { ended <- d.live(signals) }()
	signals <- syscall.SIGTERM
	for _, wait := range []int64{0, 1000} { // a request of the previous release, and one of this
		if ans := d.answer(t.Context(), request{Verb: verbLeave, WaitMS: wait}); ans.Error == nil || ans.Error.Code != exit.Timeout {
			t.Errorf("a leave within %d ms is answered with %+v", wait, ans)
		}
	}
	if ans := d.answer(t.Context(), request{Verb: verbStatus}); ans.Status == nil {
		t.Errorf("status is answered with %+v", ans)
	}
	if d.keep || e.drained != 3 {
		t.Errorf("it would leave its device: %t; it has tried to rest %d times", d.keep, e.drained)
	}
	go func() { // which has been answered, so that the daemon waits for the next
		d.stops <- stopRequest{ctx: t.Context(), verb: verbFinishable, reply: make(chan error, 1)}
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

// TestAges: a request is as old as the time for which it has been seen, and a queue that moves has none that is old.
func TestAges(t *testing.T) {
	a := ages{oldest: make([]uint64, 2), since: make([]time.Time, 2)}
	from := time.Now()
	for i, c := range []struct {
		queue  int
		oldest uint64
		after  time.Duration
		age    time.Duration
	}{
		{0, 7, 0, 0}, {1, 7, time.Second, 0}, {0, 7, 2 * time.Second, 2 * time.Second}, {0, 8, 3 * time.Second, 0},
		{1, 7, 3 * time.Second, 2 * time.Second}, {1, 0, 4 * time.Second, 0}, {1, 0, 5 * time.Second, 0}, {1, 9, 6 * time.Second, 0},
	} {
		if age := a.see(c.queue, work{oldest: c.oldest}, from.Add(c.after)); age != c.age {
			t.Errorf("look %d: %v old, expected %v", i, age, c.age)
		}
	}
}

// TestWork: what a lane tells of its requests, by their tags.
func TestWork(t *testing.T) {
	g := gate{numbers: make([]uint64, 4)}
	for _, tag := range []int{2, 0, 3} {
		g.begin(tag)
	}
	if w := g.look(); w != (work{oldest: 1, requests: 3}) {
		t.Errorf("of three: %+v", w)
	}
	g.end(2)
	g.begin(2)
	if w := g.look(); w != (work{oldest: 2, requests: 3}) {
		t.Errorf("when the first was answered and its tag used again: %+v", w)
	}
	for tag := range 4 {
		if g.numbers[tag] != 0 {
			g.end(tag)
		}
	}
	if w := g.look(); w != (work{}) {
		t.Errorf("of none: %+v", w)
	}
}
