package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/committer"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/identity"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/metadev"
	"github.com/ublk-clone/ublk-clone/internal/rate"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// session is the time from the loading of the region map to the clean flag: what is written to the
// metadata while the clone is served. A recovery goes on with the session of the dead daemon. The
// steps begin and end it; in between only the committer's goroutine writes to the metadata.
type session struct {
	*devices.Devices
	live      *liveMap
	lanes     *lanes
	committer *committer.Committer
	counters  metadata.Counters // of former daemons
	sampler   rate.Sampler
	parting   []string // what whoever ends the clone should know, when it has ended
}

// readMap opens the live map, or makes one, and fills it from the metadata.
func (s *session) readMap(nr uint64) (*bitmap.Map, error) {
	if err := s.live.open(nr); err != nil {
		return nil, err
	}
	s.Happened.KeepIn(s.live.Map)
	regions := s.live.newMap(nr)
	if s.Meta.Detached() != nil {
		return regions, s.live.fillAlone(regions)
	}
	if err := s.live.fill(regions); err != nil {
		if !s.live.taken || !metadev.Unreadable(err) {
			return nil, err
		}
		return s.mapInstead(nr, err)
	}
	if !s.live.taken { // else it knows, and the metadata went by that
		s.live.SetCommit(s.Meta.Store.CommitSequence())
	}
	s.live.SetLoaded()
	if s.live.taken {
		if err := s.open(); err != nil {
			return s.mapInstead(nr, err)
		}
	}
	return regions, nil
}

// mapInstead is the map when the live map stands in for metadata that has failed because of cause.
func (s *session) mapInstead(nr uint64, cause error) (*bitmap.Map, error) {
	if err := s.Meta.StandIn(cause); err != nil {
		return nil, err
	}
	regions := s.live.newMap(nr) // with what could be read, which was in it before
	return regions, s.live.fillAlone(regions)
}

// begin clears the clean flag, and flushes that, before the first request is answered (I6), and
// starts the committer.
func (s *session) begin(context.Context) error {
	s.live.SetLife(livemap.LifeBegun)
	if !s.live.taken { // else readMap has done it, or the live map stands in
		// If this fails the superblock may say all the same that the session has begun, and the
		// next daemon asks for its live map. (What a failed start has created is removed, and the
		// map with it.)
		s.live.ended = s.Meta.Created
		if err := s.open(); err != nil {
			return err
		}
	}
	s.live.ended = false
	if why := s.trouble(); why != "" {
		s.Warn("%s `ublk-clone status %s` says what to do.", why, s.Wanted.Definition.Name)
	}
	s.counters = s.Meta.Store.Superblock().Counters
	c := s.committer
	c.Core, c.Dest, c.Store, c.Refresh, c.Update = s.lanes.core, flusher{s.Dest.Device}, mapStore{s.Meta.Store, s.live.Map}, s.refresh, s.update
	c.Sample = &s.Dest.Sample
	c.Complete, c.Mode = s.lanes.core.Complete(), s.lanes.core.Mode()
	guard.Go("committer", c.Run)
	s.sampler.Start(s.lanes.progress)
	usable := func() bool { return s.Meta.Detached() == nil && s.lanes.core.Mode() == clone.ReadWrite }
	s.Dest.Sample.Start(s.lanes.core, s.Dest.Device, s.Dest.Geometry.Size, usable, s.committer.Kick)
	return nil
}

// trouble says what has happened that keeps marks from being committed (I10), "" for nothing.
func (s *session) trouble() string {
	switch {
	case s.lanes.core.FlushLost():
		return "A flush of the destination failed: what was written to the clone since the flush before it may be lost."
	case s.lanes.core.Mode() != clone.ReadWrite:
		return "The metadata could not be written: what was written to the clone since the last commit is marked in memory only, until this machine restarts."
	}
	return ""
}

// Farewell is what whoever ends the clone should know.
func (s *session) Farewell() []string { return s.parting }

// open writes the superblock of a session that begins, or goes on.
func (s *session) open() error {
	machine, boot, err := host.Identities()
	if err != nil {
		return err
	}
	err = s.update(func(sb *metadata.Superblock) error {
		sb.Clean, sb.MachineID, sb.BootID = false, machine, boot
		sb.Session = s.live.session
		sb.Counters.Starts++
		if s.Wanted.Recover {
			sb.Counters.Recoveries++
		}
		s.Source.RenewPrint(sb)
		sb.Source.Path, sb.Dest.Path = identity.ShortPath(s.Wanted.Definition.Source), identity.ShortPath(s.Dest.Path())
		sb.Settings = s.Settings.Get().ToMetadata()
		sb.DestInstance = identity.DestInstance(s.Dest.Device, s.live.session)
		sb.DestSample = s.Dest.Sample.Known(sb.Session)
		return nil
	})
	if err != nil {
		return explain.Metadata("write", s.Wanted.Definition.Metadata, err)
	}
	return nil
}

