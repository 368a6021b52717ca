package clone

import (
	"fmt"
	"strings"
)

// Held says what is still held by somebody, one thing a line: operations, buffers, claims, requests
// in lists. When no request and no hydration is in flight that is nothing, or it has leaked (H22).
// No lane may be running.
func (c *Core) Held() string {
	var b strings.Builder
	for i, l := range c.lanes.list {
		if free := len(l.pool.freeOps); free != len(l.pool.ops) {
			fmt.Fprintf(&b, "lane %d: %d of %d operations are free\n", i, free, len(l.pool.ops))
		}
		if n := l.pool.buffers.InUse(); n != 0 {
			fmt.Fprintf(&b, "lane %d: %d buffers are in use\n", i, n)
		}
		if n := l.users.inFlight.Load(); n != 0 || !l.pool.starved.empty() || !l.inbox.list.empty() || !l.turns.waiting.empty() {
			fmt.Fprintf(&b, "lane %d: %d requests, some starved: %t, some posted: %t, some wait for their turn: %t\n", i, n,
				!l.pool.starved.empty(), !l.inbox.list.empty(), !l.turns.waiting.empty())
		}
	}
	for i, l := range c.lanes.list {
		if len(l.source.again) != 0 || l.source.alone != nil {
			fmt.Fprintf(&b, "lane %d: %d reads are to be tried again, one is: %t\n", i, len(l.source.again), l.source.alone != nil)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.mu.claims.open); n != 0 || c.mu.claims.reserved != 0 {
		fmt.Fprintf(&b, "%d claims, %d pages reserved\n", n, c.mu.claims.reserved)
	}
	if c.mu.flushing || c.mu.durable != 0 || !c.mu.waiters.empty() {
		fmt.Fprintf(&b, "a flush in flight: %t, durable writes: %d, requests that wait for a commit: %t\n", c.mu.flushing, c.mu.durable, !c.mu.waiters.empty())
	}
	return b.String()
}
