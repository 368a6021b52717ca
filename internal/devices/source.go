package devices

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/identity"
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
// At every open it is looked at whether it is the one of before. An add refuses another one, or one
// in use. A recovery has users who wait, and goes on without it.

// SourceSide is the clone's source: opened, missed, taken back. The steps open it; later any
// goroutine may call Find, LetGo and PutPrint, and what dataplane.Source has for all.
type SourceSide struct {
	*Shared
	dataplane.Source
	fence *Fence
	meta  *MetadataSide
	dest  *DestSide
	Save  func(context.Context) error // writes the superblock

	print     identity.SourcePrint // of the source at the start, if it was there
	busySince time.Time            // when it was found locked, in a recovery
	busyLimit time.Duration

	reopening  sync.Mutex // one caller of Find at a time
	lookAtOpen sourceLook // at the source that is open
	lookAtPath sourceLook // at what the source's path leads to

	mu struct {
		sync.Mutex
		print *identity.SourcePrint // of the source that was taken back
	}
}

// open opens the source, or finds that the clone does without.
func (s *SourceSide) open(beside []*blockdev.Device) error {
	err := s.meta.find()
	if s.meta.Found != nil && s.meta.Found.Complete {
		return s.readFrom(nil, dataplane.ErrNoSource)
	}
	open := s.openPath
	if s.Wanted.Recover {
		open = s.openInTime
	}
	d, errOpen := open(beside...)
	if errOpen == nil {
		return s.readFrom(d, nil)
	}
	switch {
	case s.Wanted.Recover && exit.Code(errOpen) == exit.Busy && s.mayBeBusy():
		return errOpen
	case s.Wanted.Recover && err == nil:
	case !blockdev.Away(errOpen) || s.Wanted.Create || errors.Is(err, metadata.ErrEmpty):
		return errOpen
	case err != nil:
		return explain.Metadata("open", s.Wanted.Definition.Metadata, err)
	}
	return s.readFrom(nil, errOpen)
}

func (s *SourceSide) openPath(others ...*blockdev.Device) (*blockdev.Device, error) {
	if err := neighbours.Refuse(&s.Wanted, blockdev.Source, s.Warn); err != nil {
		return nil, err
	}
	def := &s.Wanted.Definition
	return blockdev.Open(blockdev.Source, def.Source, blockdev.Options{Shared: def.SourceShared, Force: s.accepts(), Others: others, Tolerate: s.tolerance()})
}

// sourceBusyLimit is how long a recovery waits for a source that is locked, as by the last reads of
// the dead daemon. It may do without, and users of what is hydrated need not wait for one that
// hangs.
const sourceBusyLimit = 5 * time.Second

// mayBeBusy says whether to wait for the source.
func (s *SourceSide) mayBeBusy() bool {
	if s.busySince.IsZero() {
		s.busySince = time.Now()
		s.busyLimit = min(sourceBusyLimit, s.fence.Left()/2)
	}
	return time.Since(s.busySince) < s.busyLimit
}

// openInTime opens the source and sees that it answers, within answerLimit.
func (s *SourceSide) openInTime(others ...*blockdev.Device) (*blockdev.Device, error) {
	return inTime(s.Wanted.Definition.Source, func() (*blockdev.Device, error) {
		d, err := s.openPath(others...)
		if err == nil {
			if err = d.Answers(); err != nil {
				err = errors.Join(err, d.Close())
			}
		}
		return d, err
	})
}

// inTime gives what open does, if it ends within answerLimit. What it opens later is closed.
func inTime(path string, open func() (*blockdev.Device, error)) (*blockdev.Device, error) {
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
		return nil, silentError(path)
	}
}

// readFrom makes d, or the want of one, what is read from now on.
func (s *SourceSide) readFrom(d *blockdev.Device, why error) error {
	o, err := dataplane.NewOpenSource(d, why)
	if err != nil {
		return errors.Join(err, d.Close())
	}
	s.Source.Replace(o)
	return nil
}

// known is what the metadata says of the source: as it is now, or what it said before where it is
// away. It is away, too, when it cannot be read, and for a recovery, which nobody has asked whether
// it may have changed, when it is not what it was.
func (s *SourceSide) known() (identity.SourcePrint, error) {
	d := s.Source.Device()
	if d == nil {
		return identity.PrintOf(s.meta.Found), nil
	}
	print, err := identity.PrintSource(d, s.meta.Found)
	if err == nil && s.meta.Found != nil && s.Wanted.Recover {
		if err = s.meta.Found.MatchUsedSource(print.Superblock()); err != nil {
			err = &exit.Error{Code: exit.Source, Doing: "go on with the source", Object: d.Path(), Cause: fmt.Errorf("%w: %w", blockdev.ErrChanged, err)}
		}
	}
	if err == nil || s.meta.Found == nil || !blockdev.Away(err) && !s.Wanted.Recover {
		s.print = print
		return print, err
	}
	s.Log.Warn().Err(err).Msg("going on without the source")
	return identity.PrintOf(s.meta.Found), s.readFrom(nil, err)
}

// RenewPrint keeps what the source is like now, which was found to be the right one: metadata of
// a former release have not all of it, and its inode may have changed while nobody used it.
func (s *SourceSide) RenewPrint(sb *metadata.Superblock) {
	if s.Source.Device() != nil && s.print.Pieces.Known() > 0 {
		s.print.Put(sb)
	}
}

// notePrint keeps what the source that was taken back is like now, for the next start to find it
// so. Nobody waits for it: metadata that hang would keep a source away that is there.
func (s *SourceSide) notePrint(print identity.SourcePrint) {
	s.mu.Lock()
	s.mu.print = &print
	s.mu.Unlock()
	guard.Go("note the source", func() {
		if err := s.Save(context.Background()); err != nil {
			s.Log.Warn().Err(err).Msg("the metadata does not know the times of the source as it was taken back")
		}
	})
}

// PutPrint has sb say what the source that was taken back is like.
func (s *SourceSide) PutPrint(sb *metadata.Superblock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.mu.print; p != nil {
		p.Put(sb)
	}
}

// match says in which way d, just opened, is not the source.
func (s *SourceSide) match(d *blockdev.Device) error {
	geo, err := blockdev.Match(d, s.dest.Device, s.dest.Geometry.Size, true)
	if err == nil && geo.LogicalBlock != s.dest.Geometry.LogicalBlock {
		err = fmt.Errorf("%w: its logical blocks are of %d bytes, the clone's of %d", metadata.ErrMismatch, d.LogicalBlock(), s.dest.Geometry.LogicalBlock)
	}
	if err != nil {
		return err
	}
	print, err := s.same(d)
	if err != nil {
		return err
	}
	sb := s.meta.Store.Superblock()
	if err := sb.MatchUsedSource(print.Superblock()); err != nil {
		s.Log.Warn().Err(err).Msg("the source is taken back although its times have changed, because samples of its content are unchanged")
		s.notePrint(print)
	}
	return nil
}

// same says in which way the content of d is not that of the source which the metadata knows. Its
// times do not count: whoever asks was told that it is the right one.
func (s *SourceSide) same(d *blockdev.Device) (identity.SourcePrint, error) {
	sb := s.meta.Store.Superblock()
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
