package engine

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/metadev"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// liveMap is the region map's memory, and what a dead daemon of the same session has left in it (I6).
type liveMap struct {
	*livemap.Map
	session     uint64 // that the map belongs to
	taken       bool   // it is a dead daemon's
	ended       bool   // its session has ended in order, or has not begun
	uncommitted *bitmap.Delta
}

// readMap opens the live map, or makes one, and fills it from the metadata.
func (e *Engine) readMap(nr uint64) (*bitmap.Map, error) {
	if err := e.openLive(nr); err != nil {
		return nil, err
	}
	e.happened.KeepIn(e.live.Map)
	regions := e.newMap(nr)
	if e.meta.detached() != nil {
		return regions, e.fillFromLive(regions)
	}
	if err := e.fillMap(regions); err != nil {
		if !e.live.taken || !metadev.Unreadable(err) {
			return nil, err
		}
		return e.mapInstead(nr, err)
	}
	if !e.live.taken { // else it knows, and the metadata went by that
		e.live.SetCommit(e.meta.store.CommitSequence())
	}
	e.live.SetLoaded()
	if e.live.taken {
		if err := e.openSession(); err != nil {
			return e.mapInstead(nr, err)
		}
	}
	return regions, nil
}

// newMap is an empty map over the live one.
func (e *Engine) newMap(nr uint64) *bitmap.Map {
	regions := bitmap.New(nr, e.live.Pages())
	if err := e.live.KeepZeros(); err != nil { // a map of a former version; this costs memory, no more
		e.log.Warn().Err(err).Msg("pages of the region map that are zero throughout will take memory")
	}
	if bits := e.live.Zeros(); bits != nil {
		regions.KeepZeros(bits)
	}
	return regions
}

// mapInstead is the map when the live map stands in for metadata that have failed because of cause.
func (e *Engine) mapInstead(nr uint64, cause error) (*bitmap.Map, error) {
	if err := e.meta.standIn(cause); err != nil {
		return nil, err
	}
	regions := e.newMap(nr) // with what could be read, which was in it before
	return regions, e.fillFromLive(regions)
}

// openLive decides by the superblock whether a live map counts, see package livemap.
func (e *Engine) openLive(nr uint64) error {
	if err := livemap.Mount(livemap.Folder); err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the live map", Object: livemap.Folder, Cause: err}
	}
	_, boot, err := host.Identities()
	if err != nil {
		return err
	}
	sb := e.meta.store.Superblock()
	begins, err := e.takeLive(&sb, boot, nr)
	switch {
	case err == nil && begins:
		return e.newLive(&sb, boot, nr)
	case err == nil:
		return nil
	case e.start.Force:
		e.log.Warn().Err(err).Msg("--force: going on from the last commit; what was written after it may be lost")
		return errors.Join(e.closeLive(), e.newLive(&sb, boot, nr))
	}
	return e.refuseLive(err)
}

// takeLive opens the live map of a session that goes on, unless one begins. An error says why there should be a map and
// none counts. Nothing is changed.
func (e *Engine) takeLive(sb *metadata.Superblock, boot metadata.UUID, nr uint64) (begins bool, err error) {
	if sb.Clean || sb.BootID != boot {
		return true, nil
	}
	m, err := livemap.Open(livemap.Folder, sb.UUID)
	if errors.Is(err, fs.ErrNotExist) {
		return false, errors.New("its daemon did not stop in order, and the live map, which has what was written since the last commit, is gone")
	}
	if err != nil {
		return false, err
	}
	e.live = liveMap{Map: m, session: sb.Session, taken: true}
	want := livemap.Identity{UUID: sb.UUID, Boot: boot, Session: sb.Session, Regions: nr}
	switch {
	case m.Identity() != want:
		return false, fmt.Errorf("they are of session %d, its live map is of session %d", sb.Session, m.Identity().Session)
	case e.start.Force && m.State().FlushLost: // nobody can tell which of its marks are true
		return false, errors.New("a flush of the destination has failed under the last daemon")
	}
	return false, nil
}

