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

// devices are the three devices of a clone: opened, locked, and found to belong together.
type devices struct {
	*shared
	fence    fence
	meta     metadataSide
	source   sourceSide
	dest     destSide
	settings settings
}

func newDevices(sh *shared, dir records.Dir) *devices {
	d := &devices{shared: sh, fence: fence{shared: sh}, meta: metadataSide{shared: sh}, dest: destSide{shared: sh, records: dir}}
	d.source.shared, d.source.fence, d.source.meta, d.source.dest = sh, &d.fence, &d.meta, &d.dest
	return d
}

// steps open and lock the three devices and see that they belong together.
func (d *devices) steps() []steps.Step {
	return []steps.Step{
		{Name: "open the metadata", Do: d.fence.behind(d.meta.open), Undo: d.meta.close, Revert: d.meta.remove},
		{Name: "open the source", Do: d.fence.behind(d.openSource), Undo: func() error { d.source.Close(); return nil }, Limit: teardownLimit},
		{Name: "open the destination", Do: d.fence.behind(d.openDest), Undo: func() error { return d.dest.Close() }, Revert: func() error { return d.dest.Remove() }},
		{Name: "read the metadata", Do: d.openStore, Revert: d.revertStore},
	}
}

// Mark is what the driver keeps for us, to know the device by: the beginning of the clone's UUID.
func (d *devices) Mark() uint64 { return d.meta.store.Superblock().UUID.Mark() }

// Waits is what the start waits for now.
func (d *devices) Waits() error { return d.fence.waits() }

// beside are the devices of the clone that are open.
func (d *devices) beside() (open []*blockdev.Device) {
	if d.meta.file != nil {
		open = append(open, d.meta.file.Device)
	}
	if d := d.source.Device(); d != nil {
		open = append(open, d)
	}
	return open
}

func (d *devices) openSource(context.Context) error { return d.source.open(d.beside()) }

// openDest opens the destination, and finds the geometry of the clone.
func (d *devices) openDest(context.Context) error {
	size, source := d.start.Definition.Size, d.source.Device()
	if source != nil {
		size = cmp.Or(size, source.Size())
	} else {
		size = cmp.Or(size, d.meta.found.DeviceSize)
	}
	err := d.dest.open(size, d.beside())
	if err != nil {
		return err
	}
	if source != nil {
		d.dest.geometry, err = d.matchBoth(source, size)
	} else {
		d.dest.geometry, err = blockdev.MatchDest(d.dest.Device, size, int(d.meta.found.LogicalBlockSize))
	}
	if err == nil {
		d.dest.use, err = records.ReadUse(d.dest.records, d.dest.Device, d.meta.found)
	}
	if err != nil {
		return errors.Join(err, d.dest.Remove(), d.dest.Close())
	}
	return nil
}

// matchBoth is the geometry of source and destination. A recovery goes on without a source that does not fit any more.
func (d *devices) matchBoth(source *blockdev.Device, size int64) (blockdev.Geometry, error) {
	geo, err := blockdev.Match(source, d.dest.Device, size, d.accepts())
	if !d.start.Recover || d.meta.found == nil || err == nil && geo.LogicalBlock == int(d.meta.found.LogicalBlockSize) {
		return geo, err
	}
	alone, errDest := blockdev.MatchDest(d.dest.Device, size, int(d.meta.found.LogicalBlockSize))
	if errDest != nil {
		return alone, errDest
	}
	if err == nil {
		err = fmt.Errorf("the clone would have logical blocks of %d bytes, and has some of %d", geo.LogicalBlock, alone.LogicalBlock)
	}
	return alone, d.source.use(nil, &exit.Error{Code: exit.Source, Doing: "go on with the source", Object: source.Path(), Cause: err})
}

// openStore opens the metadata that are there, or makes new ones where there are none.
func (d *devices) openStore(context.Context) error {
	if d.meta.detached() != nil {
		return d.adopt()
	}
	if err := d.meta.room(d.dest.geometry.Size); err != nil {
		return err
	}
	store, report, err := metadata.Open(d.meta.file)
	switch {
	case errors.Is(err, metadata.ErrEmpty) && !d.start.Open:
		return d.createStore()
	case err == nil && d.start.Create && !d.start.Force:
		return &exit.Error{Code: exit.Refused, Doing: "create metadata on", Object: d.start.Definition.Metadata, Cause: errors.New("there are metadata already"),
			Next: "Leave --create out to go on with them; --force makes new ones and forgets what was hydrated."}
	case d.start.Create && d.start.Force && (err == nil || errors.Is(err, metadata.ErrDamaged) || errors.Is(err, metadata.ErrVersion)):
		return d.createStore()
	case err != nil && metadev.Unreadable(err):
		if err := d.meta.standIn(explain.Metadata("open", d.start.Definition.Metadata, err)); err != nil {
			return err
		}
		return d.adopt()
	case err != nil:
		return explain.Metadata("open", d.start.Definition.Metadata, err)
	}
	d.meta.store = store
	for _, w := range report.Warnings {
		d.Warn("metadata %s: %s", d.start.Definition.Metadata, w)
	}
	return d.adopt()
}

