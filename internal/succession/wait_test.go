package succession

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/testkit"
)

// TestWaitForOneThatFinishes: whoever waits for a clone that finishes by itself meanwhile is told
// that it is hydrated; of one that is deleted, that it is gone.
func TestWaitForOneThatFinishes(t *testing.T) {
	for _, c := range []struct {
		auto, finished bool
		code           int
	}{{true, true, exit.OK}, {true, false, exit.NoClone}, {false, true, exit.NoClone}} {
		var dir control.Dir
		asked := 0
		dir = testkit.ServeRequests(t, func(context.Context, control.Request) control.Answer {
			st := &control.Status{Condition: control.Condition{State: control.StateHydrating}, Settings: definition.Settings{FinishAuto: c.auto}}
			if asked++; asked > 1 {
				st.State = control.StateStopping
				_ = os.Remove(dir.SocketPath("c"))
				_ = os.Remove(dir.DefinitionPath("c"))
			}
			return control.Answer{Status: st}
		})
		def := &definition.Definition{Name: "c", DM: "x", Dest: "/dev/d", Added: definition.Added{Finished: c.finished}}
		if err := dir.Store(def); err != nil {
			t.Fatal(err)
		}
		last := ""
		err := Hydrated(dir, "c", time.Minute, func(st *control.Status) error { last = st.State; return nil })
		if exit.Code(err) != c.code || err == nil && last != control.StateFinished {
			t.Errorf("auto %t, finished %t: %s, %v", c.auto, c.finished, last, err)
		}
	}
}
