package dataplane

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
)

// A request that kills the daemon is sent again to the next one, and would kill that too, for ever
// (I11). So:
//
//	1  Each daemon that dies soon after its start is counted in the live map.
//	2  After carefulAfter in a row the next one is careful: one request at a time, of all queues together, and
//	   which one is noted in the live map before it begins and taken back when it is answered.
//	3  A death with a request noted is that request's. One that is answered is not to blame any more.
//	4  When CondemnedAfter careful daemons have died of the same request it is answered EIO.
//	5  Who has lived for soon is careful no more. What was condemned stays so until a daemon ends in order.
//
// A FLUSH has no place to be known by, and an error in its answer costs the file system: it is
// never to blame. A daemon that is killed from outside while a request is at work makes it a
// suspect, too: it would have to be the same one several times, without ever being answered.

// Bounds of the above.
const (
	Soon           = time.Second // after the start of service
	carefulAfter   = 3           // deaths
	CondemnedAfter = 4           // deaths
)

// errCondemned is the answer of 4.
var errCondemned = errors.New("not tried again: several daemons have died of it")

// Caution is what the queues of a careful daemon share. A queue without condemned requests forgets
// it when it is over: then there is one branch left of it on the way of a request.
type Caution struct {
	live *livemap.Map
	over atomic.Bool // the daemon has lived long enough
	busy atomic.Bool // a request is at work
	wake func()      // all queues: one may go on

	mu struct {
		sync.Mutex
		blames []livemap.Blame
	}
}

// NewCaution counts the daemon that begins, and the one before it if it died. nil: there is no need
// for caution.
func NewCaution(live *livemap.Map, wake func()) *Caution {
	c := &Caution{live: live, wake: wake}
	deaths := live.Deaths()
	live.SetDeaths(deaths + 1)
	c.mu.blames = live.Blames()
	if r, died := live.Suspect(); died {
		c.blame(r)
		live.ClearSuspect()
		live.SetBlames(c.mu.blames)
	}
	if deaths < carefulAfter && !slices.ContainsFunc(c.mu.blames, condemned) {
		return nil
	}
	return c
}

func condemned(b livemap.Blame) bool { return b.Deaths >= CondemnedAfter }

func (c *Caution) blame(r livemap.Request) {
	for i := range c.mu.blames {
		if b := &c.mu.blames[i]; b.Request == r {
			b.Deaths++
			return
		}
	}
	c.mu.blames = append(c.mu.blames, livemap.Blame{Request: r, Deaths: 1})
}

// requestID is what a request is known by after a death; false: it is none that can be to blame.
func requestID(r *clone.Request) (livemap.Request, bool) {
	return livemap.Request{Op: uint32(r.Op) + 1, Off: r.Off, Length: r.Len}, r.Op != clone.OpFlush
}

// permit is what may be done with a request.
type permit uint8

const (
	granted permit = iota
	later          // another one is at work
	refusal        // it is condemned
)

// ask says what may be done with a request. Who is granted it calls answered.
func (c *Caution) ask(r *clone.Request) permit {
	id, known := requestID(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.mu.blames, func(b livemap.Blame) bool { return known && b.Request == id && condemned(b) }) {
		return refusal
	}
	if c.over.Load() {
		return granted
	}
	if !c.busy.CompareAndSwap(false, true) {
		return later
	}
	if known {
		c.live.SetSuspect(id)
	}
	return granted
}

// answered takes back what ask has noted.
func (c *Caution) answered(r *clone.Request) {
	id, _ := requestID(r)
	c.mu.Lock()
	c.live.ClearSuspect()
	n := len(c.mu.blames)
	c.mu.blames = slices.DeleteFunc(c.mu.blames, func(b livemap.Blame) bool { return b.Request == id })
	if len(c.mu.blames) != n {
		c.live.SetBlames(c.mu.blames)
	}
	c.mu.Unlock()
	c.busy.Store(false)
	c.wake()
}

// done says that nothing needs caution any more.
func (c *Caution) done() bool {
	if !c.over.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !slices.ContainsFunc(c.mu.blames, condemned)
}

// Survived is the end of the first seconds.
func (c *Caution) Survived() {
	c.over.Store(true)
	c.wake()
}
