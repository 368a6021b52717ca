package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/identity"
	"github.com/ublk-clone/ublk-clone/internal/metadev"
	"github.com/ublk-clone/ublk-clone/internal/neighbours"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// This file opens the source, goes on without it (I11), and takes it back when it has come back:
//
//	new clone    it is needed, and another one, or one in use, is refused
//	complete     it is not opened: nothing is read from it any more, and it may be in use for something else
//	otherwise    it may be away, or go away; what is hydrated is served, whole regions can be written, reads of others fail
//	             and hydration is stalled, until resume finds it
//
// At every open it is looked at whether it is the one of before. An add refuses another one, or one in use. A recovery has
// users who wait, and goes on without it.

// openSource opens the source, or finds that the clone does without.
func (e *Engine) openSource(context.Context) error {
	err := e.findMetadata()
	if e.found != nil && e.found.Complete {
		return e.useSource(nil, dataplane.ErrNoSource)
	}
	open := e.openSourcePath
	if e.start.Recover {
		open = e.openSourceInTime
	}
	d, errOpen := open(e.beside()...)
	if errOpen == nil {
		return e.useSource(d, nil)
	}
	switch {
	case e.start.Recover && exit.Code(errOpen) == exit.Busy && e.mayBeBusy():
		return errOpen
	case e.start.Recover && err == nil:
	case !blockdev.Away(errOpen) || e.start.Create || errors.Is(err, metadata.ErrEmpty):
		return errOpen
	case err != nil:
		return explain.Metadata("open", e.start.Definition.Metadata, err)
	}
	return e.useSource(nil, errOpen)
}

// findMetadata looks for metadata that were there before this start, or what stands in for them.
func (e *Engine) findMetadata() error {
	if e.start.Create {
		return nil
	}
	store, err := e.store, e.detached()
	if err == nil {
		store, _, err = metadata.Open(e.meta)
		if err != nil && e.start.Recover && metadev.Unreadable(err) {
			store, err = metadev.FromLiveMap(e.start.Definition.Mark)
		}
		if err != nil {
			return err
		}
	}
	sb := store.Superblock()
	e.found = &sb
	return nil
}

func (e *Engine) openSourcePath(others ...*blockdev.Device) (*blockdev.Device, error) {
	if err := neighbours.Refuse(&e.start, blockdev.Source, e.Warn); err != nil {
		return nil, err
	}
	def := &e.start.Definition
	return blockdev.Open(blockdev.Source, def.Source, blockdev.Options{Shared: def.SourceShared, Force: e.accepts(), Others: others, Tolerate: e.tolerance()})
}

// sourceBusyLimit is how long a recovery waits for a source that is locked, as by the last reads of the dead daemon. It may do
// without, and users of what is hydrated need not wait for one that hangs.
const sourceBusyLimit = 5 * time.Second

// mayBeBusy says whether to wait for the source.
func (e *Engine) mayBeBusy() bool {
	if e.busySince.IsZero() {
		e.busySince = time.Now()
		e.busyLimit = min(sourceBusyLimit, e.fenceTime()/2)
	}
	return time.Since(e.busySince) < e.busyLimit
}

// openSourceInTime opens the source and sees that it answers, within answerLimit.
func (e *Engine) openSourceInTime(others ...*blockdev.Device) (*blockdev.Device, error) {
	return e.inTime(func() (*blockdev.Device, error) {
		d, err := e.openSourcePath(others...)
		if err == nil {
			if err = d.Answers(); err != nil {
				err = errors.Join(err, d.Close())
			}
		}
		return d, err
	})
}

// inTime gives what open does, if it ends within answerLimit. What it opens later is closed.
func (e *Engine) inTime(open func() (*blockdev.Device, error)) (*blockdev.Device, error) {
	type opened struct {
		device *blockdev.Device
		err    error
	}
	result := make(chan opened, 1)
	guard.Go("open the source", func() {
		d, err := open()
		result <- opened{d, err}
	})
	select {
	case o := <-result:
		return o.device, o.err
	case <-time.After(answerLimit):
		guard.Go("close the source", func() {
			if o := <-result; o.err == nil {
				o.device.Close() // nobody waits for it any more
			}
		})
		return nil, silentError(e.start.Definition.Source)
	}
}

