package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/identity"
	"github.com/ublk-clone/ublk-clone/internal/metadev"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/steps"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// openMeta opens the metadata device first: what it holds says whether the clone is new.
func (e *Engine) openMeta(context.Context) error {
	if err := e.refuseNeighbours(blockdev.Metadata); err != nil {
		return err
	}
	d, err := blockdev.Open(blockdev.Metadata, e.start.Definition.Metadata, blockdev.Options{
		Force: e.accepts(), Create: !e.start.Open, DryRun: e.start.DryRun, Tolerate: e.tolerance(),
	})
	if err != nil && metadev.Unopened(err) {
		return e.standIn(err)
	}
	if err != nil {
		return err
	}
	if e.meta, err = blockdev.NewMetadataFile(d); err != nil {
		return errors.Join(err, d.Remove(), d.Close())
	}
	return nil
}

func (e *Engine) closeMeta() error {
	if e.meta == nil {
		return nil
	}
	e.eraseMeta()
	return errors.Join(e.meta.Close(), e.faultIfFinished(10))
}

func (e *Engine) removeMeta() error {
	if e.meta == nil {
		return nil
	}
	return e.meta.Remove()
}

// beside are the devices of the clone that are open.
func (e *Engine) beside() (open []*blockdev.Device) {
	if e.meta != nil {
		open = append(open, e.meta.Device)
	}
	if d := e.source.Device(); d != nil {
		open = append(open, d)
	}
	return open
}

// openDest creates a destination file that is missing, with its space.
func (e *Engine) openDest(context.Context) error {
	size, source := e.start.Definition.Size, e.source.Device()
	if source != nil {
		size = cmp.Or(size, source.Size())
	} else {
		size = cmp.Or(size, e.found.DeviceSize)
	}
	if err := e.refuseNeighbours(blockdev.Dest); err != nil {
		return err
	}
	dest, err := blockdev.Open(blockdev.Dest, e.start.Definition.Dest, blockdev.Options{
		Force: e.accepts(), Create: !e.start.Open, Size: size, Others: e.beside(), DryRun: e.start.DryRun, Tolerate: e.tolerance(),
	})
	if err != nil {
		return err
	}
	e.dest = dest
	if source != nil {
		e.geometry, err = e.matchBoth(source, size)
	} else {
		e.geometry, err = blockdev.MatchDest(dest, size, int(e.found.LogicalBlockSize))
	}
	if err == nil {
		e.use, err = records.ReadUse(e.records, dest, e.found)
	}
	if err != nil {
		return errors.Join(err, dest.Remove(), dest.Close())
	}
	return nil
}

// accepts says whether what only costs something is accepted: by force, or because the clone is there already, and so somebody
// has accepted it.
func (e *Engine) accepts() bool { return e.start.Force || e.start.Recover }

// matchBoth is the geometry of source and destination. A recovery goes on without a source that does not fit any more.
func (e *Engine) matchBoth(source *blockdev.Device, size int64) (blockdev.Geometry, error) {
	geo, err := blockdev.Match(source, e.dest, size, e.accepts())
	if !e.start.Recover || e.found == nil || err == nil && geo.LogicalBlock == int(e.found.LogicalBlockSize) {
		return geo, err
	}
	alone, errDest := blockdev.MatchDest(e.dest, size, int(e.found.LogicalBlockSize))
	if errDest != nil {
		return alone, errDest
	}
	if err == nil {
		err = fmt.Errorf("the clone would have logical blocks of %d bytes, and has some of %d", geo.LogicalBlock, alone.LogicalBlock)
	}
	return alone, e.useSource(nil, &exit.Error{Code: exit.Source, Doing: "go on with the source", Object: source.Path(), Cause: err})
}

// openStore opens the metadata that are there, or makes new ones where there are none.
func (e *Engine) openStore(context.Context) error {
	if e.detached() != nil {
		return e.adopt()
	}
	if err := e.roomForMetadata(); err != nil {
		return err
	}
	store, report, err := metadata.Open(e.meta)
	switch {
	case errors.Is(err, metadata.ErrEmpty) && !e.start.Open:
		return e.createStore()
	case err == nil && e.start.Create && !e.start.Force:
		return &exit.Error{Code: exit.Refused, Doing: "create metadata on", Object: e.start.Definition.Metadata, Cause: errors.New("there are metadata already"),
			Next: "Leave --create out to go on with them; --force makes new ones and forgets what was hydrated."}
	case e.start.Create && e.start.Force && (err == nil || errors.Is(err, metadata.ErrDamaged) || errors.Is(err, metadata.ErrVersion)):
		return e.createStore()
	case err != nil && metadev.Unreadable(err):
		if err := e.standIn(explain.Metadata("open", e.start.Definition.Metadata, err)); err != nil {
			return err
		}
		return e.adopt()
	case err != nil:
		return explain.Metadata("open", e.start.Definition.Metadata, err)
	}
	e.store = store
	for _, w := range report.Warnings {
		e.Warn("metadata %s: %s", e.start.Definition.Metadata, w)
	}
	return e.adopt()
}

