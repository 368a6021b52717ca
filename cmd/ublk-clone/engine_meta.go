package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// openMeta opens the metadata device first: what it holds says whether the clone is new.
func (e *cloneEngine) openMeta(context.Context) error {
	if err := e.refuseNeighbours(blockdev.Metadata); err != nil {
		return err
	}
	d, err := blockdev.Open(blockdev.Metadata, e.start.Definition.Metadata, blockdev.Options{
		Force: e.accepts(), Create: !e.start.Open, DryRun: e.start.DryRun, Tolerate: e.tolerance(),
	})
	if err != nil && unopened(err) {
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

func (e *cloneEngine) closeMeta() error {
	if e.meta == nil {
		return nil
	}
	e.eraseMeta()
	return errors.Join(e.meta.Close(), e.faultIfFinished(10))
}

func (e *cloneEngine) removeMeta() error {
	if e.meta == nil {
		return nil
	}
	return e.meta.Remove()
}

// beside are the devices of the clone that are open.
func (e *cloneEngine) beside() (open []*blockdev.Device) {
	if e.meta != nil {
		open = append(open, e.meta.Device)
	}
	if d := e.source.device(); d != nil {
		open = append(open, d)
	}
	return open
}

// openDest creates a destination file that is missing, with its space.
func (e *cloneEngine) openDest(context.Context) error {
	size, source := e.start.Definition.Size, e.source.device()
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
		e.use, err = readUse(e.records, dest, e.found)
	}
	if err != nil {
		return errors.Join(err, dest.Remove(), dest.Close())
	}
	return nil
}

// accepts says whether what only costs something is accepted: by force, or because the clone is there already, and so somebody
// has accepted it.
func (e *cloneEngine) accepts() bool { return e.start.Force || e.start.Recover }

// matchBoth is the geometry of source and destination. A recovery goes on without a source that does not fit any more.
func (e *cloneEngine) matchBoth(source *blockdev.Device, size int64) (blockdev.Geometry, error) {
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
func (e *cloneEngine) openStore(context.Context) error {
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
	case err != nil && unreadable(err):
		if err := e.standIn(metaError("open", e.start.Definition.Metadata, err)); err != nil {
			return err
		}
		return e.adopt()
	case err != nil:
		return metaError("open", e.start.Definition.Metadata, err)
	}
	e.store = store
	for _, w := range report.Warnings {
		e.warn("metadata %s: %s", e.start.Definition.Metadata, w)
	}
	return e.adopt()
}

// roomForMetadata refuses a block device that is too small for any metadata of the clone, before a copy of
// the superblock that cannot be there looks damaged.
func (e *cloneEngine) roomForMetadata() error {
	size := cmp.Or(e.start.Definition.RegionSize, maxRegionSize)
	need := metadata.Size(metadata.NrRegions(e.geometry.Size, size))
	if !e.meta.IsBlock() || e.meta.Size() >= need {
		return nil
	}
	return metaError("use", e.start.Definition.Metadata, fmt.Errorf("%w: %d bytes, need %d", metadata.ErrTooSmall, e.meta.Size(), need))
}

// adopt checks that the metadata are of this pair and this machine, and takes what they say.
func (e *cloneEngine) adopt() error {
	sb := e.store.Superblock()
	def := &e.start.Definition
	if def.RegionSize == 0 {
		def.RegionSize = sb.RegionSize
	}
	if def.RegionSize != sb.RegionSize {
		return &exit.Error{Code: exit.Metadata, Doing: "use the metadata", Object: e.start.Definition.Metadata,
			Cause: fmt.Errorf("their region size is %s, not %s", exactSize(sb.RegionSize), exactSize(def.RegionSize)),
			Next:  "Leave --region-size out, or give " + exactSize(sb.RegionSize) + ": the size of a region is fixed when metadata are made."}
	}
	want, err := e.superblock()
	if err != nil {
		return err
	}
	if err := sb.Match(want); err != nil {
		return metaError("use", e.start.Definition.Metadata, err)
	}
	elsewhere := sb.MachineID != want.MachineID && sb.BootID != want.BootID
	if !sb.Clean && elsewhere && !e.start.Force {
		return &exit.Error{Code: exit.Refused, Doing: "use the metadata", Object: e.start.Definition.Metadata,
			Cause: fmt.Errorf("they are in use on another machine (%s), or were when it died", sb.MachineID),
			Next:  "Stop the clone there; --force takes them over when that machine is gone."}
	}
	if err := e.use.outdated(e.start.Definition.Metadata, &sb, e.start.Force); err != nil {
		return err
	}
	if err := (&destCheck{dest: e.dest, sample: &e.sample, force: e.start.Force, warn: e.warn}).know(&sb, want); err != nil {
		return err
	}
	e.mu.settings = fromMetadata(sb.Settings)
	if !e.start.Recover {
		def.Settings.apply(&e.mu.settings) // what this start asks for
	}
	return e.recoverMode(sb.Mode)
}

// recoverMode: a clone whose metadata or destination failed starts no better than it was left; force is the
// explicit word that ends it (I10).
func (e *cloneEngine) recoverMode(mode metadata.Mode) error {
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
		return metaError("repair", e.start.Definition.Metadata, err)
	}
	return nil
}

