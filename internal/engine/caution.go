package engine

import (
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// caution is that of a daemon whose predecessors have died soon after their start
// (dataplane.Caution). It begins and ends with the block device; a timer ends it when the daemon
// has lived for a while.
type caution struct {
	*devices.Shared
	live    *liveMap
	lanes   *lanes
	careful *dataplane.Caution // nil: there is no need for it
	life    *time.Timer        // its end

	mu struct {
		sync.Mutex
		ended bool // the live map is about to be closed
	}
}

// begin is before the first request.
func (c *caution) begin() {
	careful := dataplane.NewCaution(c.live.Map, func() {
		for _, f := range c.lanes.frontends {
			f.Wake()
		}
	})
	if careful == nil {
		return
	}
	c.Log.Warn().Uint32("deaths", c.live.Deaths()-1).Msg("daemons have died soon after their start: requests are served one at a time")
	c.careful = careful
	for _, f := range c.lanes.frontends {
		f.Caution = careful
	}
}

// watch ends caution when the daemon has served for a while.
func (c *caution) watch() {
	live, careful := c.live.Map, c.careful
	c.life = time.AfterFunc(dataplane.Soon, func() {
		defer guard.Guard("first seconds", guard.Fatal)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.mu.ended {
			return
		}
		live.SetDeaths(0)
		if careful != nil {
			careful.Survived()
		}
	})
}

// end is the end of a daemon in order: the next one begins without suspicion, as it may be another
// program.
func (c *caution) end() {
	if c.life != nil {
		c.life.Stop()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.ended = true
	c.live.SetDeaths(0)
	c.live.ClearSuspect()
	c.live.SetBlames(nil)
}
