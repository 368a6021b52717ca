package devices

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

// Devices are the three devices of a clone, opened, locked, and found to belong together, and the
// settings, which the metadata keeps.
type Devices struct {
	*Shared
	Fence    Fence
	Meta     MetadataSide
	Source   SourceSide
	Dest     DestSide
	Settings Settings
}

// New makes them, not open yet. Records of destinations are in dir.
func New(sh *Shared, dir records.Dir) *Devices {
	d := &Devices{Shared: sh, Fence: Fence{Shared: sh}, Meta: MetadataSide{Shared: sh}, Dest: DestSide{Shared: sh, Records: dir}}
	d.Source.Shared, d.Source.fence, d.Source.meta, d.Source.dest = sh, &d.Fence, &d.Meta, &d.Dest
	return d
}

// Steps open and lock the three devices and see that they belong together.
func (d *Devices) Steps() []steps.Step {
	return []steps.Step{
		{Name: "open the metadata", Do: d.Fence.behind(d.Meta.open), Undo: d.Meta.close, Revert: d.Meta.remove},
		{Name: "open the source", Do: d.Fence.behind(d.openSource), Undo: func() error { d.Source.Close(); return nil }, Limit: closeLimit},
		{Name: "open the destination", Do: d.Fence.behind(d.openDest), Undo: func() error { return d.Dest.close() }, Revert: func() error { return d.Dest.Remove() }},
		{Name: "read the metadata", Do: d.openStore, Revert: d.revertStore},
	}
}

// closeLimit bounds the wait for reads of the source that are in flight.
const closeLimit = 2 * time.Minute

// Mark is what the driver keeps for us, to know the device by: the beginning of the clone's UUID.
func (d *Devices) Cookie() uint64 { return d.Meta.Store.Superblock().UUID.Cookie() }

// Waits is what the start waits for now.
func (d *Devices) Waits() error { return d.Fence.waits() }

// beside are the devices of the clone that are open.
func (d *Devices) beside() (open []*blockdev.Device) {
	if d.Meta.File != nil {
		open = append(open, d.Meta.File.Device)
	}
	if d := d.Source.Device(); d != nil {
		open = append(open, d)
	}
	return open
}

func (d *Devices) openSource(context.Context) error { return d.Source.open(d.beside()) }

// openDest opens the destination, and finds the geometry of the clone.
func (d *Devices) openDest(context.Context) error {
	size, source := d.Wanted.Definition.Size, d.Source.Device()
	if source != nil {
		size = cmp.Or(size, source.Size())
	} else {
		size = cmp.Or(size, d.Meta.Found.DeviceSize)
	}
	err := d.Dest.open(size, d.beside())
	if err != nil {
		return errors.Join(err, d.Dest.close())
	}
	if source != nil {
		d.Dest.Geometry, err = d.matchBoth(source, size)
	} else {
		d.Dest.Geometry, err = blockdev.MatchDest(d.Dest.Device, size, int(d.Meta.Found.LogicalBlockSize))
	}
	if err == nil {
		err = d.RefuseAuto(d.Wanted.Definition.Settings.FinishAuto)
	}
	if err == nil {
		d.Dest.Record, err = records.Read(d.Dest.Records, d.Dest.Device, d.Meta.Found)
	}
	if err != nil {
		return errors.Join(err, d.Dest.Remove(), d.Dest.close())
	}
	return nil
}

// matchBoth is the geometry of source and destination. A recovery goes on without a source that
// does not fit any more.
func (d *Devices) matchBoth(source *blockdev.Device, size int64) (blockdev.Geometry, error) {
	geo, err := blockdev.Match(source, d.Dest.Device, size, d.accepts())
	if !d.Wanted.Recover || d.Meta.Found == nil || err == nil && geo.LogicalBlock == int(d.Meta.Found.LogicalBlockSize) {
		return geo, err
	}
	alone, errDest := blockdev.MatchDest(d.Dest.Device, size, int(d.Meta.Found.LogicalBlockSize))
	if errDest != nil {
		return alone, errDest
	}
	if err == nil {
		err = fmt.Errorf("the clone would have logical blocks of %d bytes, but it was made with blocks of %d", geo.LogicalBlock, alone.LogicalBlock)
	}
	return alone, d.Source.readFrom(nil, &exit.Error{Code: exit.Source, Doing: "go on with the source", Object: source.Path(), Cause: err})
}

// openStore opens the metadata that is there, or makes new metadata where there is none.
func (d *Devices) openStore(context.Context) error {
	if d.Meta.Detached() != nil {
		return d.adopt()
	}
	if err := d.Meta.room(d.Dest.Geometry.Size); err != nil {
		return err
	}
	store, report, err := metadata.Open(d.Meta.File)
	switch {
	case errors.Is(err, metadata.ErrEmpty) && !d.Wanted.Open:
		return d.createStore()
	case err == nil && d.Wanted.Create && !d.Wanted.Force:
		return &exit.Error{Code: exit.Refused, Doing: "create metadata on", Object: d.Wanted.Definition.Metadata, Cause: errors.New("there is metadata already"),
			Next: "Leave --create out to go on with it; --force makes new metadata and forgets what was hydrated."}
	case d.Wanted.Create && d.Wanted.Force && (err == nil || errors.Is(err, metadata.ErrDamaged) || errors.Is(err, metadata.ErrVersion)):
		return d.createStore()
	case err != nil && metadev.Unreadable(err):
		if err := d.Meta.StandIn(explain.Metadata("open", d.Wanted.Definition.Metadata, err)); err != nil {
			return err
		}
		return d.adopt()
	case err != nil:
		return explain.Metadata("open", d.Wanted.Definition.Metadata, err)
	}
	d.Meta.Store = store
	for _, w := range report.Warnings {
		d.Warn("metadata %s: %s", d.Wanted.Definition.Metadata, w)
	}
	return d.adopt()
}