// createStore makes metadata for a new clone. What the destination carries is looked for first.
func (e *cloneEngine) createStore() error {
	def := &e.start.Definition
	if err := e.use.vanished(e.start.Definition.Metadata, e.start.Force); err != nil {
		return err
	}
	if err := e.dest.Signature(e.start.Force); err != nil {
		return err
	}
	if def.RegionSize == 0 {
		def.RegionSize = defaultRegionSize
	}
	e.mu.settings = def.firstSettings()
	sb, err := e.superblock()
	if err != nil {
		return err
	}
	if _, err := rand.Read(sb.UUID[:]); err != nil {
		return err
	}
	if sb.Dest.ID == "" {
		e.warn("the destination %s has no WWID, serial number or UUID: until something is hydrated nothing tells it from another device of its size", e.dest.Path())
	}
	sb.Settings = e.mu.settings.toMetadata()
	if err := e.meta.Grow(metadata.Size(metadata.NrRegions(sb.DeviceSize, sb.RegionSize))); err != nil {
		return err
	}
	e.store, err = metadata.Create(e.meta, sb, metadata.CreateOptions{Force: e.start.Force && e.start.Create})
	if err != nil {
		return metaError("create", e.start.Definition.Metadata, err)
	}
	e.created = true
	e.warnSparse()
	return e.meta.Publish()
}

// createMetadata makes the metadata of a clone and starts no daemon.
func createMetadata(ctx context.Context, st start) error {
	e := &cloneEngine{start: st, log: zerolog.Nop(), records: theRecordDir()}
	var done steps
	if err := done.run(ctx, e.openSteps()); err != nil {
		return err
	}
	err := e.use.forget() // what there was is overridden by --force, and nothing is hydrated by these yet
	return errors.Join(err, done.stop())
}

// warnSparse is of a destination file that somebody has made, and may have meant so.
func (e *cloneEngine) warnSparse() {
	if lacks := e.dest.Sparse(); lacks > 0 {
		e.warn("the destination %s is a sparse file: %s of it have no space yet, and a full file system fails writes. `fallocate -l %d %s` reserves it",
			e.dest.Path(), formatSize(lacks), e.dest.Size(), e.dest.Path())
	}
}

// revertStore removes metadata that a failed start has made on a device that was empty, and what it has
// recorded of the destination.
func (e *cloneEngine) revertStore() error {
	err := e.use.restore()
	if !e.created || e.meta.Created() {
		return err
	}
	return errors.Join(err, e.meta.ZeroRange(0, metadata.Size(0)), e.meta.Flush())
}

// recordUse notes that the destination is about to be hydrated by these metadata. The record is a second
// guard: a machine on which it cannot be written, as one that was started from a read-only medium to
// rescue data, is not kept from its clone.
func (e *cloneEngine) recordUse(context.Context) error {
	if e.use.id.ID == "" {
		e.log.Info().Str("destination", e.dest.Path()).Msg("it has nothing to be known by: metadata that vanish would not be noticed")
	}
	if err := e.updateUse(); err != nil {
		e.warn("metadata that vanish would not be noticed: %v", err)
	}
	return nil
}

