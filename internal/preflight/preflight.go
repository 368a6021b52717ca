package preflight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/identity"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/metadev"
	"github.com/ublk-clone/ublk-clone/internal/process"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// Nobody gives up what works before the next one is known to work (I13). So before a daemon is
// asked to leave, its successor looks at all that it will need, while the old one serves and holds
// the locks. Nothing is locked, written or flushed, and each look is one that the start makes
// again, when the device is without a daemon:
//
//	the daemon that serves      answers; its state is what the successor is measured by
//	the directory of sockets       takes a new file
//	the block device            bears the clone's cookie, has its size, and can be served by this program
//	the metadata                their path leads to what the daemon has open; version, clone, boot; they can be written
//	the live map                version, clone, boot, session
//	the destination             its path leads to what the daemon has open; identity, size
//	the source                  answers, and is the one that was cloned
//
// The successor must not be worse off than the daemon that it replaces: what that does without
// already need not be there.

// preflightLimit is how long all of that may take.
const preflightLimit = 10 * time.Second

// preflight is one such look.
type preflight struct {
	dir  control.Dir
	def  *definition.Definition
	ask  func() (*control.Status, error)
	was  *control.Status // of the daemon that serves
	held []sys.Stat      // what it has open; nil: that cannot be told
	sb   metadata.Superblock
}

// MayReplace fails if a daemon of this program could not take over from the one that serves the
// clone now.
func MayReplace(d control.Dir, def *definition.Definition) error {
	var doing atomic.Pointer[string]
	result := make(chan error, 1)
	guard.Go("preflight", func() {
		p := &preflight{dir: d, def: def, ask: func() (*control.Status, error) {
			return d.Ask(def.Name, control.Request{Verb: control.VerbStatus}, control.AskLimit)
		}}
		result <- p.run(func(what string) { doing.Store(&what) })
	})
	select {
	case err := <-result:
		return err
	case <-time.After(preflightLimit): // the look is left behind, and ends with the process or the device's answer
		return &exit.Error{Code: exit.Timeout, Doing: "look at " + *doing.Load(),
			Cause: fmt.Errorf("no answer within %s", preflightLimit), Next: "Try again when it answers."}
	}
}

// run looks at everything.
func (p *preflight) run(doing func(string)) error {
	serving := func() (*control.Status, error) {
		doing("the daemon that serves " + p.def.Name)
		return p.serving()
	}
	return ofOneDaemon(serving, func(was *control.Status) error {
		p.was, p.held = was, openFiles(was.PID)
		return p.looks(doing)
	})
}

// ofOneDaemon has looks made while one daemon serves. One that is just being replaced, or has just
// come, has some of its files open and not others: what is found wrong then says nothing.
func ofOneDaemon(serving func() (*control.Status, error), looks func(*control.Status) error) error {
	for {
		was, err := serving()
		if err != nil {
			return err
		}
		if err = looks(was); err == nil {
			return nil
		}
		if now, errNow := serving(); errNow != nil || now.PID == was.PID {
			return errors.Join(err, errNow)
		}
	}
}

// looks are all those at what belongs to a daemon.
func (p *preflight) looks(doing func(string)) error {
	for _, look := range []struct {
		at string
		do func() error
	}{
		{"the directory " + string(p.dir), p.directory},
		{"the block device " + p.def.Device, p.device},
		{"the metadata " + p.def.Metadata, p.metadata},
		{"the live map", p.liveMap},
		{"the destination " + p.def.Dest, p.dest},
		{"the source " + p.def.Source, p.source},
	} {
		doing(look.at)
		if err := look.do(); err != nil {
			return err
		}
	}
	return nil
}

// serving asks the daemon that serves. While one takes over from another, that is waited for.
func (p *preflight) serving() (*control.Status, error) {
	for deadline := time.Now().Add(preflightLimit / 2); ; time.Sleep(control.HolderPause) {
		st, err := p.ask()
		if err == nil && st == nil {
			err = &exit.Error{Code: exit.NoAnswer, Doing: "ask the daemon of", Object: p.def.Name, Cause: errors.New("it does not report its status"), Next: "See " + p.dir.LogPath(p.def.Name) + "."}
		}
		if err == nil {
			err = st.Unserved()
		}
		if err == nil || time.Now().After(deadline) {
			return st, err
		}
	}
}

// openFiles are those of a process; nil: that cannot be told, and the paths count, and the locks
// later.
func openFiles(pid int) (held []sys.Stat) {
	files := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, _ := os.ReadDir(files)
	for _, e := range entries {
		if st, err := sys.StatPath(filepath.Join(files, e.Name())); err == nil {
			held = append(held, st)
		}
	}
	return held
}

// isHeld fails if the path leads to something else than the daemon that serves has open.
func (p *preflight) isHeld(d *blockdev.Device) error {
	if p.held == nil || slices.ContainsFunc(p.held, func(st sys.Stat) bool { return process.SameObject(st, d.Stat()) }) {
		return nil
	}
	return errors.New("the path leads to something other than what the clone uses")
}

