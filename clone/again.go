package clone

import (
	"slices"
	"sync/atomic"
	"time"
)

// A read of the source for a user that has failed is tried again before it counts. The kernel makes
// one request of neighbours' reads that are issued together, and a bad sector that one of them
// covers fails all of them; so it is read once more
//
//	alone      one such read at a time in a lane, which the backend keeps apart from all others
//	bounded    sourceTries times, the last one begun at most againLimit after the first failure; not at all
//	           when the device as a whole does not answer (Away): nobody waits for minutes
//	by the map what somebody has hydrated meanwhile comes from the destination (I11)
//
// and then it fails the request that it belongs to, and no other. Package hydrate tries again what
// fails in the background.
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

// source is a lane's reads of the source: how long users' take, and those that are to be tried
// again.
type source struct {
	core    *Core
	backend Backend

	// again are operations whose read is to be tried again; alone is the one that is being so.
	again []*op
	alone *op

	readBytes atomic.Int64
	waits     waits
}

// read queues a read of the source; one that is tried again has the lane's only place for such.
func (s *source) read(o *op, off int64, data Data) {
	add(&s.readBytes, data.Size())
	switch {
	case o.tries > 0:
		s.alone = o
	case o.req != nil:
		s.beginWait(o)
	}
	s.backend.ReadSource(o.token, off, data, o.tries > 0 || o.bg != nil && o.bg.Alone)
}

// ended is the end of any I/O of an operation, as far as that was a read of the source.
func (s *source) ended(o *op, err error) {
	if o == s.alone {
		s.alone = nil
	}
	if o.period != 0 {
		s.endWait(o, err)
	}
}

// tryAgain puts an operation whose read of the source has failed in line for another try, or
// answers false.
func (s *source) tryAgain(o *op, err error) bool {
	if o.req == nil || o.tries == sourceTries || s.core.Class(err) == Away {
		return false
	}
	if o.tries == 0 {
		o.failedAt = s.core.now()
	}
	o.tries++
	o.failure = err
	s.again = append(s.again, o)
	return true
}

// due says that one of the reads in line may begin: none of them is in flight.
func (s *source) due() bool { return s.alone == nil && len(s.again) > 0 }

// next takes the next of them, which is due. late: it has waited too long.
func (s *source) next() (o *op, late bool) {
	o = s.again[0]
	s.again = slices.Delete(s.again, 0, 1)
	return o, s.core.now().Sub(o.failedAt) > againLimit
}