// useSource makes d, or the want of one, what is read from now on.
func (e *Engine) useSource(d *blockdev.Device, why error) error {
	o, err := dataplane.NewOpenSource(d, why)
	if err != nil {
		return errors.Join(err, d.Close())
	}
	e.source.Replace(o)
	return nil
}

// knownSource is what the metadata say of the source: as it is now, or what they said before where it is away. It is away, too,
// when it cannot be read, and for a recovery, which nobody has asked whether it may have changed, when it is not what it was.
func (e *Engine) knownSource() (identity.SourcePrint, error) {
	d := e.source.Device()
	if d == nil {
		return identity.PrintOf(e.found), nil
	}
	print, err := identity.PrintSource(d, e.found)
	if err == nil && e.found != nil && e.start.Recover {
		if err = e.found.MatchUsedSource(print.Superblock()); err != nil {
			err = &exit.Error{Code: exit.Source, Doing: "go on with the source", Object: d.Path(), Cause: fmt.Errorf("%w: %w", blockdev.ErrChanged, err)}
		}
	}
	if err == nil || e.found == nil || !blockdev.Away(err) && !e.start.Recover {
		e.print = print
		return print, err
	}
	e.log.Warn().Err(err).Msg("going on without the source")
	return identity.PrintOf(e.found), e.useSource(nil, err)
}

// completePrint keeps what the source is like now, which was found to be the right one: metadata of a former release have not
// all of it, and its inode may have changed while nobody used it.
func (e *Engine) completePrint(sb *metadata.Superblock) {
	if e.source.Device() != nil && e.print.Pieces.Known() > 0 {
		e.print.Put(sb)
	}
}

// notePrint keeps what the source that was taken back is like now, for the next start to find it so. Nobody waits for it:
// metadata that hang would keep a source away that is there.
func (e *Engine) notePrint(print identity.SourcePrint) {
	e.mu.Lock()
	e.mu.print = &print
	e.mu.Unlock()
	guard.Go("note the source", func() {
		if err := e.committer.Save(context.Background()); err != nil {
			e.log.Warn().Err(err).Msg("the metadata do not know the times of the source as it was taken back")
		}
	})
}

// sourceAway says why the clone lacks its source, nil if it does not.
func (e *Engine) sourceAway() error {
	if e.core.Complete() {
		return nil
	}
	return e.source.Away()
}

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

// letGo looks at the source, and gives up one that was removed. Its description is dead for ever, and keeps what is left of
// the device in the kernel, which may be in the way of its coming back. One that has changed stays open: it may be that
// nobody else has its bytes any more.
func (e *Engine) letGo() {
	if !e.reopening.TryLock() {
		return
	}
	defer e.reopening.Unlock()
	o := e.source.Take()
	defer o.Done()
	switch d := o.Device; {
	case d == nil:
	case d.Gone():
		why := &exit.Error{Code: exit.Source, Doing: "read the source", Object: d.Path(), Cause: errRemoved}
		if err := e.useSource(nil, why); err == nil {
			e.log.Warn().Err(why).Msg("going on without the source")
		}
	default:
		if err := o.Notice(d.Changed()); err != nil {
			e.log.Debug().Err(err).Msg("the source has changed")
		}
	}
}

// Retry takes back a source that has come back, and forgets what failed. With an error nothing has changed.
func (e *Engine) Retry(ctx context.Context) error {
	if !e.core.Complete() {
		if err := e.findSource(); err != nil {
			return err
		}
	}
	if err := control.Still(ctx); err != nil {
		return err
	}
	e.background.Resume()
	return nil
}

// findSource sees to it that the source is open and the right one: the description that is open, if it works, or
// else a new one. What cannot be read and is still the device that its path leads to stays: there is no other.
func (e *Engine) findSource() error {
	if !tryLockFor(&e.reopening, letGoTime) {
		return &exit.Error{Code: exit.Busy, Doing: "look for the source", Object: e.start.Definition.Source, Cause: errors.New("another resume does so"), Next: "Try again."}
	}
	defer e.reopening.Unlock()
	if found, err := e.works(); found || err != nil {
		return err
	}
	d, err := e.openAgain()
	if err != nil {
		return err
	}
	if err := e.useSource(d, nil); err != nil {
		return err
	}
	e.happened.Add(control.EventSource, d.Path()+" was opened again")
	return nil
}

