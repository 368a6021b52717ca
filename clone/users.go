package clone

import "sync/atomic"

// users are the requests of users in a lane, from their arrival to their answer: how many there
// are, and what they were. The counters are written by the lane only and read by anybody.
type users struct {
	core *Core

	inFlight              atomic.Int64
	readBytes, writeBytes atomic.Int64
	ops                   [OpWriteZeroes + 1]atomic.Int64
}

// begin counts a request that arrives.
func (u *users) begin(op Op) {
	u.inFlight.Store(u.inFlight.Load() + 1)
	if op <= OpWriteZeroes {
		add(&u.ops[op], 1)
	}
}

// end answers a request, exactly once.
func (u *users) end(r *Request, err error) {
	u.inFlight.Store(u.inFlight.Load() - 1)
	switch {
	case err != nil:
	case r.Op == OpRead:
		add(&u.readBytes, r.Len)
	case r.Op == OpWrite:
		add(&u.writeBytes, r.Len)
	}
	r.err, r.pending = nil, 0
	r.End(r, err)
}

// answer ends a request that changed the destination; FUA waits for a commit of its marks first
// (I5).
func (u *users) answer(r *Request, err error) {
	if err == nil && r.FUA {
		u.deferToCommit(r)
		return
	}
	u.end(r, err)
}

func (u *users) deferToCommit(r *Request) {
	if err := u.waitCommit(r); err != nil {
		u.end(r, err)
	}
}

// waitCommit defers r until a commit that begins from now on has ended, or says why none will.
func (u *users) waitCommit(r *Request) error {
	c := u.core
	c.mu.Lock()
	if err := c.mu.committable(); err != nil {
		c.mu.Unlock()
		return err
	}
	r.after = endCommit
	c.mu.waiters.push(r)
	c.mu.Unlock()
	c.kick()
	return nil
}

// requests is how many have come; from any thread.
func (u *users) requests() (n int64) {
	for i := range u.ops {
		n += u.ops[i].Load()
	}
	return n
}
