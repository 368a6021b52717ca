package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/rate"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/steps"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/metadata"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// dryRun opens the devices as a daemon does, and says what it would be. It changes nothing.
type dryRun struct {
	*devices.Devices
	device *blockDevice
	live   *liveMap
}

// DryRun is the process's side of a dry run.
func DryRun(st definition.Start) (t *control.DryRun, err error) {
	if st.Recover {
		st.Fence = dryRunFence
	}
	opened := devices.New(devices.NewShared(st, zerolog.Nop()), records.DefaultDir())
	opened.Dest.GoThrough()
	d := &dryRun{Devices: opened, device: &blockDevice{Devices: opened}, live: newLiveMap(opened)}
	var done steps.List
	err = done.Run(context.Background(), d.harmlessSteps())
	if err == nil {
		t, err = d.try()
	}
	if err := errors.Join(err, done.Stop()); err != nil {
		return nil, err
	}
	return t, nil
}

// dryRunFence is how long a dry run waits for a dead daemon's last requests.
const dryRunFence = 2 * time.Second

// harmlessSteps are those of a daemon's start that can be done without a change.
func (d *dryRun) harmlessSteps() []steps.Step {
	return append(d.Devices.Steps(), []steps.Step{
		{Name: "open the driver", Do: d.device.openDriver, Undo: func() error { return d.device.control.Close() }},
		{Name: "look at the live map", Do: d.tryLive, Undo: d.live.close},
	}...)
}

// tryLive is openLive, that changes nothing.
func (d *dryRun) tryLive(context.Context) error {
	free, err := livemap.TryMount(livemap.Dir)
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the live map", Object: livemap.Dir, Cause: err}
	}
	_, boot, err := host.Identities()
	if err != nil {
		return err
	}
	sb := d.Meta.Store.Superblock()
	begins, err := d.live.take(&sb, boot, sb.NrRegions)
	switch {
	case err != nil && d.Wanted.Force:
		d.Warn("--force: it would go on from the last commit and lose what was written after it: %v", err)
		return d.live.close()
	case err != nil:
		return errors.Join(d.live.refuse(err), d.live.close())
	}
	need := int64(min(bitmap.PagesFor(sb.NrRegions), footprint.FirstPages)) * bitmap.PageBytes
	if begins && free > 0 && free < need {
		return &exit.Error{Code: exit.Other, Doing: "take memory for the region map", Object: livemap.Dir,
			Cause: fmt.Errorf("%w: %s are free, %s needed", syscall.ENOSPC, text.Size(free), text.Size(need)), Next: "Free some memory."}
	}
	return nil
}

// try finds the figures. The steps are done.
func (d *dryRun) try() (*control.DryRun, error) {
	def, s := &d.Wanted.Definition, d.Settings.Get()
	has, err := d.tryDevice()
	if err != nil {
		return nil, err
	}
	geo, err := clone.NewGeometry(d.Dest.Geometry.Size, def.RegionSize)
	if err != nil {
		return nil, err
	}
	regions, err := d.mapNow(geo.Regions())
	if err != nil {
		return nil, err
	}
	t := &control.DryRun{
		Name: def.Name, New: d.Meta.Created, Recover: d.Wanted.Recover,
		Source: control.DryRunPart{Path: def.Source}, Dest: control.DryRunPart{Path: def.Dest, Size: d.Dest.Size()}, Metadata: control.DryRunPart{Path: def.Metadata},
		DryRunShape: control.DryRunShape{
			Size: geo.Size(), RegionSize: geo.RegionSize(), Regions: geo.Regions(), MetadataBytes: metadata.Size(geo.Regions()),
			ZeroCopy: has.AutoBufReg && has.UserCopy,
		},
		DryRunCopy: control.DryRunCopy{Hydration: s.Hydration && s.Threshold > 0, RateCap: s.Rate},
	}
	t.Memory = footprint.NeedOf(def, geo.Regions(), !t.ZeroCopy)
	if d.Meta.File != nil && !d.Meta.File.Created() {
		t.Metadata.Size = d.Meta.File.FoundSize()
	}
	if d.Dest.Created() {
		t.Dest.Size = 0
	}
	t.Carries = strings.TrimPrefix(strings.TrimPrefix(d.Dest.Carries(), "it carries "), "it cannot be told what it carries: ")
	source := d.Source.Device()
	var holes hydrate.Holes
	if source != nil {
		t.Source.Size, holes = source.Size(), source
	}
	var first int64
	first, t.ToCopy = toCopy(geo, regions, holes)
	t.Hydrated = hydratedBytes(geo, regions)
	if t.ToCopy > 0 && source != nil {
		d.measure(t, source, first)
	}
	d.Dest.CheckPassdown(s)
	t.Warnings = append(t.Warnings, d.Dest.Geometry.Warnings...)
	t.Warnings = append(append(t.Warnings, d.Dest.Warnings()...), d.Warned...)
	if source != nil {
		t.Warnings = append(t.Warnings, source.Warnings()...)
	} else if why := d.Source.Away(); why != nil && t.ToCopy > 0 {
		t.Warnings = append(t.Warnings, "it would go on without the source: "+why.Error())
	}
	return t, nil
}

