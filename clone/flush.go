package clone

// flush answers when all that was answered before it, and its marks, are durable (I5). With marks
// that are not committed that is a commit's end. With none it is a flush of the destination from
// here, unless one is in flight already, or somebody waits for a commit's.
func (l *Lane) flush(r *Request) {
	o := l.pool.newOp(r)
	if o == nil {
		return
	}
	if !l.core.beginFlush() {
		l.pool.freeOp(o)
		l.users.deferToCommit(r)
		return
	}
	o.step = flushDest
	l.backend.FlushDest(o.token)
}

func (l *Lane) flushDestDone(o *op, err error) {
	r := o.req
	l.pool.freeOp(o)
	l.core.endFlush(err)
	l.users.end(r, err)
}

// beginFlush says whether a lane may flush the destination by itself now. There are never two
// flushes in flight, the commit's counted: the kernel reports lost bytes to one of them only, and
// the other would be answered, or its marks committed, as if they were durable (H24).
func (c *Core) beginFlush() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.flushing || c.mu.durable > 0 || c.mu.flushLost || !c.mu.clean() || !c.mu.waiters.empty() {
		return false
	}
	c.mu.flushing = true
	return true
}

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