// update changes the superblock, and the live map's copy of it. That is for a session that goes on.
func (s *session) update(change func(*metadata.Superblock) error) error {
	err := s.Meta.Store.Update(change)
	if err == nil && !s.Meta.Store.Superblock().Clean {
		s.live.SetSuperblock(s.Meta.Store.Copy())
	}
	return err
}

// mapStore is the store as the core has it: the live map knows of a commit before anybody is
// answered.
type mapStore struct {
	*metadata.Store
	live *livemap.Map
}

func (s mapStore) Flush() error {
	err := s.Store.Flush()
	if err == nil {
		s.live.SetCommit(s.CommitSequence())
	}
	return err
}

// flusher flushes the destination through its one description (I7).
type flusher struct{ dest *blockdev.Device }

func (f flusher) Flush() error { return sys.Fdatasync(int(f.dest.File().Fd())) }

// refresh brings the superblock up to date.
func (s *session) refresh(sb *metadata.Superblock) error {
	st := s.lanes.core.Stats()
	sb.Counters = s.counters
	sb.Counters.BytesCopied += uint64(st.Copied)
	sb.Counters.BytesWritten += uint64(st.Written)
	sb.Counters.BytesDiscarded += uint64(st.Discarded)
	_, _, active := s.sampler.Rates()
	sb.Counters.ActiveSeconds += uint64(active)
	sb.Mode = max(sb.Mode, metadata.Mode(s.lanes.core.Mode()))
	sb.DestFlushFailed = sb.DestFlushFailed || s.lanes.core.FlushLost()
	sb.Complete = sb.Complete || s.lanes.core.Complete()
	s.Source.PutPrint(sb)
	sb.Settings = s.Settings.Get().ToMetadata()
	sb.DestSample = s.Dest.Sample.Known(sb.Session)
	return nil
}

// commitWithin commits before leaving. What fails has been acted on, and keeps nobody from leaving:
// the live map has all marks.
func (s *session) commitWithin(ctx context.Context) error {
	ended := make(chan error, 1)
	guard.Go("commit before leaving", func() {
		ended <- s.committer.Do(ctx, func() error {
			err := s.lanes.core.Commit(s.committer.Dest, s.committer.Store)
			if errors.Is(err, clone.ErrCommitPutOff) {
				return nil // the last one does it
			}
			return err
		})
	})
	select {
	case err := <-ended:
		if err != nil {
			s.Log.Warn().Err(err).Msg("commit before leaving")
		}
		return nil
	case <-ctx.Done():
		return errors.New("a commit to the destination and the metadata has not ended")
	}
}

// end is the last commit and, if all of it succeeded, the clean flag. Nobody marks any more.
func (s *session) end() error {
	s.sampler.Stop()
	s.Dest.Sample.Stop()
	s.committer.Stop()
	known := s.trouble()
	err := s.lanes.core.Commit(s.committer.Dest, s.committer.Store)
	if err == nil {
		exact := !s.Ending.Keep && s.Dest.Sample.Last()
		err = s.update(func(sb *metadata.Superblock) error {
			sb.Clean = !s.Ending.Keep // the session goes on with the next daemon
			err := s.refresh(sb)
			if exact {
				sb.DestSample.ExactAt = metadata.ThisUpdate
			}
			return err
		})
	}
	s.lastRecord()
	if known != "" && toldBefore(err) || errors.Is(err, clone.ErrFlushLost) {
		// This end has not failed because of it. The live map stays.
		s.parting = append(s.parting, cmp.Or(known, s.trouble())+" The metadata has no clean flag.")
		return nil
	}
	if err != nil { // the live map stays: it has what is not committed
		return explain.Metadata("commit to", s.Wanted.Definition.Metadata, fmt.Errorf("no clean flag is set: %w", err))
	}
	s.live.ended = !s.Ending.Keep
	if s.live.ended {
		s.live.SetLife(livemap.LifeEnded)
	}
	return s.Ending.Fault(7)
}

// toldBefore says that a session cannot end with a clean flag for a reason that was told when the
// metadata failed: there are marks that cannot be committed, or slots that a failed repair has
// written.
func toldBefore(err error) bool {
	return errors.Is(err, clone.ErrReadOnly) || errors.Is(err, metadata.ErrUnflushed)
}
