package clone

import "time"

// step says what an operation waits for, and so where EndIO goes on.
type step uint8

const (
	readRun      step = iota // a READ's part, from either side
	writeThrough             // a WRITE of hydrated regions
	flushDest                // a FLUSH with nothing to commit
	mergeRead                // segments of a claim, below
	mergeWrite
	copyRead
	copyWrite
	dataWrite
	zeroWrite
	passDown
	earlyRead // background: before the claim
	earlyWrite
	lookRead // of what is to become zero, spare.go
	lookDiscard
	lookWrite
)

// op is one operation: the context of one backend I/O at a time, in a table indexed by token. It
// belongs to a request, or to a background hydration.
type op struct {
	token uint32
	// period and began are of the user's read of the source that is in flight; period 0: there is
	// none (waits.go).
	period uint64
	began  time.Time
	opState
	plan plan
}

// opState is what of an operation is cleared when it ends; of the plan nothing is, but for its
// counts. (Clearing all of the 432 bytes was 0.4 % of what a write costs. An op is a multiple of 16
// bytes: with 8 more of them each request took 6 ns more.)
type opState struct {
	step    step
	holds   bool // claim is in the table
	durable bool // writeThrough: the write itself makes a FUA durable
	// fromSource: the run of a READ that is being read was in state Source.
	fromSource bool
	// passdown: a DISCARD is passed down where regions are not hydrated.
	passdown bool
	// zeros: what is landing was read as zeros.
	zeros bool

	req *Request
	landing

	off, end int64 // bytes: what is left of a READ's part; of a merge or piece, what is being read
	retry
	at    int64 // bytes: end of the run that is being read; progress in a segment
	buf   []byte
	look  look
	claim claim
}

// landing is the background hydration that an operation carries out; bg is nil if it belongs to a
// request.
type landing struct {
	bg   *Hydration
	kept Hydration // bg, if that is what a READ got from the source
}

// retry is how often what is being read was tried again, since failedAt, when failure came first.
type retry struct {
	tries    uint8
	narrow   bool // merge: the wide read failed, the two edges are read alone
	failedAt time.Time
	failure  error
}

// segmentKind is one kind of work on a stretch of the destination.
type segmentKind uint8

const (
	segMerge segmentKind = iota // read what the request does not cover, merge, write: one I/O each
	segCopy                     // source to destination through the buffer, in pieces
	segData                     // the request's own bytes
	segZero                     // zeros
	segRuns                     // zeros, but only where regions are hydrated: in place; elsewhere a discard is passed down
	segEarly                    // background: what was read before the claim
)

type segment struct {
	kind   segmentKind
	lo, hi int64 // bytes of the device
}

// plan is the work of a claim: segments one after the other, then the marks. Nothing shows before
// the marks are made, so the order of the segments is free and a failure on the way costs nothing.
type plan struct {
	segments [5]segment // WRITE_ZEROES inside large regions: head copy, zeros; tail zeros, copy; runs
	marks    [3]mark
	planCounts
}

type planCounts struct {
	nrSegs  int
	nrMarks int
	seg     int
	// edges is how many regions the plan copies in part from the source.
	edges uint64
}

func (p *plan) work(kind segmentKind, lo, hi int64) {
	if lo < hi {
		p.segments[p.nrSegs] = segment{kind, lo, hi}
		p.nrSegs++
	}
}

func (p *plan) mark(m mark) {
	if m.first < m.end {
		p.marks[p.nrMarks] = m
		p.nrMarks++
	}
}

// leavesUnflushed says whether what has ended may leave bytes in the destination's cache, or relies
// on such bytes: zeros that a look has found may be those of a write that is still in flight.
func (o *op) leavesUnflushed() bool {
	switch o.step {
	case readRun, mergeRead, copyRead, earlyRead, flushDest:
		return false
	case writeThrough:
		return !o.durable
	}
	return true
}

// EndIO takes the end of a backend I/O: err nil means done whole.
func (l *Lane) EndIO(token uint32, err error) {
	o := &l.pool.ops[token]
	o.checkBusy()
	l.source.ended(o, err)
	if o.leavesUnflushed() {
		l.core.unflushed.changed()
	}
	switch o.step {
	case readRun, mergeRead, copyRead:
		l.readDone(o, err)
	case writeThrough:
		l.changes.writeThroughDone(o, err)
	case flushDest:
		l.flushDestDone(o, err)
	case copyWrite:
		l.plans.copyWriteDone(o, err)
	case mergeWrite, dataWrite, earlyWrite:
		l.plans.segmentDone(o, err)
	case zeroWrite:
		l.plans.zeroWriteDone(o, err)
	case passDown:
		l.plans.zeroWriteDone(o, nil) // advice: an error fails nothing (H14)
	case earlyRead:
		l.background.earlyReadDone(o, err)
	case lookRead:
		if l.plans.zeroing.lookReadDone(o, err) {
			l.plans.zeroWriteDone(o, nil)
		}
	case lookDiscard:
		l.plans.zeroing.readLook(o) // advice, as above
	case lookWrite:
		if l.plans.zeroing.lookWriteDone(o, err) {
			l.plans.zeroWriteDone(o, err)
		}
	}
}

// readDone is the end of a read by its step.
func (l *Lane) readDone(o *op, err error) {
	switch o.step {
	case readRun:
		l.reads.readRunDone(o, err)
	case mergeRead:
		l.plans.mergeReadDone(o, err)
	case copyRead:
		l.plans.copyReadDone(o, err)
	}
}

// readAgain begins the next of the reads of the source in line. Those that have waited too long
// fail.
func (l *Lane) readAgain() {
	for l.source.due() {
		o, late := l.source.next()
		if late {
			o.tries = sourceTries
			l.readDone(o, o.failure)
			continue
		}
		switch o.step {
		case readRun:
			l.reads.readRunOn(o)
		case mergeRead:
			l.plans.mergeIn(o, &o.plan.segments[o.plan.seg], o.off, o.end)
		case copyRead:
			l.plans.copyPiece(o, &o.plan.segments[o.plan.seg])
		}
	}
}