// refuseLive: going on would silently lose acknowledged writes.
func (e *Engine) refuseLive(cause error) error {
	force := "--force"
	if e.start.Recover {
		force = "`ublk-clone recover " + e.start.Definition.Name + " --force`"
	}
	if errors.Is(cause, livemap.ErrVersion) {
		return explain.LiveMap("use", cause)
	}
	return &exit.Error{Code: exit.Metadata, Doing: "use the metadata", Object: e.start.Definition.Metadata, Cause: cause,
		Next: "Nothing was written. If the file system on the clone can take a power cut, " + force + " goes on from the last commit."}
}

// newLive makes an empty live map for a session that begins.
func (e *Engine) newLive(sb *metadata.Superblock, boot metadata.UUID, nr uint64) error {
	id := livemap.Identity{UUID: sb.UUID, Boot: boot, Session: sb.Session + 1, Regions: nr}
	m, err := livemap.Create(livemap.Folder, id, livemap.State{Mode: uint8(sb.Mode), FlushLost: sb.DestFlushFailed})
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "make the live map in", Object: livemap.Folder, Cause: err, Next: "It takes memory: free some."}
	}
	m.SetMetadata(e.start.Definition.Metadata)
	e.live = liveMap{Map: m, session: id.Session, ended: true}
	return nil
}

// load reads the region map from the metadata. The live map of a session that goes on knows the last commit that
// succeeded, and nobody else does: one that failed has left slots, and perhaps its sequence in the superblock.
func (e *Engine) load(fn func(page uint64, img *bitmap.Page) error) error {
	var err error
	if e.live.taken {
		err = e.meta.store.LoadKnown(e.live.State().Commit, fn)
	} else {
		err = e.meta.store.Load(fn)
	}
	switch {
	case errors.Is(err, metadata.ErrOlder):
		return e.refuseLive(fmt.Errorf("they are older than its live map: %w", err))
	case err != nil:
		return explain.Metadata("load the region map from", e.start.Definition.Metadata, err)
	}
	return nil
}

// fillMap loads the metadata. Of pages that are in the live map already both count, and what only that has is
// not committed yet.
func (e *Engine) fillMap(regions *bitmap.Map) error {
	load := func(page uint64, img *bitmap.Page) error {
		if regions.FullImage(page, img) && !e.start.DryRun { // takes no memory
			e.live.SetFull(page)
		}
		return regions.Load(page, img)
	}
	if !e.live.taken {
		return e.load(load)
	}
	e.live.uncommitted = bitmap.NewDelta(regions.NrPages(), 0)
	inMemory := make(map[uint64]bool)
	if err := e.live.Used(func(page uint64) error { inMemory[page] = true; return nil }); err != nil {
		return err
	}
	err := e.load(func(page uint64, img *bitmap.Page) error {
		switch {
		case inMemory[page]:
			delete(inMemory, page)
			return regions.Recover(page, img, e.live.uncommitted)
		case e.live.Zero(page) && !regions.FullImage(page, img):
			return regions.RecoverZero(page, img, e.live.uncommitted)
		}
		return load(page, img)
	})
	for page := range inMemory {
		err = errors.Join(err, regions.Recover(page, nil, e.live.uncommitted))
	}
	return errors.Join(err, e.recoverZeros(regions, e.live.uncommitted))
}

// recoverZeros takes over the pages of the live map that are zero throughout and have no memory, but for those that are
// in the map already.
func (e *Engine) recoverZeros(regions *bitmap.Map, uncommitted *bitmap.Delta) error {
	return e.live.EachZero(func(page uint64) error {
		if regions.Used(page) {
			return nil
		}
		return regions.RecoverZero(page, nil, uncommitted)
	})
}

// closeLive gives the map's memory back; the file goes if its session has ended or never began.
func (e *Engine) closeLive() (err error) {
	if e.live.Map == nil {
		return nil
	}
	e.happened.KeepIn(nil)
	if e.live.ended || e.end.finished {
		err = e.live.Remove()
	}
	err = errors.Join(err, e.live.Close())
	e.live = liveMap{}
	return err
}
