package daemon

import (
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestFinishOrder: what the clone is not ready for changes nothing, and what goes wrong leaves it
// up.
func TestFinishOrder(t *testing.T) {
	broken := &exit.Error{Code: exit.Refused, Doing: "finish"}
	for _, c := range []struct {
		name             string
		dm               string
		unfinished, busy error
		handed           int
		finished         bool
	}{
		{name: "not complete", dm: "x", unfinished: broken},
		{name: "handover fails", dm: "x", busy: broken, handed: 1},
		{name: "handed over", dm: "x", handed: 1, finished: true},
	} {
		e := newFakeEngine()
		e.unfinished, e.busy = c.unfinished, c.busy
		d := New(control.Dir(t.TempDir()), definition.Start{Definition: definition.Definition{Name: "c", DM: c.dm, Dest: "/dev/d"}}, e, zerolog.Nop())
		d.life.enter(phaseUp)
		err := d.finish(&stopRequest{verb: control.VerbFinish, keepMetadata: true, wait: time.Second}, nil)
		if (err == nil) != c.finished || e.handed != c.handed || e.finished != c.finished {
			t.Errorf("%s: %v, handed over %d times, finished %t", c.name, err, e.handed, e.finished)
		}
		if up := d.life.mu.phase == phaseUp; up == c.finished {
			t.Errorf("%s: phase %d", c.name, d.life.mu.phase)
		}
		if def, err := d.dir.Load("c"); c.handed > 0 && (err != nil || !def.KeepMetadata) {
			t.Errorf("%s: the definition does not say that the metadata stays: %+v, %v", c.name, def, err)
		}
	}
}