// tryDevice says what the block device would have, or what the one has that is to be recovered.
func (d *dryRun) tryDevice() (ublk.Features, error) {
	if !d.Wanted.Recover {
		has, err := ublk.Try(d.device.control, d.device.options())
		return has, explain.Driver("add the block device", err)
	}
	r := leftover.Device{Control: d.device.control}
	err := r.Find(&d.Wanted.Definition)
	return r.Info.Features, err
}

// mapNow is the region map as the next daemon would find it, in memory of its own.
func (d *dryRun) mapNow(nr uint64) (*bitmap.Map, error) {
	memory := make([]bitmap.Page, bitmap.PagesFor(nr))
	regions := bitmap.New(nr, memory)
	if d.Meta.Created {
		return regions, nil
	}
	if d.live.taken {
		err := d.live.Used(func(page uint64) error { memory[page] = d.live.Pages()[page]; return nil })
		if err != nil {
			return nil, err
		}
		bits := make([]atomic.Uint64, (len(memory)+63)/64)
		err = d.live.EachZero(func(page uint64) error { bits[page/64].Or(1 << (page % 64)); return nil })
		if err != nil {
			return nil, err
		}
		regions.KeepZeros(bits)
	}
	if d.Meta.Detached() != nil {
		return regions, d.live.mapOf(regions)
	}
	return regions, d.live.fill(regions)
}

// toCopy is how many bytes hydration will copy, and where the first of them are.
func toCopy(geo clone.Geometry, regions *bitmap.Map, holes hydrate.Holes) (first, bytes int64) {
	first = -1
	for r, ok := regions.NextSource(0, geo.Regions()); ok; {
		_, end := regions.Run(r, geo.Regions())
		for r < end {
			hole, stop := hydrate.Extent(geo, holes, r, end)
			if !hole {
				if first < 0 {
					first = geo.Start(r)
				}
				bytes += geo.End(stop-1) - geo.Start(r)
			}
			r = stop
		}
		if end == geo.Regions() {
			break
		}
		r, ok = regions.NextSource(end, geo.Regions())
	}
	return max(0, first), bytes
}

// measure fills in how fast the source is, and how long copying takes.
func (d *dryRun) measure(t *control.DryRun, source *blockdev.Device, from int64) {
	rate, err := rate.Read(source, from, t.Size)
	if err != nil {
		t.Warnings = append(t.Warnings, fmt.Sprintf("the speed of the source could not be measured: %v", err))
	}
	limit := t.RateCap
	if rate > 0 {
		t.SourceRate = &rate
		if limit == 0 || rate < limit {
			limit = rate
		}
	}
	if rate > 0 && t.Hydration {
		seconds := (t.ToCopy + limit - 1) / limit
		t.Seconds = &seconds
	}
	if !source.Direct() {
		t.Warnings = append(t.Warnings, "the source is read through the page cache, which may hold some of it: the source may be slower than measured")
	}
}
