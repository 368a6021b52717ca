package main

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// source is what all lanes read the source through. What is open can be exchanged while they do: a device that has
// gone away and comes back is another one to the kernel, and its old description stays dead for ever.
//
//	lanes     take, read, done: two atomic operations a read, no lock
//	replace   new reads take the new description from then on; the old one is closed when the last read that
//	          has taken it ends, with its error
//
// take may come to nothing between its two steps, as the description that it has counted is not the one of now any
// more; then it tries the next.
//
// While it is used it is watched (I14, I15): each lane looks at the file in every round in which it has read, before the
// bytes are used, and the engine looks at all sources every second. What is noticed stays with the description:
//
//	lost     it has changed: nothing of it is used any more, and reads fail
//	silent   it has not answered for a time: no more reads are given to it, and they fail, until it answers
//	renamed  its file has lost or got a name: users are served, hydration waits for a word
//
// resume looks at the content, and replaces the description by another one of the same device.
type source struct {
	now     atomic.Pointer[openSource]
	closing sync.WaitGroup // old descriptions
	noticed func()         // tells the watcher; any thread, and it does not block
}

// openSource is one description of the source, or the want of one.
type openSource struct {
	device *blockdev.Device // nil: there is none
	file   *sharedFile
	why    error // there is none; for the user
	// users are the reads in flight, and one more while this is the source of now.
	users atomic.Int64
	idle  chan struct{} // has an element when users has become 0

	lost, silent, renamed atomic.Pointer[error]
	noticed               func()
	silentSince           int64 // the watcher's, see clock
}

// errNoSource is of a clone that is complete.
var errNoSource = errors.New("it is not needed any more")

// newOpenSource takes device over; nil is the want of one, with why.
func newOpenSource(device *blockdev.Device, why error) (*openSource, error) {
	o := &openSource{device: device, why: why, idle: make(chan struct{}, 1)}
	o.users.Store(1)
	if device == nil {
		return o, nil
	}
	var err error
	o.file, err = newSharedFile(device)
	return o, err
}

// take gives the description of now; done follows, from any thread. Reads that have taken it are safe from its
// being closed.
func (s *source) take() *openSource {
	for {
		o := s.now.Load()
		o.users.Add(1)
		if o == s.now.Load() {
			return o
		}
		o.done()
	}
}

func (o *openSource) done() {
	if o.users.Add(-1) == 0 {
		select {
		case o.idle <- struct{}{}:
		default: // a take that came to nothing
		}
	}
}

// look is asked when reads have ended, before their bytes are used. It says why they are not to be.
func (o *openSource) look() error {
	if lost := o.lost.Load(); lost != nil {
		return *lost
	}
	return o.notice(o.device.CheckRead())
}

// notice keeps what a look has found. Only what makes the bytes useless is an error of the read.
func (o *openSource) notice(err error) error {
	if err == nil {
		return nil
	}
	var renamed *blockdev.RenamedError
	kept := &o.lost
	if errors.As(err, &renamed) {
		kept = &o.renamed
	}
	if kept.CompareAndSwap(nil, &err) && o.noticed != nil {
		o.noticed()
	}
	if kept == &o.renamed {
		return nil
	}
	return err
}

// refusal says why nothing is read, nil if it is: for users, or in the background.
func (o *openSource) refusal(background bool) error {
	switch lost, silent, renamed := o.lost.Load(), o.silent.Load(), o.renamed.Load(); {
	case o.device == nil:
		return o.why
	case lost != nil:
		return *lost
	case silent != nil:
		return *silent
	case renamed != nil && background:
		return *renamed
	}
	return nil
}

// replace makes o what is read from now on. One caller at a time.
func (s *source) replace(o *openSource) {
	o.noticed = s.noticed
	old := s.now.Swap(o)
	if old == nil {
		return
	}
	old.done()
	s.closing.Go(guard.Wrap("close the source", func() {
		<-old.idle
		if old.device != nil {
			old.device.Close() // nothing was written through it
		}
	}))
}

// close is the end: no lane reads any more.
func (s *source) close() {
	s.replace(&openSource{why: errNoSource, idle: make(chan struct{}, 1)})
	s.closing.Wait()
}

// reading is how many reads of what is open now are in flight.
func (s *source) reading() int64 { return s.now.Load().users.Load() - 1 }

// device is what is open now, nil if nothing is. It stays open as long as nobody replaces it.
func (s *source) device() *blockdev.Device {
	if o := s.now.Load(); o != nil {
		return o.device
	}
	return nil
}

// takes is the largest request that what is open now takes, in bytes, and how many at a time; 0: anything.
func (s *source) takes() (request int64, depth int) {
	if d := s.device(); d != nil {
		request = d.MaxRequest()
		depth, _ = d.Depth()
	}
	return request, depth
}

// away says why hydration has no source, nil if it has one.
func (s *source) away() error { return s.now.Load().refusal(true) }

// NextData and NextHole are those of what is open (hydrate.Holes).
func (s *source) NextData(off int64) (int64, error) {
	return s.seek(func(d *blockdev.Device) (int64, error) { return d.NextData(off) })
}

func (s *source) NextHole(off int64) (int64, error) {
	return s.seek(func(d *blockdev.Device) (int64, error) { return d.NextHole(off) })
}

// seek looks for holes.
func (s *source) seek(look func(*blockdev.Device) (int64, error)) (int64, error) {
	o := s.take()
	defer o.done()
	if err := o.refusal(true); err != nil {
		return 0, err
	}
	at, err := look(o.device)
	if errors.Is(err, blockdev.ErrChanged) || isRenamed(err) {
		err = o.notice(err)
	}
	return at, err
}

func isRenamed(err error) bool {
	var renamed *blockdev.RenamedError
	return errors.As(err, &renamed)
}
