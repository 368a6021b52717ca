package clone

import (
	"slices"
	"time"
)

// A read of the source for a user that has failed is tried again before it counts. The kernel makes one request
// of neighbours' reads that are issued together, and a bad sector that one of them covers fails all of them; so
// it is read once more
//
//	alone      one such read at a time in a lane, which the backend keeps apart from all others
//	bounded    sourceTries times, the last one begun at most againLimit after the first failure; not at all
//	           when the device as a whole does not answer (Away): nobody waits for minutes
//	by the map what somebody has hydrated meanwhile comes from the destination (I11)
//
// and then it fails the request that it belongs to, and no other. Package hydrate tries again what fails in the
// background.
const (
	sourceTries = 2
	againLimit  = 10 * time.Second
)

// ErrorClass is what an error of a backend says about other I/O.
type ErrorClass uint8

const (
	Local ErrorClass = iota // of these bytes: others may be sound
	Away                    // the device as a whole does not answer
	Full                    // the destination has no space for what was to be written; what it holds is as it was
)

// Class is that of a backend's error.
func (c *Core) Class(err error) ErrorClass {
	if c.classify == nil {
		return Local
	}
	return c.classify(err)
}

// tryAgain puts an operation whose read of the source has failed in line for another try, or answers false.
func (l *Lane) tryAgain(o *op, err error) bool {
	if o.req == nil || o.tries == sourceTries || l.core.Class(err) == Away {
		return false
	}
	if o.tries == 0 {
		o.failedAt = l.core.now()
	}
	o.tries++
	o.failure = err
	l.again = append(l.again, o)
	return true
}

// readAgain begins the next of the reads in line, if none is in flight. Those that have waited too long fail.
func (l *Lane) readAgain() {
	for l.alone == nil && len(l.again) > 0 {
		o := l.again[0]
		l.again = slices.Delete(l.again, 0, 1)
		if l.core.now().Sub(o.failedAt) > againLimit {
			o.tries = sourceTries
			l.readDone(o, o.failure)
			continue
		}
		switch o.step {
		case readRun:
			l.readRunOn(o)
		case mergeRead:
			l.mergeIn(o, &o.plan.segments[o.plan.seg], o.off, o.end)
		case copyRead:
			l.copyPiece(o, &o.plan.segments[o.plan.seg])
		}
	}
}

// readDone is the end of a read by its step.
func (l *Lane) readDone(o *op, err error) {
	switch o.step {
	case readRun:
		l.readRunDone(o, err)
	case mergeRead:
		l.mergeReadDone(o, err)
	case copyRead:
		l.copyReadDone(o, err)
	}
}

// readSource queues a read of the source; one that is tried again has the lane's only place for such.
func (l *Lane) readSource(o *op, off int64, data Data) {
	add(&l.stats.sourceRead, data.Size())
	switch {
	case o.tries > 0:
		l.alone = o
	case o.req != nil:
		l.beginWait(o)
	}
	l.backend.ReadSource(o.token, off, data, o.tries > 0 || o.bg != nil && o.bg.Alone)
}
