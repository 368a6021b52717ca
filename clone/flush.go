package clone

import "errors"

// ErrFlushLost answers every FLUSH after a flush of the destination failed: the kernel reports lost
// bytes once, and a later flush that succeeds proves nothing about them (I10, H24).
var ErrFlushLost = errors.New("an earlier flush of the destination failed")

// flush answers when all that was answered before it, and its marks, are durable (I5). With marks that
// are not committed that is the next commit's end; with none, a flush of the destination from here.
func (l *Lane) flush(r *Request) {
	c := l.core
	c.mu.Lock()
	clean, lost, mode := c.clean(), c.mu.flushLost, c.mu.mode
	c.mu.Unlock()
	switch {
	case lost:
		l.end(r, ErrFlushLost)
	case clean:
		l.flushNow(r)
	case mode != ReadWrite:
		l.end(r, ErrReadOnly)
	default:
		l.deferToCommit(r)
	}
}

func (l *Lane) flushNow(r *Request) {
	o := l.newOp(r)
	if o == nil {
		return
	}
	o.step = flushDest
	l.backend.FlushDest(o.token)
}

func (l *Lane) flushDestDone(o *op, err error) {
	r := o.req
	l.freeOp(o)
	if err != nil {
		l.core.loseFlush()
	}
	l.end(r, err)
}

// loseFlush: a failed flush of the destination is a metadata failure.
func (c *Core) loseFlush() {
	c.mu.Lock()
	c.mu.flushLost = true
	c.setMode(ReadOnly)
	c.mu.Unlock()
	c.tell()
}

// FlushLost says that a flush of the destination has failed.
func (c *Core) FlushLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.flushLost
}
