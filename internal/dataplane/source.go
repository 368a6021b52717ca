package dataplane

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// Source is what all lanes read the source through. What is open can be exchanged while they do: a
// device that has gone away and comes back is another one to the kernel, and its old description
// stays dead for ever.
//
//	lanes     take, read, done: two atomic operations a read, no lock
//	replace   new reads take the new description from then on; the old one is closed when the last read that
//	          has taken it ends, with its error
//
// take may come to nothing between its two steps, as the description that it has counted is not the
// one of now any more; then it tries the next.
//
// While it is used it is watched (I14, I15): each lane looks at the file in every round in which it
// has read, before the bytes are used, and the engine looks at all sources every second. What is
// noticed stays with the description:
//
//	lost     it has changed: nothing of it is used any more, and reads fail
//	silent   it has not answered for a time: no more reads are given to it, and they fail, until it answers
//	renamed  its file has lost or got a name: users are served, hydration waits for a word
//
// resume looks at the content, and replaces the description by another one of the same device.
type Source struct {
	Now     atomic.Pointer[OpenSource]
	closing sync.WaitGroup // old descriptions
	Noticed func()         // tells the watcher; any thread, and it does not block
}

// OpenSource is one description of the source, or the want of one.
type OpenSource struct {
	Device *blockdev.Device // nil: there is none
	File   *File
	why    error // there is none; for the user
	// users are the reads in flight, and one more while this is the source of now.
	users atomic.Int64
	Idle  chan struct{} // has an element when users has become 0

	lost, silent, renamed atomic.Pointer[error]
	noticed               func()
	silentSince           int64 // the watcher's, see clock
}

// ErrNoSource is of a clone that is complete.
var ErrNoSource = errors.New("it is not needed any more")

// NewOpenSource takes device over; nil is the want of one, with why.
func NewOpenSource(device *blockdev.Device, why error) (*OpenSource, error) {
	o := &OpenSource{Device: device, why: why, Idle: make(chan struct{}, 1)}
	o.users.Store(1)
	if device == nil {
		return o, nil
	}
	var err error
	o.File, err = NewFile(device)
	return o, err
}

// Take gives the description of now; done follows, from any thread. Reads that have taken it are
// safe from its being closed.
func (s *Source) Take() *OpenSource {
	for {
		o := s.Now.Load()
		o.users.Add(1)
		if o == s.Now.Load() {
			return o
		}
		o.Done()
	}
}

func (o *OpenSource) Done() {
	if o.users.Add(-1) == 0 {
		select {
		case o.Idle <- struct{}{}:
		default: // a take that came to nothing
		}
	}
}

// Look is asked when reads have ended, before their bytes are used. It says why they are not to be.
func (o *OpenSource) Look() error {
	if lost := o.lost.Load(); lost != nil {
		return *lost
	}
	return o.Notice(o.Device.CheckRead())
}

// Notice keeps what a look has found. Only what makes the bytes useless is an error of the read.
func (o *OpenSource) Notice(err error) error {
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

// Refusal says why nothing is read, nil if it is: for users, or in the background.
func (o *OpenSource) Refusal(background bool) error {
	switch lost, silent, renamed := o.lost.Load(), o.silent.Load(), o.renamed.Load(); {
	case o.Device == nil:
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

// Replace makes o what is read from now on. One caller at a time.
func (s *Source) Replace(o *OpenSource) {
	o.noticed = s.Noticed
	old := s.Now.Swap(o)
	if old == nil {
		return
	}
	old.Done()
	s.closing.Go(guard.Wrap("close the source", func() {
		<-old.Idle
		if old.Device != nil {
			old.Device.Close() // nothing was written through it
		}
	}))
}

// Close is the end: no lane reads any more.
func (s *Source) Close() {
	s.Replace(&OpenSource{why: ErrNoSource, Idle: make(chan struct{}, 1)})
	s.closing.Wait()
}

// Reading is how many reads of what is open now are in flight.
func (s *Source) Reading() int64 { return s.Now.Load().users.Load() - 1 }

// Device is what is open now, nil if nothing is. It stays open as long as nobody replaces it.
func (s *Source) Device() *blockdev.Device {
	if o := s.Now.Load(); o != nil {
		return o.Device
	}
	return nil
}

// takes is the largest request that what is open now takes, in bytes, and how many at a time; 0:
// anything.
func (s *Source) takes() (request int64, depth int) {
	if d := s.Device(); d != nil {
		request = d.MaxRequest()
		depth, _ = d.Depth()
	}
	return request, depth
}

// Away says why hydration has no source, nil if it has one.
func (s *Source) Away() error { return s.Now.Load().Refusal(true) }

// NextData and NextHole are those of what is open (hydrate.Holes).
func (s *Source) NextData(off int64) (int64, error) {
	return s.seek(func(d *blockdev.Device) (int64, error) { return d.NextData(off) })
}

func (s *Source) NextHole(off int64) (int64, error) {
	return s.seek(func(d *blockdev.Device) (int64, error) { return d.NextHole(off) })
}

// seek looks for holes.
func (s *Source) seek(look func(*blockdev.Device) (int64, error)) (int64, error) {
	o := s.Take()
	defer o.Done()
	if err := o.Refusal(true); err != nil {
		return 0, err
	}
	at, err := look(o.Device)
	if errors.Is(err, blockdev.ErrChanged) || IsRenamed(err) {
		err = o.Notice(err)
	}
	return at, err
}

func IsRenamed(err error) bool {
	var renamed *blockdev.RenamedError
	return errors.As(err, &renamed)
}
