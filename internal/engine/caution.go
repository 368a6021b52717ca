package engine

import (
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// beginCaution is before the first request.
func (e *Engine) beginCaution() {
	c := dataplane.NewCaution(e.live.Map, func() {
		for _, f := range e.frontends {
			f.Wake()
		}
	})
	if c == nil {
		return
	}
	e.log.Warn().Uint32("deaths", e.live.Deaths()-1).Msg("daemons have died soon after their start: careful, one request at a time")
	e.caution = c
	for _, f := range e.frontends {
		f.Caution = c
	}
}

// watchLife ends caution when the daemon has served for a while.
func (e *Engine) watchLife() {
	live, c := e.live.Map, e.caution
	e.life = time.AfterFunc(dataplane.Soon, func() {
		defer guard.Guard("first seconds", guard.Fatal)
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.mu.ended {
			return
		}
		live.SetDeaths(0)
		if c != nil {
			c.Survived()
		}
	})
}

// endCaution is the end of a daemon in order: the next one begins without suspicion, as it may be another program.
func (e *Engine) endCaution() {
	if e.life != nil {
		e.life.Stop()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.ended = true
	e.live.SetDeaths(0)
	e.live.ClearSuspect()
	e.live.SetBlames(nil)
}

// requestRefused tells of a condemned request.
func (e *Engine) requestRefused(r *clone.Request) {
	e.happened.Add(control.EventRequestRefused, fmt.Sprintf("%v of %d bytes at byte %d is answered with an error: %d daemons have died of it", r.Op, r.Len, r.Off, dataplane.CondemnedAfter))
}
