package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// Repair is the explicit word that the metadata can be written again (I10). It does nothing in mode
// rw.
func (s *session) Repair(ctx context.Context) error {
	switch {
	case s.lanes.core.FlushLost():
		return &exit.Error{Code: exit.Dest, Doing: "resume", Object: s.Wanted.Definition.Name,
			Cause: errors.New("a flush of the destination has failed, and nobody can tell which of the writes before it are lost"),
			Next:  "Copy what matters off the device. If the destination is sound, `ublk-clone del` and `add --force` go on from the last commit."}
	case s.lanes.core.Mode() == clone.ReadWrite:
		return nil
	}
	if err := s.committer.Do(ctx, s.repairMetadata); err != nil {
		return &exit.Error{Code: exit.Metadata, Doing: "resume with the metadata", Object: s.Wanted.Definition.Metadata, Cause: err,
			Next: "The mode is as it was, and nothing is lost while the daemon or its machine lives. Repair the metadata, then `ublk-clone resume` again."}
	}
	return nil
}

// repairForced is the repair that --force asks for: it is the explicit word, too. Without it the
// marks that a failed commit has left in the metadata would be taken for durable.
func (s *session) repairForced(ctx context.Context) error {
	if !s.Wanted.Force || s.Meta.Detached() != nil || s.lanes.core.Mode() != clone.ReadOnly || s.lanes.core.FlushLost() {
		return nil
	}
	if err := s.committer.Do(ctx, s.repairMetadata); err != nil {
		return explain.Metadata("repair", s.Wanted.Definition.Metadata, err)
	}
	return nil
}

// repairMetadata brings the metadata back, on the committer's goroutine, which alone writes them:
//
//  1. Open what their path names, with its lock, if that is another device than the one that is
//     open.
//  2. See that they are the same metadata and that nobody else has had them; choose slots by the
//     last commit that the live map knows to have succeeded (Store.Reopen).
//  3. Commit all that the region map holds, and record mode rw in the superblock
//     (clone.Core.Repair).
//
// The live map has mode ro until the core has changed its own, which is the end of step 3: whoever
// dies before is recovered in ro, with all that is not known to be durable to be written again.
func (s *session) repairMetadata() error {
	meta, err := s.Meta.Reopen(s.Dest.Device, s.Source.Device()) // 1
	if err != nil {
		return err
	}
	if err := s.Meta.Store.Reopen(meta, s.live.State().Commit, s.known); err != nil { // 2
		if meta != s.Meta.File {
			err = errors.Join(err, meta.Close())
		}
		return err
	}
	s.Meta.Replace(meta)
	err = putOff(func() error { return s.lanes.core.Repair(s.committer.Dest, s.committer.Store, s.recordRepair) }) // 3
	if err != nil {
		return err
	}
	s.Meta.SetDetached(nil)
	s.Log.Info().Msg("the metadata is repaired: all marks are committed")
	return nil
}

// known refuses an image of a page with marks that the region map has not: it is not of this
// metadata.
func (s *session) known(page uint64, img *bitmap.Page) error {
	if s.lanes.core.Regions().Holds(page, img) {
		return nil
	}
	return fmt.Errorf("%w: page %d has marks that this clone has never made", metadata.ErrMismatch, page)
}

// Bounds of a repair's wait for a FLUSH that has the destination flushed just now.
const (
	putOffPause = 10 * time.Millisecond
	putOffLimit = 10 * time.Second
)

// putOff does try again as long as it is clone.ErrCommitPutOff.
func putOff(try func() error) error {
	for begin := time.Now(); ; time.Sleep(putOffPause) {
		err := try()
		if !errors.Is(err, clone.ErrCommitPutOff) || time.Since(begin) > putOffLimit {
			return err
		}
	}
}

// recordRepair writes down that the mode is rw.
func (s *session) recordRepair() error {
	return s.update(func(sb *metadata.Superblock) error {
		err := s.refresh(sb)
		sb.Mode = metadata.ModeReadWrite
		return err
	})
}
