package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// recorder makes steps that write down what happens.
type recorder struct{ events []string }

func (r *recorder) note(format string, args ...any) {
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) steps(n, failing int) []Step {
	var list []Step
	for i := 1; i <= n; i++ {
		list = append(list, Step{
			Name: fmt.Sprint("step ", i),
			Do: func(context.Context) error {
				if i == failing {
					return fmt.Errorf("step %d fails", i)
				}
				r.note("do %d", i)
				return nil
			},
			Undo:   func() error { r.note("undo %d", i); return nil },
			Revert: func() error { r.note("revert %d", i); return nil },
		})
	}
	return list
}

func TestFailedStartTakesEverythingBack(t *testing.T) {
	const n = 4
	for failing := 1; failing <= n; failing++ {
		var r recorder
		var s List
		err := s.Run(context.Background(), r.steps(n, failing))
		var want []string
		for i := 1; i < failing; i++ {
			want = append(want, fmt.Sprint("do ", i))
		}
		for i := failing - 1; i >= 1; i-- {
			want = append(want, fmt.Sprint("revert ", i), fmt.Sprint("undo ", i))
		}
		if err == nil || err.Error() != fmt.Sprintf("step %d fails", failing) || !slices.Equal(r.events, want) {
			t.Errorf("failing at %d: %v, %q, want %q", failing, err, r.events, want)
		}
	}
}

func TestStopKeepsWhatAFailedStartRemoves(t *testing.T) {
	var r recorder
	var s List
	if err := errors.Join(s.Run(context.Background(), r.steps(2, 0)), s.Stop()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"do 1", "do 2", "undo 2", "undo 1"}; !slices.Equal(r.events, want) {
		t.Errorf("%q, want %q", r.events, want)
	}
	if err := s.Stop(); err != nil || len(r.events) != 4 {
		t.Errorf("second stop: %v, %q", err, r.events)
	}
}

func TestInterruptedStart(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var r recorder
	list := r.steps(3, 0)
	list[1].Do = func(context.Context) error { cancel(); return nil }
	var s List
	err := s.Run(ctx, list)
	if err == nil || !strings.Contains(err.Error(), "step 3: interrupted") || r.events[len(r.events)-1] != "undo 1" {
		t.Errorf("interrupted: %v, %q", err, r.events)
	}
}

func TestUndoErrorsAreToldAndDoNotStopTheRest(t *testing.T) {
	var r recorder
	list := r.steps(2, 0)
	list[1].Undo = func() error { return errors.New("flush failed") }
	var s List
	err := errors.Join(s.Run(context.Background(), list), s.Stop())
	if err == nil || !strings.Contains(err.Error(), "flush failed") || r.events[len(r.events)-1] != "undo 1" {
		t.Errorf("%v, %q", err, r.events)
	}
}

func TestUndoThatHangsEndsTheUndo(t *testing.T) {
	var r recorder
	list := r.steps(2, 0)
	release := make(chan struct{})
	defer close(release)
	list[1].Undo = func() error { <-release; return nil }
	list[1].Limit = time.Millisecond
	var s List
	err := errors.Join(s.Run(context.Background(), list), s.Stop())
	if exit.Code(err) != exit.Timeout || !errors.Is(err, errUndoLimit) || slices.Contains(r.events, "undo 1") {
		t.Errorf("%v, %q", err, r.events)
	}
}