// directory tries whether a name can be made: the control socket needs one.
func (p *preflight) directory() error {
	path := p.dir.TrialPath(p.def.Name)
	err := file.Replace(path, nil, 0o600)
	if err == nil {
		err = file.Remove(path)
	}
	if err != nil {
		return p.dir.Fail("make a file in", string(p.dir), err)
	}
	return nil
}

func (p *preflight) device() error {
	id, err := p.def.DeviceID()
	if err != nil {
		return err
	}
	driver, err := ublk.OpenControl()
	if err != nil {
		return explain.Driver("open the ublk driver", err)
	}
	defer driver.Close()
	ctx, cancel := context.WithTimeout(context.Background(), control.LookLimit)
	defer cancel()
	info, params, err := ublk.Recoverable(ctx, driver, id, p.def.Cookie)
	if err != nil {
		return explain.Driver("take over the block device", err)
	}
	return p.def.Fits(params.Size, info.Depth)
}

// sound says that the daemon has metadata that it reads and writes.
func (p *preflight) sound() bool { return p.was.Mode == metadata.ModeReadWrite.String() }

// metadata reads their superblock. If the daemon that serves does without them, so can the next
// one, by the live map.
func (p *preflight) metadata() error {
	err := p.lookAtMetadata()
	if err != nil && !p.sound() && (metadev.Unreadable(err) || metadev.Unopened(err)) {
		var store *metadata.Store
		if store, err = metadev.FromLiveMap(p.def.Cookie); err == nil {
			p.sb = store.Superblock()
		}
	}
	return err
}

func (p *preflight) lookAtMetadata() error {
	meta, err := metadev.LookAtMetadata(p.def.Metadata)
	if err != nil {
		return err
	}
	defer func() { _ = meta.Close() }() // it was only read
	if p.sb, err = metadata.Peek(meta); err != nil {
		return explain.Metadata("look at", p.def.Metadata, err)
	}
	if !p.sound() {
		return nil
	}
	err = p.isHeld(meta.Device)
	_, boot, errBoot := host.Identities()
	readOnly, errRead := meta.ReadOnly()
	switch {
	case errors.Join(err, errBoot, errRead) != nil:
		err = errors.Join(err, errBoot, errRead)
	case p.sb.UUID.Cookie() != p.def.Cookie || p.sb.BootID != boot || p.sb.Clean:
		err = errors.New("it is not the metadata that the serving daemon uses")
	case readOnly:
		err = errors.New("it can only be read, not written")
	}
	if err != nil {
		return explain.Metadata("use", p.def.Metadata, err)
	}
	return nil
}

// liveMap looks whether it is that of the session.
func (p *preflight) liveMap() error {
	m, err := livemap.Open(livemap.Dir, p.sb.UUID)
	if err != nil {
		return explain.LiveMap("use", err)
	}
	defer m.Close()
	want := livemap.Identity{UUID: p.sb.UUID, Boot: p.sb.BootID, Session: p.sb.Session, Regions: metadata.NrRegions(p.sb.DeviceSize, p.sb.RegionSize)}
	if m.Identity() != want {
		return explain.LiveMap("use", fmt.Errorf("it is of session %d, the metadata of session %d", m.Identity().Session, want.Session))
	}
	return nil
}

func (p *preflight) dest() error {
	d, err := blockdev.Peek(blockdev.Dest, p.def.Dest, int(p.sb.LogicalBlockSize))
	if err != nil {
		return err
	}
	defer d.Close()
	want := p.sb
	id, err := d.Identity()
	if err == nil {
		want.Dest = identity.Of(d, id)
		err = errors.Join(p.isHeld(d), p.sb.Match(&want))
	}
	if err != nil {
		return &exit.Error{Code: exit.Refused, Doing: "use the destination", Object: p.def.Dest, Cause: err,
			Next: "Nothing was written. Lead the path back to the destination of the clone."}
	}
	_, err = blockdev.MatchDest(d, p.sb.DeviceSize, int(p.sb.LogicalBlockSize))
	return err
}

// source looks for what the daemon that serves can still read: then its successor must be able to,
// or users would get errors who get none now.
func (p *preflight) source() error {
	if p.sb.Complete || p.was.StalledBy == blockdev.Source.String() {
		return nil
	}
	d, err := blockdev.Peek(blockdev.Source, p.def.Source, int(p.sb.LogicalBlockSize))
	if err == nil {
		err = errors.Join(d.Answers(), identity.SourceDiffers(d, &p.sb), d.Close())
	}
	if err == nil {
		return nil
	}
	return &exit.Error{Code: exit.Source, Doing: "go on with the source", Object: p.def.Source, Cause: err,
		Next: "A new daemon could not read from it, and the one that serves can. Bring the source back as it was; or end the daemon, " +
			"process " + strconv.Itoa(p.was.PID) + ", with SIGTERM, and `ublk-clone recover " + p.def.Name + "` goes on without the source."}
}
