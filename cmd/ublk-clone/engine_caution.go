package main

import (
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// eventRequestRefused: a request that has killed the daemon again and again is answered EIO.
const eventRequestRefused = "request-refused"

// beginCaution is before the first request.
func (e *cloneEngine) beginCaution() {
	c := newCaution(e.live.Map, func() {
		for _, f := range e.frontends {
			f.wake()
		}
	})
	if c == nil {
		return
	}
	e.log.Warn().Uint32("deaths", e.live.Deaths()-1).Msg("daemons have died soon after their start: careful, one request at a time")
	e.caution = c
	for _, f := range e.frontends {
		f.caution = c
	}
}

// watchLife ends caution when the daemon has served for a while.
func (e *cloneEngine) watchLife() {
	live, c := e.live.Map, e.caution
	e.life = time.AfterFunc(soon, func() {
		defer guard.Guard("first seconds", guard.Fatal)
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.mu.ended {
			return
		}
		live.SetDeaths(0)
		if c != nil {
			c.survived()
		}
	})
}

// endCaution is the end of a daemon in order: the next one begins without suspicion, as it may be another program.
func (e *cloneEngine) endCaution() {
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
func (e *cloneEngine) requestRefused(r *clone.Request) {
	e.happened.add(eventRequestRefused, fmt.Sprintf("%v of %d bytes at byte %d is answered with an error: %d daemons have died of it", r.Op, r.Len, r.Off, condemnedAfter))
}
