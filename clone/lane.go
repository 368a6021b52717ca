package clone

import (
	"sync"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// readParts is how many parts of one READ are in flight at a time; the next is handed out when one
// ends. A READ has a part for each run of regions in one state.
const readParts = 4

// LaneConfig is what a Lane is made from.
type LaneConfig struct {
	Backend Backend
	// Wake makes the lane's thread call Drain soon. Called from any thread; must not block.
	Wake func()
	// Ops is how many operations may be in flight: at least the queue depth.
	Ops int
	// Buffers are the copy buffers, page-aligned, all of one size, which is a multiple of 4096 bytes and
	// at least 2. A region that fits into one is hydrated with one read and one write.
	Buffers [][]byte
}

// Lane is the core's context for one thread: a plain single-threaded object. All methods but Stats and
// are called on its thread.
type Lane struct {
	core    *Core
	backend Backend
	wakeUp  func()

	ops     []op
	freeOps []*op
	buffers [][]byte // free ones
	// nrBuffers is how many there are in all, each of bufSize bytes.
	nrBuffers int
	bufSize   int64
	// starved requests wait for an operation or a buffer of this lane and hold nothing.
	starved requestList
	// turns are DISCARDs and WRITE_ZEROES that wait for theirs, and allowance is how many pages of the region map such
	// requests may still go through in this round.
	turns     requestList
	allowance int
	// again are operations whose read of the source is to be tried again; alone is the one that is being so.
	again []*op
	alone *op

	inbox struct {
		sync.Mutex // a leaf: nothing is taken under it
		list       requestList
	}

	inFlight atomic.Int64 // user requests; written by this lane only
	stats    counters
	waits    waits
	recent   recent
}

// counters are written by their lane only and read by anybody. Bytes, but for the last.
type counters struct {
	copied, written, discarded atomic.Int64
	sourceRead                 atomic.Int64
	readBytes, writeBytes      atomic.Int64
	ops                        [OpWriteZeroes + 1]atomic.Int64
}

// NewLane adds a lane. Before the first request only.
func (c *Core) NewLane(cfg LaneConfig) *Lane {
	l := &Lane{core: c, backend: cfg.Backend, wakeUp: cfg.Wake, allowance: turnPages}
	l.ops = make([]op, cfg.Ops)
	l.freeOps = make([]*op, 0, cfg.Ops)
	l.again = make([]*op, 0, cfg.Ops)
	for i := range l.ops {
		l.ops[i].token = uint32(i)
		l.freeOps = append(l.freeOps, &l.ops[i])
	}
	l.buffers = append(l.buffers, cfg.Buffers...)
	l.nrBuffers, l.bufSize = len(cfg.Buffers), int64(len(cfg.Buffers[0]))
	c.lanes.list = append(c.lanes.list, l)
	c.mu.claims.grow(cfg.Ops)
	return l
}

// Requests is how many requests of users the lane has got; from any thread.
func (l *Lane) Requests() (n int64) {
	for i := range l.stats.ops {
		n += l.stats.ops[i].Load()
	}
	return n
}

// Submit takes a request that arrived.
func (l *Lane) Submit(r *Request) {
	r.lane = l
	l.inFlight.Store(l.inFlight.Load() + 1)
	if r.Op > OpWriteZeroes {
		l.end(r, ErrOp)
		return
	}
	add(&l.stats.ops[r.Op], 1)
	if r.Op != OpFlush && (!l.core.geo.Valid(r.Off, r.Len) || r.Len > MaxSpan) {
		l.end(r, ErrRange)
		return
	}
	l.start(r)
}

// start routes a request from the top: a new one, and one whose wait is over.
func (l *Lane) start(r *Request) {
	switch r.Op {
	case OpRead:
		l.read(r)
	case OpWrite:
		l.write(r)
	case OpFlush:
		l.flush(r)
	case OpDiscard, OpWriteZeroes:
		l.takeTurn(r)
	}
}

// turnPages is how many pages of the region map DISCARDs and WRITE_ZEROES may go through in a round of the loop, or one
// request if it goes through more. A discard of a whole device comes as thousands of requests, of up to 17 pages each; a
// READ that comes meanwhile waits for those of one round, not for all that are there.
const turnPages = 16

// takeTurn serves a DISCARD or WRITE_ZEROES, or has it wait for its turn, which begins with the next Drain.
func (l *Lane) takeTurn(r *Request) {
	if l.allowance <= 0 || !l.turns.empty() {
		if l.turns.empty() {
			l.wakeUp()
		}
		l.turns.push(r)
		return
	}
	l.serveTurn(r)
}

func (l *Lane) serveTurn(r *Request) {
	first, end := l.core.geo.Touched(r.Off, r.Len)
	l.allowance -= int(bitmap.PageOf(end-1)-bitmap.PageOf(first)) + 1
	if r.Op == OpDiscard {
		l.discard(r)
		return
	}
	l.writeZeroes(r)
}

// nextRound lets the next ones have their turn, in order.
func (l *Lane) nextRound() {
	l.allowance = turnPages
	for l.allowance > 0 && !l.turns.empty() {
		l.serveTurn(l.turns.pop())
	}
	if !l.turns.empty() {
		l.wakeUp()
	}
}

// Drain takes what other threads posted, tries again what has failed, and restarts who found no operation or buffer. Completions
// never call into another request: they leave it to here.
func (l *Lane) Drain() {
	l.nextRound()
	l.inbox.Lock()
	posted := l.inbox.list.take()
	l.inbox.Unlock()
	for r := posted.pop(); r != nil; r = posted.pop() {
		if r.after == endCommit {
			l.end(r, r.err)
		} else {
			l.start(r)
		}
	}
	l.readAgain()
	// Whoever starves again goes to the end of the new list.
	starved := l.starved.take()
	for r := starved.pop(); r != nil; r = starved.pop() {
		l.start(r)
	}
}

// post hands r to its lane's thread, from any thread.
func (l *Lane) post(r *Request) {
	l.inbox.Lock()
	first := l.inbox.list.empty()
	l.inbox.list.push(r)
	l.inbox.Unlock()
	if first {
		l.wakeUp()
	}
}

// end answers a request, exactly once.
func (l *Lane) end(r *Request, err error) {
	l.inFlight.Store(l.inFlight.Load() - 1)
	switch {
	case err != nil:
	case r.Op == OpRead:
		add(&l.stats.readBytes, r.Len)
	case r.Op == OpWrite:
		add(&l.stats.writeBytes, r.Len)
	}
	r.err, r.pending = nil, 0
	r.End(r, err)
}

// newOp takes an operation for r, or gives nil: then r is in the starved list.
func (l *Lane) newOp(r *Request) *op {
	n := len(l.freeOps)
	if n == 0 {
		l.starved.push(r)
		return nil
	}
	o := l.freeOps[n-1]
	l.freeOps = l.freeOps[:n-1]
	o.req = r
	return o
}

// freeOp gives back an operation and its buffer.
func (l *Lane) freeOp(o *op) {
	l.freeBuffer(o)
	o.checkFree()
	o.opState, o.plan.planCounts = opState{}, planCounts{}
	l.freeOps = append(l.freeOps, o)
}

func (l *Lane) takeBuffer(o *op) bool {
	n := len(l.buffers)
	if n == 0 {
		return false
	}
	o.buf = l.buffers[n-1]
	l.buffers = l.buffers[:n-1]
	return true
}

func (l *Lane) freeBuffer(o *op) {
	if o.buf != nil {
		l.buffers = append(l.buffers, o.buf)
		o.buf = nil
	}
}

// add is for counters that one thread writes: a load and a store, no locked instruction.
func add(c *atomic.Int64, n int64) { c.Store(c.Load() + n) }