// updateUse brings the record up to date.
func (e *cloneEngine) updateUse() error {
	if e.core.Complete() {
		return e.use.forget()
	}
	var st cloneStatus
	e.countBytes(&st)
	sb := e.store.Superblock()
	return e.use.write(&record{
		Dest: e.dest.Path(), Birth: e.dest.Birth(), Source: e.start.Definition.Source, Metadata: e.start.Definition.Metadata,
		UUID: sb.UUID.String(), Session: sb.Session, Size: e.geometry.Size, Hydrated: st.Bytes.Hydrated, Written: time.Now().UTC(),
	})
}

// closeUse is updateUse when the clone is up or ends: an error costs nothing but the guard's precision.
func (e *cloneEngine) closeUse() {
	if err := e.updateUse(); err != nil {
		e.log.Warn().Err(err).Msg("bring the record of the destination up to date")
	}
}

// superblock is what the metadata of this pair, opened here and now, say.
func (e *cloneEngine) superblock() (*metadata.Superblock, error) {
	machine, boot, err := identities()
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
		CreatedNs: time.Now().UnixNano(), MachineID: machine, BootID: boot,
		RegionSize: e.start.Definition.RegionSize, DeviceSize: e.geometry.Size, LogicalBlockSize: uint32(e.geometry.LogicalBlock),
		Dest: identity(e.dest, dest),
	}
	source.put(sb)
	return sb, nil
}

func identity(d *blockdev.Device, id blockdev.Identity) metadata.Identity {
	kind := metadata.KindFile
	if d.IsBlock() {
		kind = metadata.KindBlock
	}
	return metadata.Identity{Kind: kind, Size: id.Size, ID: id.ID[:min(len(id.ID), metadata.MaxIDBytes)], Path: shortPath(d.Path())}
}

// shortPath is for display only.
func shortPath(path string) string { return path[:min(len(path), metadata.MaxPathBytes)] }

// metaError gives an error of package metadata its exit code and the next step.
func metaError(doing, path string, err error) error {
	e := &exit.Error{Code: exit.Metadata, Doing: doing + " the metadata", Object: path, Cause: err}
	switch {
	case errors.Is(err, metadata.ErrEmpty):
		e.Next = "Check the path; without --open new metadata are made."
	case errors.Is(err, metadata.ErrNotEmpty):
		e.Next = "Check the path. `wipefs -a` or --create --force make room, if nothing on it is needed."
	case errors.Is(err, metadata.ErrTooSmall):
		e.Next = "Use a larger device, larger regions, or a file, which grows by itself."
	case errors.Is(err, metadata.ErrDamaged):
		e.Next = "Nothing was written. Check the path; `ublk-clone metadata check` says what is damaged."
	case errors.Is(err, metadata.ErrVersion):
		e.Next = "Use the newer version of ublk-clone that made them."
	case errors.Is(err, metadata.ErrMismatch):
		e.Next = "Nothing was written. Check that source, destination and metadata belong together; `ublk-clone metadata dump` shows the pair."
	}
	return e
}

// identities reads the machine's and the boot's.
func identities() (machine, boot metadata.UUID, err error) {
	if machine, err = readUUID("/etc/machine-id"); errors.Is(err, os.ErrNotExist) {
		machine, err = metadata.UUID{}, nil // a machine without: all such are one
	}
	if err == nil {
		boot, err = readUUID("/proc/sys/kernel/random/boot_id")
	}
	return machine, boot, err
}

func readUUID(path string) (u metadata.UUID, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return u, err
	}
	digits := strings.ReplaceAll(strings.TrimSpace(string(b)), "-", "")
	if n, err := hex.Decode(u[:], []byte(digits[:min(len(digits), 2*len(u))])); err != nil || n != len(u) {
		return metadata.UUID{}, nil // "uninitialized", while the first boot is under way
	}
	return u, nil
}
