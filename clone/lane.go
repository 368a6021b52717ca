package clone

import (
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
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
	// Buffers are the copy buffers. A region that fits into one is hydrated with one read and one
	// write.
	Buffers copybuffers.Config
}

// Lane is the core's context for one thread: a plain single-threaded object. All methods but
// Requests and post are called on its thread. It takes requests and completions in and leads them
// to its parts, each of which knows those that it is given:
//
//	reads       READs, and what of them is kept
//	changes     WRITEs, DISCARDs and WRITE_ZEROES: routed, and planned
//	plans       what is done under a claim, step by step
//	zeroing     zeros, where what is zero already may be spared
//	background  Hydrations
//	source      reads of the source, and those that are to be tried again
//	pool        operations and copy buffers, and the requests that wait for one
//	users       requests of users from their arrival to their answer
//	inbox       what other threads post
//	turns       DISCARDs and WRITE_ZEROES that wait for the next round
type Lane struct {
	core    *Core
	backend Backend
	wakeUp  func()

	pool   pool
	users  users
	source source
	inbox  inbox
	turns  turns

	reads      reads
	changes    changes
	plans      plans
	background background
}

// NewLane adds a lane. Before the first request only.
func (c *Core) NewLane(cfg LaneConfig) *Lane {
	l := &Lane{core: c, backend: cfg.Backend, wakeUp: cfg.Wake}
	l.pool.init(&cfg)
	l.users.core = c
	l.source.core, l.source.backend, l.source.again = c, cfg.Backend, make([]*op, 0, cfg.Ops)
	l.turns.wakeUp, l.turns.allowance = cfg.Wake, turnPages
	l.background = background{core: c, pool: &l.pool, source: &l.source, plans: &l.plans}
	l.reads = reads{core: c, backend: cfg.Backend, pool: &l.pool, source: &l.source, users: &l.users, background: &l.background}
	l.changes.core, l.changes.backend, l.changes.pool, l.changes.users, l.changes.plans = c, cfg.Backend, &l.pool, &l.users, &l.plans
	p := &l.plans
	p.core, p.backend, p.pool, p.source, p.users, p.landed = c, cfg.Backend, &l.pool, &l.source, &l.users, l.background.landed
	p.zeroing = zeroing{core: c, backend: cfg.Backend}
	c.lanes.list = append(c.lanes.list, l)
	c.mu.claims.grow(cfg.Ops)
	return l
}

// Requests is how many requests of users the lane has got; from any thread.
func (l *Lane) Requests() int64 { return l.users.requests() }

// CopyRegions is how many regions one Hydration may copy, at least 1.
func (l *Lane) CopyRegions() uint64 { return l.background.copyRegions() }

// Hydrate starts h, or answers false when the lane has no operation or buffer free.
func (l *Lane) Hydrate(h *Hydration) bool { return l.background.start(h) }

// Submit takes a request that arrived.
func (l *Lane) Submit(r *Request) {
	r.lane = l
	l.users.begin(r.Op)
	if r.Op > OpWriteZeroes {
		l.users.end(r, ErrOp)
		return
	}
	if r.Op != OpFlush && (!l.core.geo.Valid(r.Off, r.Len) || r.Len > MaxSpan) {
		l.users.end(r, ErrRange)
		return
	}
	l.start(r)
}

// start routes a request from the top: a new one, and one whose wait is over.
func (l *Lane) start(r *Request) {
	switch r.Op {
	case OpRead:
		l.reads.read(r)
	case OpWrite:
		l.changes.write(r)
	case OpFlush:
		l.flush(r)
	case OpDiscard, OpWriteZeroes:
		l.takeTurn(r)
	}
}

// takeTurn serves a DISCARD or WRITE_ZEROES, or has it wait for its turn.
func (l *Lane) takeTurn(r *Request) {
	if !l.turns.free() {
		l.turns.wait(r)
		return
	}
	l.serveTurn(r)
}

func (l *Lane) serveTurn(r *Request) {
	first, end := l.core.geo.Touched(r.Off, r.Len)
	l.turns.allowance -= int(bitmap.PageOf(end-1)-bitmap.PageOf(first)) + 1
	if r.Op == OpDiscard {
		l.changes.discard(r)
		return
	}
	l.changes.writeZeroes(r)
}

// nextRound lets the next ones have their turn, in order.
func (l *Lane) nextRound() {
	l.turns.allowance = turnPages
	for r := l.turns.next(); r != nil; r = l.turns.next() {
		l.serveTurn(r)
	}
	if !l.turns.waiting.empty() {
		l.wakeUp()
	}
}

// Drain takes what other threads posted, tries again what has failed, and restarts who found no
// operation or buffer. Completions never call into another request: they leave it to here.
func (l *Lane) Drain() {
	if l.core.Complete() {
		l.pool.buffers.Rest()
	}
	l.nextRound()
	posted := l.inbox.take()
	for r := posted.pop(); r != nil; r = posted.pop() {
		if r.after == endCommit {
			l.users.end(r, r.err)
		} else {
			l.start(r)
		}
	}
	l.readAgain()
	// Whoever starves again goes to the end of the new list.
	starved := l.pool.starved.take()
	for r := starved.pop(); r != nil; r = starved.pop() {
		l.start(r)
	}
}

// post hands r to its lane's thread, from any thread.
func (l *Lane) post(r *Request) {
	if l.inbox.post(r) {
		l.wakeUp()
	}
}

// add is for counters that one thread writes: a load and a store, no locked instruction.
func add(c *atomic.Int64, n int64) { c.Store(c.Load() + n) }