// roomForMetadata refuses a block device that is too small for any metadata of the clone, before a copy of
// the superblock that cannot be there looks damaged.
func (e *Engine) roomForMetadata() error {
	size := cmp.Or(e.start.Definition.RegionSize, definition.MaxRegionSize)
	need := metadata.Size(metadata.NrRegions(e.geometry.Size, size))
	if !e.meta.IsBlock() || e.meta.Size() >= need {
		return nil
	}
	return explain.Metadata("use", e.start.Definition.Metadata, fmt.Errorf("%w: %d bytes, need %d", metadata.ErrTooSmall, e.meta.Size(), need))
}

// adopt checks that the metadata are of this pair and this machine, and takes what they say.
func (e *Engine) adopt() error {
	sb := e.store.Superblock()
	def := &e.start.Definition
	if def.RegionSize == 0 {
		def.RegionSize = sb.RegionSize
	}
	if def.RegionSize != sb.RegionSize {
		return &exit.Error{Code: exit.Metadata, Doing: "use the metadata", Object: e.start.Definition.Metadata,
			Cause: fmt.Errorf("their region size is %s, not %s", text.ExactSize(sb.RegionSize), text.ExactSize(def.RegionSize)),
			Next:  "Leave --region-size out, or give " + text.ExactSize(sb.RegionSize) + ": the size of a region is fixed when metadata are made."}
	}
	want, err := e.superblock()
	if err != nil {
		return err
	}
	if err := sb.Match(want); err != nil {
		return explain.Metadata("use", e.start.Definition.Metadata, err)
	}
	elsewhere := sb.MachineID != want.MachineID && sb.BootID != want.BootID
	if !sb.Clean && elsewhere && !e.start.Force {
		return &exit.Error{Code: exit.Refused, Doing: "use the metadata", Object: e.start.Definition.Metadata,
			Cause: fmt.Errorf("they are in use on another machine (%s), or were when it died", sb.MachineID),
			Next:  "Stop the clone there; --force takes them over when that machine is gone."}
	}
	if err := e.use.Outdated(e.start.Definition.Metadata, &sb, e.start.Force); err != nil {
		return err
	}
	if err := (&identity.DestCheck{Dest: e.dest, Sample: &e.sample, Force: e.start.Force, Warn: e.Warn}).Know(&sb, want); err != nil {
		return err
	}
	e.mu.settings = definition.FromMetadata(sb.Settings)
	if !e.start.Recover {
		def.Settings.Apply(&e.mu.settings) // what this start asks for
	}
	return e.recoverMode(sb.Mode)
}

// recoverMode: a clone whose metadata or destination failed starts no better than it was left; force is the
// explicit word that ends it (I10).
func (e *Engine) recoverMode(mode metadata.Mode) error {
	if mode == metadata.ModeReadWrite {
		return nil
	}
	if !e.start.Force {
		e.log.Warn().Stringer("mode", mode).Msg("metadata or destination have failed before: no region can be marked")
		return nil
	}
	e.log.Warn().Stringer("mode", mode).Msg("--force: metadata and destination are taken to be repaired")
	err := e.store.Update(func(sb *metadata.Superblock) error {
		sb.Mode, sb.DestFlushFailed = metadata.ModeReadWrite, false
		return nil
	})
	if err != nil {
		return explain.Metadata("repair", e.start.Definition.Metadata, err)
	}
	return nil
}