// adopt checks that the metadata is of this pair and this machine, and takes what it says.
func (d *Devices) adopt() error {
	sb := d.Meta.Store.Superblock()
	def := &d.Wanted.Definition
	if def.RegionSize == 0 {
		def.RegionSize = sb.RegionSize
	}
	if def.RegionSize != sb.RegionSize {
		return &exit.Error{Code: exit.Metadata, Doing: "use the metadata", Object: d.Wanted.Definition.Metadata,
			Cause: fmt.Errorf("its region size is %s, not %s", text.ExactSize(sb.RegionSize), text.ExactSize(def.RegionSize)),
			Next:  "Leave --region-size out, or give " + text.ExactSize(sb.RegionSize) + ": the size of a region is fixed when metadata is made."}
	}
	want, err := d.superblock()
	if err != nil {
		return err
	}
	if err := sb.Match(want); err != nil {
		return explain.Metadata("use", d.Wanted.Definition.Metadata, err)
	}
	elsewhere := sb.MachineID != want.MachineID && sb.BootID != want.BootID
	if !sb.Clean && elsewhere && !d.Wanted.Force {
		return &exit.Error{Code: exit.Refused, Doing: "use the metadata", Object: d.Wanted.Definition.Metadata,
			Cause: fmt.Errorf("it is in use on another machine (%s), or was when that machine died", sb.MachineID),
			Next:  "Stop the clone there; if that machine is gone, --force takes the metadata over."}
	}
	if err := d.Dest.Record.Outdated(d.Wanted.Definition.Metadata, &sb, d.Wanted.Force); err != nil {
		return err
	}
	if err := (&identity.DestCheck{Dest: d.Dest.Device, Sample: &d.Dest.Sample, Force: d.Wanted.Force, Warn: d.Warn}).Know(&sb, want); err != nil {
		return err
	}
	now := definition.FromMetadata(sb.Settings)
	if !d.Wanted.Recover {
		def.Settings.Apply(&now) // what this start asks for
	}
	d.Settings.Set(now)
	return d.Meta.recoverMode(sb.Mode)
}

// createStore makes metadata for a new clone. What the destination carries is looked for first.
func (d *Devices) createStore() error {
	def := &d.Wanted.Definition
	if err := d.Dest.Record.Vanished(d.Wanted.Definition.Metadata, d.Wanted.Force); err != nil {
		return err
	}
	if err := d.Dest.Signature(d.Wanted.Force); err != nil {
		return err
	}
	if def.RegionSize == 0 {
		def.RegionSize = definition.DefaultRegionSize
	}
	d.Settings.Set(def.FirstSettings())
	sb, err := d.superblock()
	if err != nil {
		return err
	}
	if _, err := rand.Read(sb.UUID[:]); err != nil {
		return err
	}
	if sb.Dest.ID == "" {
		d.Warn("the destination %s has no WWID, serial number or UUID: until something is hydrated, nothing tells it from another device of its size", d.Dest.Path())
	}
	sb.Settings = d.Settings.Get().ToMetadata()
	if err := d.Meta.File.Grow(metadata.Size(metadata.NrRegions(sb.DeviceSize, sb.RegionSize))); err != nil {
		return err
	}
	d.Meta.Store, err = metadata.Create(d.Meta.File, sb, metadata.CreateOptions{Force: d.Wanted.Force && d.Wanted.Create})
	if err != nil {
		return explain.Metadata("create", d.Wanted.Definition.Metadata, err)
	}
	d.Meta.Created = true
	d.Dest.warnSparse()
	return d.Meta.File.Publish()
}

// revertStore removes metadata that a failed start has made on a device that was empty, and what it
// has recorded of the destination.
func (d *Devices) revertStore() error {
	err := d.Dest.Record.Restore()
	if !d.Meta.Created || d.Meta.File.Created() {
		return err
	}
	return errors.Join(err, d.Meta.File.ZeroRange(0, metadata.Size(0)), d.Meta.File.Flush())
}

// superblock is what the metadata of this pair, opened here and now, say.
func (d *Devices) superblock() (*metadata.Superblock, error) {
	machine, boot, err := host.Identities()
	if err != nil {
		return nil, err
	}
	source, err := d.Source.known()
	if err != nil {
		return nil, err
	}
	dest, err := d.Dest.Identity()
	if err != nil {
		return nil, err
	}
	sb := &metadata.Superblock{
		CreatedNs: time.Now().UnixNano(), Host: metadata.Host{MachineID: machine, BootID: boot},
		Geometry: metadata.Geometry{RegionSize: d.Wanted.Definition.RegionSize, DeviceSize: d.Dest.Geometry.Size, LogicalBlockSize: uint32(d.Dest.Geometry.LogicalBlock)},
		Dest:     identity.Of(d.Dest.Device, dest),
	}
	source.Put(sb)
	return sb, nil
}

// CreateMetadata makes the metadata of a clone and starts no daemon.
func CreateMetadata(ctx context.Context, st definition.Start) error {
	d := New(NewShared(st, zerolog.Nop()), records.DefaultDir())
	var done steps.List
	if err := done.Run(ctx, d.Steps()); err != nil {
		return err
	}
	err := d.Dest.Record.Forget() // what there was is overridden by --force, and nothing is hydrated by these yet
	return errors.Join(err, done.Stop())
}
