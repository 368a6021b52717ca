package engine

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// liveMap is the region map's memory, and what a dead daemon of the same session has left in it
// (I6). The steps open, fill and close it; core, committer and caution note in it what the next
// daemon is to know.
type liveMap struct {
	*devices.Shared
	meta *devices.MetadataSide

	*livemap.Map        // nil: it is not open
	session      uint64 // that the map belongs to
	taken        bool   // it is a dead daemon's
	ended        bool   // its session has ended in order, or has not begun
	uncommitted  *bitmap.Delta
}

func newLiveMap(d *devices.Devices) *liveMap { return &liveMap{Shared: d.Shared, meta: &d.Meta} }

func (l *liveMap) set(m *livemap.Map, session uint64, taken, ended bool) {
	l.Map, l.session, l.taken, l.ended, l.uncommitted = m, session, taken, ended, nil
}

// open decides by the superblock whether a live map counts, see package livemap.
func (l *liveMap) open(nr uint64) error {
	if err := livemap.Mount(livemap.Dir); err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the live map", Object: livemap.Dir, Cause: err}
	}
	_, boot, err := host.Identities()
	if err != nil {
		return err
	}
	sb := l.meta.Store.Superblock()
	begins, err := l.take(&sb, boot, nr)
	switch {
	case err == nil && begins:
		return l.begin(&sb, boot, nr)
	case err == nil:
		return nil
	case l.Wanted.Force:
		l.Log.Warn().Err(err).Msg("--force: going on from the last commit; what was written after it may be lost")
		return errors.Join(l.close(), l.begin(&sb, boot, nr))
	}
	return l.refuse(err)
}

// take opens the live map of a session that goes on, unless one begins. An error says why there
// should be a map and none counts. Nothing is changed.
func (l *liveMap) take(sb *metadata.Superblock, boot metadata.UUID, nr uint64) (begins bool, err error) {
	if sb.Clean || sb.BootID != boot {
		return true, nil
	}
	m, err := livemap.Open(livemap.Dir, sb.UUID)
	if errors.Is(err, fs.ErrNotExist) {
		return false, errors.New("its daemon did not stop cleanly, and the live map, which has what was written since the last commit, is gone")
	}
	if err != nil {
		return false, err
	}
	l.set(m, sb.Session, true, false)
	want := livemap.Identity{UUID: sb.UUID, Boot: boot, Session: sb.Session, Regions: nr}
	switch {
	case m.Identity() != want:
		return false, fmt.Errorf("it is of session %d, its live map is of session %d", sb.Session, m.Identity().Session)
	case l.Wanted.Force && m.State().FlushLost: // nobody can tell which of its marks are true
		return false, errors.New("a flush of the destination has failed under the last daemon")
	}
	return false, nil
}

// refuse: going on would silently lose acknowledged writes.
func (l *liveMap) refuse(cause error) error {
	force := "--force"
	if l.Wanted.Recover {
		force = "`ublk-clone recover " + l.Wanted.Definition.Name + " --force`"
	}
	if errors.Is(cause, livemap.ErrVersion) {
		return explain.LiveMap("use", cause)
	}
	return &exit.Error{Code: exit.Metadata, Doing: "use the metadata", Object: l.Wanted.Definition.Metadata, Cause: cause,
		Next: "Nothing was written. If the file system on the clone can take a power cut, " + force + " goes on from the last commit."}
}

// begin makes an empty live map for a session that begins.
func (l *liveMap) begin(sb *metadata.Superblock, boot metadata.UUID, nr uint64) error {
	id := livemap.Identity{UUID: sb.UUID, Boot: boot, Session: sb.Session + 1, Regions: nr}
	m, err := livemap.Create(livemap.Dir, id, livemap.State{Mode: uint8(sb.Mode), FlushLost: sb.DestFlushFailed})
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "make the live map in", Object: livemap.Dir, Cause: err, Next: "The live map takes memory: free some."}
	}
	m.SetMetadata(l.Wanted.Definition.Metadata)
	l.set(m, id.Session, false, true)
	return nil
}