// createStore makes metadata for a new clone. What the destination carries is looked for first.
func (e *Engine) createStore() error {
	def := &e.start.Definition
	if err := e.use.Vanished(e.start.Definition.Metadata, e.start.Force); err != nil {
		return err
	}
	if err := e.dest.Signature(e.start.Force); err != nil {
		return err
	}
	if def.RegionSize == 0 {
		def.RegionSize = definition.DefaultRegionSize
	}
	e.mu.settings = def.FirstSettings()
	sb, err := e.superblock()
	if err != nil {
		return err
	}
	if _, err := rand.Read(sb.UUID[:]); err != nil {
		return err
	}
	if sb.Dest.ID == "" {
		e.Warn("the destination %s has no WWID, serial number or UUID: until something is hydrated nothing tells it from another device of its size", e.dest.Path())
	}
	sb.Settings = e.mu.settings.ToMetadata()
	if err := e.meta.Grow(metadata.Size(metadata.NrRegions(sb.DeviceSize, sb.RegionSize))); err != nil {
		return err
	}
	e.store, err = metadata.Create(e.meta, sb, metadata.CreateOptions{Force: e.start.Force && e.start.Create})
	if err != nil {
		return explain.Metadata("create", e.start.Definition.Metadata, err)
	}
	e.created = true
	e.warnSparse()
	return e.meta.Publish()
}

// CreateMetadata makes the metadata of a clone and starts no daemon.
func CreateMetadata(ctx context.Context, st definition.Start) error {
	e := &Engine{start: st, log: zerolog.Nop(), records: records.DefaultDir()}
	var done steps.List
	if err := done.Run(ctx, e.openSteps()); err != nil {
		return err
	}
	err := e.use.Forget() // what there was is overridden by --force, and nothing is hydrated by these yet
	return errors.Join(err, done.Stop())
}

// warnSparse is of a destination file that somebody has made, and may have meant so.
func (e *Engine) warnSparse() {
	if lacks := e.dest.Sparse(); lacks > 0 {
		e.Warn("the destination %s is a sparse file: %s of it have no space yet, and a full file system fails writes. `fallocate -l %d %s` reserves it",
			e.dest.Path(), text.Size(lacks), e.dest.Size(), e.dest.Path())
	}
}

// revertStore removes metadata that a failed start has made on a device that was empty, and what it has
// recorded of the destination.
func (e *Engine) revertStore() error {
	err := e.use.Restore()
	if !e.created || e.meta.Created() {
		return err
	}
	return errors.Join(err, e.meta.ZeroRange(0, metadata.Size(0)), e.meta.Flush())
}

// recordUse notes that the destination is about to be hydrated by these metadata. The record is a second
// guard: a machine on which it cannot be written, as one that was started from a read-only medium to
// rescue data, is not kept from its clone.
func (e *Engine) recordUse(context.Context) error {
	if e.use.Id.ID == "" {
		e.log.Info().Str("destination", e.dest.Path()).Msg("it has nothing to be known by: metadata that vanish would not be noticed")
	}
	if err := e.updateUse(); err != nil {
		e.Warn("metadata that vanish would not be noticed: %v", err)
	}
	return nil
}

// updateUse brings the record up to date.
func (e *Engine) updateUse() error {
	if e.core.Complete() {
		return e.use.Forget()
	}
	var st control.Status
	e.countBytes(&st)
	sb := e.store.Superblock()
	return e.use.Write(&records.Record{
		Dest: e.dest.Path(), Birth: e.dest.Birth(), Source: e.start.Definition.Source, Metadata: e.start.Definition.Metadata,
		UUID: sb.UUID.String(), Session: sb.Session, Size: e.geometry.Size, Hydrated: st.Bytes.Hydrated, Written: time.Now().UTC(),
	})
}

// closeUse is updateUse when the clone is up or ends: an error costs nothing but the guard's precision.
func (e *Engine) closeUse() {
	if err := e.updateUse(); err != nil {
		e.log.Warn().Err(err).Msg("bring the record of the destination up to date")
	}
}

// superblock is what the metadata of this pair, opened here and now, say.
func (e *Engine) superblock() (*metadata.Superblock, error) {
	machine, boot, err := host.Identities()
	if err != nil {
		return nil, err
	}
	source, err := e.knownSource()
	if err != nil {
		return nil, err
	}
	dest, err := e.dest.Identity()
	if err != nil {
		return nil, err
	}
	sb := &metadata.Superblock{
		CreatedNs: time.Now().UnixNano(), Host: metadata.Host{MachineID: machine, BootID: boot},
		Geometry: metadata.Geometry{RegionSize: e.start.Definition.RegionSize, DeviceSize: e.geometry.Size, LogicalBlockSize: uint32(e.geometry.LogicalBlock)},
		Dest:     identity.Of(e.dest, dest),
	}
	source.Put(sb)
	return sb, nil
}