// adopt checks that the metadata are of this pair and this machine, and takes what they say.
func (d *devices) adopt() error {
	sb := d.meta.store.Superblock()
	def := &d.start.Definition
	if def.RegionSize == 0 {
		def.RegionSize = sb.RegionSize
	}
	if def.RegionSize != sb.RegionSize {
		return &exit.Error{Code: exit.Metadata, Doing: "use the metadata", Object: d.start.Definition.Metadata,
			Cause: fmt.Errorf("their region size is %s, not %s", text.ExactSize(sb.RegionSize), text.ExactSize(def.RegionSize)),
			Next:  "Leave --region-size out, or give " + text.ExactSize(sb.RegionSize) + ": the size of a region is fixed when metadata are made."}
	}
	want, err := d.superblock()
	if err != nil {
		return err
	}
	if err := sb.Match(want); err != nil {
		return explain.Metadata("use", d.start.Definition.Metadata, err)
	}
	elsewhere := sb.MachineID != want.MachineID && sb.BootID != want.BootID
	if !sb.Clean && elsewhere && !d.start.Force {
		return &exit.Error{Code: exit.Refused, Doing: "use the metadata", Object: d.start.Definition.Metadata,
			Cause: fmt.Errorf("they are in use on another machine (%s), or were when it died", sb.MachineID),
			Next:  "Stop the clone there; --force takes them over when that machine is gone."}
	}
	if err := d.dest.use.Outdated(d.start.Definition.Metadata, &sb, d.start.Force); err != nil {
		return err
	}
	if err := (&identity.DestCheck{Dest: d.dest.Device, Sample: &d.dest.sample, Force: d.start.Force, Warn: d.Warn}).Know(&sb, want); err != nil {
		return err
	}
	now := definition.FromMetadata(sb.Settings)
	if !d.start.Recover {
		def.Settings.Apply(&now) // what this start asks for
	}
	d.settings.set(now)
	return d.meta.recoverMode(sb.Mode)
}

// createStore makes metadata for a new clone. What the destination carries is looked for first.
func (d *devices) createStore() error {
	def := &d.start.Definition
	if err := d.dest.use.Vanished(d.start.Definition.Metadata, d.start.Force); err != nil {
		return err
	}
	if err := d.dest.Signature(d.start.Force); err != nil {
		return err
	}
	if def.RegionSize == 0 {
		def.RegionSize = definition.DefaultRegionSize
	}
	d.settings.set(def.FirstSettings())
	sb, err := d.superblock()
	if err != nil {
		return err
	}
	if _, err := rand.Read(sb.UUID[:]); err != nil {
		return err
	}
	if sb.Dest.ID == "" {
		d.Warn("the destination %s has no WWID, serial number or UUID: until something is hydrated nothing tells it from another device of its size", d.dest.Path())
	}
	sb.Settings = d.settings.get().ToMetadata()
	if err := d.meta.file.Grow(metadata.Size(metadata.NrRegions(sb.DeviceSize, sb.RegionSize))); err != nil {
		return err
	}
	d.meta.store, err = metadata.Create(d.meta.file, sb, metadata.CreateOptions{Force: d.start.Force && d.start.Create})
	if err != nil {
		return explain.Metadata("create", d.start.Definition.Metadata, err)
	}
	d.meta.created = true
	d.dest.warnSparse()
	return d.meta.file.Publish()
}

// revertStore removes metadata that a failed start has made on a device that was empty, and what it has
// recorded of the destination.
func (d *devices) revertStore() error {
	err := d.dest.use.Restore()
	if !d.meta.created || d.meta.file.Created() {
		return err
	}
	return errors.Join(err, d.meta.file.ZeroRange(0, metadata.Size(0)), d.meta.file.Flush())
}

// superblock is what the metadata of this pair, opened here and now, say.
func (d *devices) superblock() (*metadata.Superblock, error) {
	machine, boot, err := host.Identities()
	if err != nil {
		return nil, err
	}
	source, err := d.source.known()
	if err != nil {
		return nil, err
	}
	dest, err := d.dest.Identity()
	if err != nil {
		return nil, err
	}
	sb := &metadata.Superblock{
		CreatedNs: time.Now().UnixNano(), MachineID: machine, BootID: boot,
		RegionSize: d.start.Definition.RegionSize, DeviceSize: d.dest.geometry.Size, LogicalBlockSize: uint32(d.dest.geometry.LogicalBlock),
		Dest: identity.Of(d.dest.Device, dest),
	}
	source.Put(sb)
	return sb, nil
}

// CreateMetadata makes the metadata of a clone and starts no daemon.
func CreateMetadata(ctx context.Context, st definition.Start) error {
	d := newDevices(newShared(st, zerolog.Nop()), records.DefaultDir())
	var done steps.List
	if err := done.Run(ctx, d.steps()); err != nil {
		return err
	}
	err := d.dest.use.Forget() // what there was is overridden by --force, and nothing is hydrated by these yet
	return errors.Join(err, done.Stop())
}