// newMap is an empty map over the live one.
func (l *liveMap) newMap(nr uint64) *bitmap.Map {
	regions := bitmap.New(nr, l.Pages())
	if err := l.KeepZeros(); err != nil { // a map of a former version; this costs memory, no more
		l.Log.Warn().Err(err).Msg("pages of the region map that are zero throughout will take memory")
	}
	if bits := l.Zeros(); bits != nil {
		regions.KeepZeros(bits)
	}
	return regions
}

// fill loads the metadata. Of pages that are in the live map already both count, and what only that
// has is not committed yet.
func (l *liveMap) fill(regions *bitmap.Map) error {
	load := func(page uint64, img *bitmap.Page) error {
		if regions.FullImage(page, img) && !l.Wanted.DryRun { // takes no memory
			l.SetFull(page)
		}
		return regions.Load(page, img)
	}
	if !l.taken {
		return l.load(load)
	}
	l.uncommitted = bitmap.NewDelta(regions.NrPages(), 0)
	inMemory := make(map[uint64]bool)
	if err := l.Used(func(page uint64) error { inMemory[page] = true; return nil }); err != nil {
		return err
	}
	err := l.load(func(page uint64, img *bitmap.Page) error {
		switch {
		case inMemory[page]:
			delete(inMemory, page)
			return regions.Recover(page, img, l.uncommitted)
		case l.Zero(page) && !regions.FullImage(page, img):
			return regions.RecoverZero(page, img, l.uncommitted)
		}
		return load(page, img)
	})
	for page := range inMemory {
		err = errors.Join(err, regions.Recover(page, nil, l.uncommitted))
	}
	return errors.Join(err, l.recoverZeros(regions, l.uncommitted))
}

// load reads the region map from the metadata. The live map of a session that goes on knows the
// last commit that succeeded, and nobody else does: one that failed has left slots, and perhaps its
// sequence in the superblock.
func (l *liveMap) load(fn func(page uint64, img *bitmap.Page) error) error {
	var err error
	if l.taken {
		err = l.meta.Store.LoadKnown(l.State().Commit, fn)
	} else {
		err = l.meta.Store.Load(fn)
	}
	switch {
	case errors.Is(err, metadata.ErrOlder):
		return l.refuse(fmt.Errorf("it is older than its live map: %w", err))
	case err != nil:
		return explain.Metadata("load the region map from", l.Wanted.Definition.Metadata, err)
	}
	return nil
}

// recoverZeros takes over the pages of the live map that are zero throughout and have no memory,
// but for those that are in the map already.
func (l *liveMap) recoverZeros(regions *bitmap.Map, uncommitted *bitmap.Delta) error {
	return l.EachZero(func(page uint64) error {
		if regions.Used(page) {
			return nil
		}
		return regions.RecoverZero(page, nil, uncommitted)
	})
}

// touchFirst takes the memory of the first pages of the region map, those that need none left out.
func (l *liveMap) touchFirst(nr uint64, spared func(page uint64) bool) error {
	for page := range min(nr, footprint.FirstPages) {
		if spared(page) {
			continue
		}
		if err := l.Touch(page); err != nil {
			return &exit.Error{Code: exit.Other, Doing: "take memory for the region map", Object: livemap.Dir, Cause: err, Next: "Free some memory."}
		}
	}
	return nil
}

// keepState keeps the core's state in the live map. The core calls it in the order of the changes
// (clone.Config.State), so that no thread brings back a mode that another one has made worse (I10).
func (l *liveMap) keepState(m clone.Mode, flushLost bool) { l.SetState(uint8(m), flushLost) }

// givePageBack is of a page of the region map that nobody looks at any more.
func (l *liveMap) givePageBack(regions *bitmap.Map, page uint64, p *bitmap.Page) {
	if regions.Full(page) { // else it is zero throughout, and noted so
		l.SetFull(page) // before its memory says nothing any more (I9)
	}
	if err := sys.GiveBack(p); err != nil {
		l.Log.Debug().Err(err).Msg("a page of the region map stays in memory")
	}
}

// close gives the map's memory back; the file goes if its session has ended or never began.
func (l *liveMap) close() (err error) {
	if l.Map == nil {
		return nil
	}
	l.Happened.KeepIn(nil)
	if l.ended || l.Ending.Finished {
		err = l.Remove()
	}
	err = errors.Join(err, l.Close())
	l.set(nil, 0, false, false)
	return err
}
