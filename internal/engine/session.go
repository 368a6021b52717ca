package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/identity"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// beginSession clears the clean mark, and flushes that, before the first request is answered (I6), and
// starts the committer.
func (e *Engine) beginSession(context.Context) error {
	e.live.SetLife(livemap.LifeBegun)
	if !e.live.taken { // else readMap has done it, or the live map stands in
		// If this fails the superblock may say all the same that the session has begun, and the next daemon asks for its
		// live map. (What a failed start has created is removed, and the map with it.)
		e.live.ended = e.meta.created
		if err := e.openSession(); err != nil {
			return err
		}
	}
	e.live.ended = false
	if why := e.trouble(); why != "" {
		e.Warn("%s `ublk-clone status %s` says what to do.", why, e.start.Definition.Name)
	}
	e.base = e.meta.store.Superblock().Counters
	c := e.committer
	c.Core, c.Dest, c.Store, c.Refresh, c.Update = e.core, flusher{e.dest.Device}, mapStore{e.meta.store, e.live.Map}, e.refresh, e.updateStore
	c.Sample = &e.dest.sample
	c.Complete, c.Mode = e.core.Complete(), e.core.Mode()
	guard.Go("committer", c.Run)
	e.sampler.Start(e.progress)
	usable := func() bool { return e.meta.detached() == nil && e.core.Mode() == clone.ReadWrite }
	e.dest.sample.Start(e.core, e.dest.Device, e.dest.geometry.Size, usable, e.committer.Kick)
	return nil
}

// trouble says what has happened that keeps marks from being committed (I10), "" for nothing.
func (e *Engine) trouble() string {
	switch {
	case e.core.FlushLost():
		return "A flush of the destination failed: what was written to the clone since the flush before it may be lost."
	case e.core.Mode() != clone.ReadWrite:
		return "The metadata could not be written: what was written to the clone since the last commit is marked in memory only, until this machine restarts."
	}
	return ""
}

// Farewell is what whoever ends the clone should know.
func (e *Engine) Farewell() []string { return e.parting }

// openSession writes the superblock of a session that begins, or goes on.
func (e *Engine) openSession() error {
	machine, boot, err := host.Identities()
	if err != nil {
		return err
	}
	err = e.updateStore(func(sb *metadata.Superblock) error {
		sb.Clean, sb.MachineID, sb.BootID = false, machine, boot
		sb.Session = e.live.session
		sb.Counters.Starts++
		if e.start.Recover {
			sb.Counters.Recoveries++
		}
		e.source.completePrint(sb)
		sb.Source.Path, sb.Dest.Path = identity.ShortPath(e.start.Definition.Source), identity.ShortPath(e.dest.Path())
		sb.Settings = e.settings.get().ToMetadata()
		sb.DestMark = identity.DestMark(e.dest.Device, e.live.session)
		sb.DestSample = e.dest.sample.Known(sb.Session)
		return nil
	})
	if err != nil {
		return explain.Metadata("write", e.start.Definition.Metadata, err)
	}
	return nil
}

// updateStore changes the superblock, and the live map's copy of it. That is for a session that goes on.
func (e *Engine) updateStore(change func(*metadata.Superblock) error) error {
	err := e.meta.store.Update(change)
	if err == nil && !e.meta.store.Superblock().Clean {
		e.live.SetSuperblock(e.meta.store.Copy())
	}
	return err
}

// mapStore is the store as the core has it: the live map knows of a commit before anybody is answered.
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
func (e *Engine) refresh(sb *metadata.Superblock) error {
	st := e.core.Stats()
	sb.Counters = e.base
	sb.Counters.BytesCopied += uint64(st.Copied)
	sb.Counters.BytesWritten += uint64(st.Written)
	sb.Counters.BytesDiscarded += uint64(st.Discarded)
	_, _, active := e.sampler.Rates()
	sb.Counters.ActiveSeconds += uint64(active)
	sb.Mode = max(sb.Mode, metadata.Mode(e.core.Mode()))
	sb.DestFlushFailed = sb.DestFlushFailed || e.core.FlushLost()
	sb.Complete = sb.Complete || e.core.Complete()
	e.source.putPrint(sb)
	sb.Settings = e.settings.get().ToMetadata()
	sb.DestSample = e.dest.sample.Known(sb.Session)
	return nil
}

// endSession is the last commit and, if all of it succeeded, the clean mark. Nobody marks any more.
func (e *Engine) endSession() error {
	e.sampler.Stop()
	e.dest.sample.Stop()
	e.committer.Stop()
	known := e.trouble()
	err := e.core.Commit(e.committer.Dest, e.committer.Store)
	if err == nil {
		exact := !e.end.keep && e.dest.sample.Last()
		err = e.updateStore(func(sb *metadata.Superblock) error {
			sb.Clean = !e.end.keep // the session goes on with the next daemon
			err := e.refresh(sb)
			if exact {
				sb.DestSample.ExactAt = metadata.ThisUpdate
			}
			return err
		})
	}
	e.closeUse()
	if known != "" && toldBefore(err) || errors.Is(err, clone.ErrFlushLost) {
		// This end has not failed because of it. The live map stays.
		e.parting = append(e.parting, cmp.Or(known, e.trouble())+" The metadata has no clean mark.")
		return nil
	}
	if err != nil { // the live map stays: it has what is not committed
		return explain.Metadata("commit to", e.start.Definition.Metadata, fmt.Errorf("no clean mark is set: %w", err))
	}
	e.live.ended = !e.end.keep
	if e.live.ended {
		e.live.SetLife(livemap.LifeEnded)
	}
	return e.end.fault(7)
}

// toldBefore says that a session cannot end with a clean mark for a reason that was told when the metadata failed: there are
// marks that cannot be committed, or slots that a failed repair has written.
func toldBefore(err error) bool {
	return errors.Is(err, clone.ErrReadOnly) || errors.Is(err, metadata.ErrUnflushed)
}