// sourceLook keeps the looks at a source that hangs to one at a time: each keeps a thread and a buffer until the source
// answers, and nothing can end it.
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
func (e *Engine) openAgain() (*blockdev.Device, error) {
	if err := e.lookAtPath.begin(e.start.Definition.Source); err != nil {
		return nil, err
	}
	return e.inTime(func() (*blockdev.Device, error) {
		defer e.lookAtPath.end() // before anybody who hears of the result looks again
		d, err := e.openSourcePath(e.dest)
		if err == nil {
			if err = e.matchSource(d); err != nil {
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

// works says whether what is open is to stay; an error says that it is another source by now. A device that hangs
// keeps its reader for as long as it likes.
func (e *Engine) works() (bool, error) {
	o := e.source.Take()
	if o.Device == nil {
		o.Done()
		return false, nil
	}
	if busy := e.lookAtOpen.begin(o.Device.Path()); busy != nil {
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
		again, err := e.lookAgain(o)
		e.lookAtOpen.end()
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
		return true, e.useAgain(f.again)
	case f.err == nil:
		return true, nil
	case noticed && !o.Device.IsBlock():
		return false, nil // its path may lead to the right one
	case noticed || !blockdev.Away(f.err):
		return false, sourceRefused(o.Device.Path(), f.err)
	}
	return o.Device.Current(), nil
}

// lookAgain reads samples of what is open. If something was noticed of it, there is another description of the device in its
// place, which is taken as it is now.
func (e *Engine) lookAgain(o *dataplane.OpenSource) (again *blockdev.Device, err error) {
	if o.Refusal(true) == nil {
		_, err := e.sameSource(o.Device)
		return nil, err
	}
	if again, err = o.Device.Again(); err != nil {
		return nil, err
	}
	if err := e.matchSource(again); err != nil {
		return nil, errors.Join(err, again.Close())
	}
	return again, nil
}

// useAgain makes d, whose content was found to be the right one, what is read from now on.
func (e *Engine) useAgain(d *blockdev.Device) error {
	why := e.source.Away()
	if err := e.useSource(d, nil); err != nil {
		return err
	}
	e.happened.Add(control.EventSource, fmt.Sprintf("%s is used again, as samples of its content are those of before (%v)", d.Path(), why))
	return nil
}

// matchSource says in which way d, just opened, is not the source.
func (e *Engine) matchSource(d *blockdev.Device) error {
	geo, err := blockdev.Match(d, e.dest, e.geometry.Size, true)
	if err == nil && geo.LogicalBlock != e.geometry.LogicalBlock {
		err = fmt.Errorf("%w: its logical blocks are of %d bytes, the clone's of %d", metadata.ErrMismatch, d.LogicalBlock(), e.geometry.LogicalBlock)
	}
	if err != nil {
		return err
	}
	print, err := e.sameSource(d)
	if err != nil {
		return err
	}
	sb := e.store.Superblock()
	if err := sb.MatchUsedSource(print.Superblock()); err != nil {
		e.log.Warn().Err(err).Msg("the source is taken back although its times have changed, as samples of its content are those of before")
		e.notePrint(print)
	}
	return nil
}

// sameSource says in which way the content of d is not that of the source which the metadata know. Its times do not count:
// whoever asks was told that it is the right one.
func (e *Engine) sameSource(d *blockdev.Device) (identity.SourcePrint, error) {
	sb := e.store.Superblock()
	print, err := identity.PrintSource(d, &sb)
	if err != nil {
		return print, err
	}
	return print, sb.MatchSourceContent(print.Superblock())
}

// sourceRefused gives the error of another source its exit code; others have theirs.
func sourceRefused(path string, err error) error {
	if !errors.Is(err, metadata.ErrMismatch) {
		return err
	}
	return &exit.Error{Code: exit.Source, Doing: "go on with the source", Object: path, Cause: err,
		Next: "Nothing was changed. It is another device, or its contents have changed: bring back the one that was cloned."}
}
