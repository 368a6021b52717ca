package succession

import (
	"errors"
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
)

// pollPause is between two looks at a clone that is waited for.
const pollPause = 200 * time.Millisecond

// Hydrated returns when the clone is durably hydrated; see is shown every status. Exit codes: 8 as
// soon as hydration is stalled by the source, 9 by the destination, 10 if the metadata fails, 11
// after limit (0: none).
func Hydrated(dir control.Dir, name string, limit time.Duration, see func(*control.Status) error) error {
	var def *definition.Definition
	for begin := time.Now(); ; time.Sleep(pollPause) {
		st, err := dir.Ask(name, control.Request{Verb: control.VerbStatus}, control.AskLimit)
		if err != nil && HasFinished(def, err) {
			st, err = &control.Status{}, nil
			st.Finish(def)
		}
		if err != nil {
			return err
		}
		if err := see(st); err != nil {
			return err
		}
		done, err := hydrated(st)
		if done || err != nil {
			return err
		}
		if limit > 0 && time.Since(begin) >= limit {
			return waitError(exit.Timeout, st, fmt.Errorf("%s after %s, %s done", st.State, limit, st.DoneText(" ")))
		}
		if st.Settings.FinishAuto { // then its end is to be told from a deletion
			if there, err := dir.Load(name); err == nil {
				def = there
			}
		}
	}
}

// HasFinished says whether a clone that does not answer any more, as err says, is there no longer
// because it has finished: what def says of its layer leads to the destination. nil: nobody knows.
func HasFinished(def *definition.Definition, err error) bool {
	if code := exit.Code(err); def == nil || code != exit.NoClone && code != exit.NoAnswer {
		return false
	}
	finished, err := leftover.Finished(def)
	return finished && err == nil
}

// hydrated says whether nothing more is to be waited for, and why if that is bad.
func hydrated(st *control.Status) (bool, error) {
	switch st.State {
	case control.StateHydrated, control.StateFinishing, control.StateFinished:
		return true, nil
	case control.StateStalled:
		return false, stuck(exit.Source, st, "stalled: ")
	case control.StateFailed:
		return false, stuck(exit.Metadata, st, "failed: ")
	}
	return false, nil
}

// stuck is the error of a clone that does not go on; code, unless it is for the destination's sake.
func stuck(code int, st *control.Status, what string) error {
	if st.StalledBy == blockdev.Dest.String() {
		code = exit.Dest
	}
	return waitError(code, st, errors.New(what+st.Reason))
}

func waitError(code int, st *control.Status, cause error) error {
	next := st.Action
	if next == "" {
		next = "See `ublk-clone status " + st.Name + "`."
	}
	return &exit.Error{Code: code, Doing: "wait for clone", Object: st.Name, Cause: cause, Next: next}
}
