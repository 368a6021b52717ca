package dataplane

import (
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A gate is where a lane's requests can be held up while the destination is somebody else's
// (`finish`), and where a lane tells what it has at work:
//
//	open  --close: those at work end; the ring lets the destination's file go-->  closed, requests are held
//	 ^                                                                               |
//	 +---- open: the ring takes the file again, those held are served ---------------+
//	                                                                                 |
//	                                    refuse: those held, and all to come, fail <--+
//
// The order comes from another goroutine; the lane's thread carries it out between two rounds of
// its loop.
type gate struct {
	order  atomic.Pointer[Order]
	done   *Order // the last that was carried out
	shut   bool   // requests are held
	atWork int    // requests that are not answered yet, without those that are held
	refuse error  // what all get

	// For a look at how long requests are at work, which costs them no clock: each has a number.
	begun   uint64
	numbers []uint64 // by tag; 0: not at work
}

// begin is of a request that is to be served, and end of its answer.
func (g *gate) begin(tag int) {
	g.atWork++
	g.begun++
	g.numbers[tag] = g.begun
}

func (g *gate) end(tag int) {
	g.atWork--
	g.numbers[tag] = 0
}

// Work is what a lane has at work at a moment.
type Work struct {
	Oldest   uint64 // number of the request that began first; 0: none is at work
	Requests int
}

// look is the lane's own.
func (g *gate) look() Work {
	w := Work{Requests: g.atWork}
	for _, n := range g.numbers {
		if n != 0 && (w.Oldest == 0 || n < w.Oldest) {
			w.Oldest = n
		}
	}
	return w
}

// Order is for all lanes.
type Order struct {
	Dest   *File      // open: the way to the destination from now on
	Rest   bool       // close, and the ring keeps the destination's file
	Refuse error      // refuse: with this
	done   chan error // gets one for each lane

	Look func(Work) // only tell what is at work
}

// obey is called once a round. It says that the gate has just been opened, or requests are refused
// from now on.
func (b *Backend) obey(inFlight int) (open bool) {
	o := b.gate.order.Load()
	if o == b.gate.done {
		return false
	}
	var err error
	switch {
	case o.Look != nil:
		b.gate.done = o
		o.Look(b.gate.look())
		o.done <- nil
		return false
	case o.Dest == nil && o.Refuse == nil:
		b.gate.shut = true
		if inFlight > 0 || !b.loop.Idle() {
			return false // it is asked again when they have ended
		}
		if !o.Rest {
			err = b.loop.LetGo()
		}
	case o.Dest != nil && o.Dest != b.Dest:
		b.Dest = o.Dest
		b.Attach(b.loop)
	}
	b.gate.done, b.gate.refuse = o, o.Refuse
	b.gate.shut = o.Dest == nil && o.Refuse == nil
	o.done <- err
	return !b.gate.shut
}

// ErrHandedOver is what requests get that come to the block device behind the layer's back when the
// destination has gone.
var ErrHandedOver = errors.Join(errors.New("the destination stands alone: the clone is finished"), unix.ENODEV)

// OrderAll has lanes obey, and waits for all of them.
func OrderAll(ctx context.Context, o Order, backends []*Backend) error {
	o.done = make(chan error, len(backends))
	for _, b := range backends {
		b.gate.order.Store(&o)
		b.Wake()
	}
	var errs error
	for range backends {
		select {
		case err := <-o.done:
			errs = errors.Join(errs, err)
		case <-ctx.Done():
			return errors.Join(errs, errors.New("requests at work have not ended"), ctx.Err())
		}
	}
	return errs
}
