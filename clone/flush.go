package clone

import "sync/atomic"

// flush answers when all that was answered before it, and its marks, are durable (I5). With marks
// that are not committed that is a commit's end. With none it is a flush of the destination from
// here, unless one is in flight already, or somebody waits for a commit's. If the destination has
// got nothing since the last flush, it is at once.
func (l *Lane) flush(r *Request) {
	o := l.pool.newOp(r)
	if o == nil {
		return
	}
	switch l.core.beginFlush() {
	case begun:
		o.step = flushDest
		l.backend.FlushDest(o.token)
	case needless:
		l.pool.freeOp(o)
		l.users.end(r, nil)
	case deferred:
		l.pool.freeOp(o)
		l.users.deferToCommit(r)
	}
}

func (l *Lane) flushDestDone(o *op, err error) {
	r := o.req
	l.pool.freeOp(o)
	l.core.endFlush(err)
	l.users.end(r, err)
}

// flushVerdict is how a FLUSH goes on.
type flushVerdict uint8

const (
	deferred flushVerdict = iota // a commit answers it
	begun                        // the lane flushes the destination
	needless                     // all is durable
)

// beginFlush says how a lane goes on with a FLUSH. There are never two flushes in flight, the
// commit's counted: the kernel reports lost bytes to one of them only, and the other would be
// answered, or its marks committed, as if they were durable (H24).
func (c *Core) beginFlush() flushVerdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.flushing || c.mu.durable > 0 || c.mu.flushLost || !c.mu.clean() || !c.mu.waiters.empty() {
		return deferred
	}
	if !c.unflushed.take() {
		return needless
	}
	c.mu.flushing = true
	return begun
}

// unflushed says whether the destination may have got bytes that no flush makes durable: after a
// death, and from the end of a write until a flush begins. It is set at the end and before the
// answer, as a flush that began while the write was in flight need not have seen it. With direct
// extents (and for users who sync what they have not written) it saves the second of two flushes.
type unflushed struct{ flag atomic.Bool }

// changed is told that a write, zeroing or discard of the destination has ended.
//
// The flag need not be stored again if it is set: whoever takes it meanwhile flushes after this
// write has ended.
func (u *unflushed) changed() {
	if !u.flag.Load() {
		u.flag.Store(true)
	}
}

// take says whether a flush is needed; the caller flushes then, with no other flush in flight. If
// that fails nothing counts as durable any more (flushLost).
func (u *unflushed) take() bool { return u.flag.Swap(false) }

// endFlush ends a lane's flush, for which a commit may have been put off.
func (c *Core) endFlush(err error) {
	c.mu.Lock()
	c.mu.flushing = false
	waited := !c.mu.waiters.empty()
	changed := err != nil && c.mu.loseFlush()
	c.mu.Unlock()
	if changed {
		c.event()
	}
	if waited {
		c.kick()
	}
}

// beginDurable says whether a FUA of the regions [first, end), which are hydrated, may be one
// durable write: if their marks are durable, and there is no flush in flight or about to be. A
// durable write has a flush in it, which must not be beside another, as beginFlush says.
func (c *Core) beginDurable(first, end uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.uncommitted(first, end) || c.mu.flushing || c.mu.putOff || !c.mu.waiters.empty() {
		return false
	}
	c.mu.durable++
	return true
}

// endDurable ends one. Nobody can tell whether a failure was the write's or the flush's, and the
// kernel may have reported to it alone what others had lost. So it counts as a flush that failed
// (I10), but for want of space (Full), which is found out before anything is written.
func (c *Core) endDurable(err error) {
	full := err != nil && c.Class(err) == Full
	c.mu.Lock()
	c.mu.durable--
	changed := err != nil && !full && c.mu.loseFlush()
	waited := c.mu.durable == 0 && (c.mu.putOff || !c.mu.waiters.empty())
	c.mu.Unlock()
	if changed {
		c.event()
	}
	if waited {
		c.kick()
	}
}

// FlushLost says that a flush of the destination has failed.
func (c *Core) FlushLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.flushLost
}
