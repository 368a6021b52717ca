package devices

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// errRemoved: the kernel has removed the block device under its users.
var errRemoved = errors.New("the device was removed")

// letGoTime is for a letGo on the way, which nobody has asked for.
const letGoTime = time.Second

func tryLockFor(mu *sync.Mutex, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); !mu.TryLock(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// LetGo looks at the source, and gives up one that was removed. Its description is dead for ever,
// and keeps what is left of the device in the kernel, which may be in the way of its coming back.
// One that has changed stays open: it may be that nobody else has its bytes any more.
func (s *SourceSide) LetGo() {
	if !s.reopening.TryLock() {
		return
	}
	defer s.reopening.Unlock()
	o := s.Source.Take()
	defer o.Done()
	switch d := o.Device; {
	case d == nil:
	case d.Gone():
		why := &exit.Error{Code: exit.Source, Doing: "read the source", Object: d.Path(), Cause: errRemoved}
		if err := s.readFrom(nil, why); err == nil {
			s.Log.Warn().Err(why).Msg("going on without the source")
		}
	default:
		if err := o.Notice(d.Changed()); err != nil {
			s.Log.Debug().Err(err).Msg("the source has changed")
		}
	}
}

// Find sees to it that the source is open and the right one: the description that is open, if it
// works, or else a new one. What cannot be read and is still the device that its path leads to
// stays: there is no other.
func (s *SourceSide) Find() error {
	if !tryLockFor(&s.reopening, letGoTime) {
		return &exit.Error{Code: exit.Busy, Doing: "look for the source", Object: s.Wanted.Definition.Source, Cause: errors.New("another resume is looking for it already"), Next: "Try again."}
	}
	defer s.reopening.Unlock()
	if found, err := s.works(); found || err != nil {
		return err
	}
	d, err := s.openAgain()
	if err != nil {
		return err
	}
	if err := s.readFrom(d, nil); err != nil {
		return err
	}
	s.Happened.Add(control.EventSource, d.Path()+" was opened again")
	return nil
}

// sourceLook keeps the looks at a source that hangs to one at a time: each keeps a thread and a
// buffer until the source answers, and nothing can end it.
type sourceLook struct {
	sync.Mutex
	since time.Time // zero: none is under way
}

// begin fails, with exit code 5, while an earlier look is under way.
func (l *sourceLook) begin(path string) error {
	l.Lock()
	defer l.Unlock()
	if !l.since.IsZero() {
		return &exit.Error{Code: exit.Busy, Doing: "look at the source", Object: path,
			Cause: fmt.Errorf("the look that began %s ago still waits for its answer", time.Since(l.since).Round(time.Second)),
			Next:  "Try again when the source answers."}
	}
	l.since = time.Now()
	return nil
}

func (l *sourceLook) end() {
	l.Lock()
	defer l.Unlock()
	l.since = time.Time{}
}

// openAgain opens what the source's path leads to now, within answerLimit.
func (s *SourceSide) openAgain() (*blockdev.Device, error) {
	if err := s.lookAtPath.begin(s.Wanted.Definition.Source); err != nil {
		return nil, err
	}
	return inTime(s.Wanted.Definition.Source, func() (*blockdev.Device, error) {
		defer s.lookAtPath.end() // before anybody who hears of the result looks again
		d, err := s.openPath(s.dest.Device)
		if err == nil {
			if err = s.match(d); err != nil {
				err = errors.Join(sourceRefused(d.Path(), err), d.Close())
			}
		}
		return d, err
	})
}

// silentError is of a source that could not be looked at in time.
func silentError(path string) error {
	return &exit.Error{Code: exit.Source, Doing: "look at the source", Object: path,
		Cause: fmt.Errorf("it has not answered for %s: %w", answerLimit, syscall.ETIMEDOUT), Next: "Try again when it answers."}
}

// answerLimit is how long a source may take to be opened and looked at.
const answerLimit = 4 * time.Second

// works says whether what is open is to stay; an error says that it is another source by now. A
// device that hangs keeps its reader for as long as it likes.
func (s *SourceSide) works() (bool, error) {
	o := s.Source.Take()
	if o.Device == nil {
		o.Done()
		return false, nil
	}
	if busy := s.lookAtOpen.begin(o.Device.Path()); busy != nil {
		current := o.Device.Current()
		o.Done()
		if current {
			return false, busy
		}
		return false, nil // its path leads to another device by now
	}
	type found struct {
		again *blockdev.Device // in place of what is open
		err   error
	}
	result := make(chan found, 1)
	guard.Go("look at the source", func() {
		defer o.Done()
		again, err := s.lookAgain(o)
		s.lookAtOpen.end()
		result <- found{again, err}
	})
	var f found
	select {
	case f = <-result:
	case <-time.After(answerLimit):
		f.err = silentError(o.Device.Path())
		guard.Go("close the source", func() {
			if f := <-result; f.again != nil {
				f.again.Close() // nobody waits for it any more
			}
		})
	}
	switch noticed := o.Refusal(true) != nil; {
	case f.again != nil:
		return true, s.useAgain(f.again)
	case f.err == nil:
		return true, nil
	case noticed && !o.Device.IsBlock():
		return false, nil // its path may lead to the right one
	case noticed || !blockdev.Away(f.err):
		return false, sourceRefused(o.Device.Path(), f.err)
	}
	return o.Device.Current(), nil
}

// lookAgain reads samples of what is open. If something was noticed of it, there is another
// description of the device in its place, which is taken as it is now.
func (s *SourceSide) lookAgain(o *dataplane.OpenSource) (again *blockdev.Device, err error) {
	if o.Refusal(true) == nil {
		_, err := s.same(o.Device)
		return nil, err
	}
	if again, err = o.Device.Again(); err != nil {
		return nil, err
	}
	if err := s.match(again); err != nil {
		return nil, errors.Join(err, again.Close())
	}
	return again, nil
}

// useAgain makes d, whose content was found to be the right one, what is read from now on.
func (s *SourceSide) useAgain(d *blockdev.Device) error {
	why := s.Source.Away()
	if err := s.readFrom(d, nil); err != nil {
		return err
	}
	s.Happened.Add(control.EventSource, fmt.Sprintf("%s is used again, because samples of its content are unchanged (%v)", d.Path(), why))
	return nil
}
