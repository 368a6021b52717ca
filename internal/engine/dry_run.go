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
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/host"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/rate"
	"github.com/ublk-clone/ublk-clone/internal/steps"
	"github.com/ublk-clone/ublk-clone/internal/text"
	"github.com/ublk-clone/ublk-clone/metadata"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// DryRun is the process's side of try.
func DryRun(st definition.Start) (t *control.DryRun, err error) {
	e := New(st, zerolog.Nop())
	if st.Recover {
		e.start.Fence = trialFence
	}
	var done steps.List
	err = done.Run(context.Background(), e.trialSteps())
	if err == nil {
		t, err = e.try()
	}
	if err := errors.Join(err, done.Stop()); err != nil {
		return nil, err
	}
	return t, nil
}

// trialFence is how long a dry run waits for a dead daemon's last requests.
const trialFence = 2 * time.Second

// trialSteps are those of a daemon's start that can be done without a change.
func (e *Engine) trialSteps() []steps.Step {
	return append(e.steps(), []steps.Step{
		{Name: "open the driver", Do: e.openDriver, Undo: func() error { return e.control.Close() }},
		{Name: "look at the live map", Do: e.tryLive, Undo: e.live.close},
	}...)
}

// tryLive is openLive, that changes nothing.
func (e *Engine) tryLive(context.Context) error {
	free, err := livemap.TryMount(livemap.Folder)
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the live map", Object: livemap.Folder, Cause: err}
	}
	_, boot, err := host.Identities()
	if err != nil {
		return err
	}
	sb := e.meta.store.Superblock()
	begins, err := e.live.take(&sb, boot, sb.NrRegions)
	switch {
	case err != nil && e.start.Force:
		e.Warn("--force: it would go on from the last commit, and what was written after it be lost: %v", err)
		return e.live.close()
	case err != nil:
		return errors.Join(e.live.refuse(err), e.live.close())
	}
	need := int64(min(bitmap.PagesFor(sb.NrRegions), footprint.SettledPages)) * bitmap.PageBytes
	if begins && free > 0 && free < need {
		return &exit.Error{Code: exit.Other, Doing: "take memory for the region map", Object: livemap.Folder,
			Cause: fmt.Errorf("%w: %s are free, %s needed", syscall.ENOSPC, text.Size(free), text.Size(need)), Next: "Free some memory."}
	}
	return nil
}

// try finds the figures. The steps are done.
func (e *Engine) try() (*control.DryRun, error) {
	def, s := &e.start.Definition, e.settings.get()
	has, err := e.tryDevice()
	if err != nil {
		return nil, err
	}
	geo, err := clone.NewGeometry(e.dest.geometry.Size, def.RegionSize)
	if err != nil {
		return nil, err
	}
	regions, err := e.mapNow(geo.Regions())
	if err != nil {
		return nil, err
	}
	t := &control.DryRun{
		Name: def.Name, New: e.meta.created, Recover: e.start.Recover,
		Source: control.DryRunPart{Path: def.Source}, Dest: control.DryRunPart{Path: def.Dest, Size: e.dest.Size()}, Metadata: control.DryRunPart{Path: def.Metadata},
		Size: geo.Size(), RegionSize: geo.RegionSize(), Regions: geo.Regions(), MetadataBytes: metadata.Size(geo.Regions()),
		ZeroCopy: has.AutoBufReg && has.UserCopy, Hydration: s.Hydration && s.Threshold > 0, RateCap: s.Rate,
	}
	t.Memory = footprint.NeedOf(def, geo.Regions(), !t.ZeroCopy)
	if e.meta.file != nil && !e.meta.file.Created() {
		t.Metadata.Size = e.meta.file.FoundSize()
	}
	if e.dest.Created() {
		t.Dest.Size = 0
	}
	t.Carries = strings.TrimPrefix(strings.TrimPrefix(e.dest.Carries(), "it carries "), "it cannot be told what it carries: ")
	source := e.source.Device()
	var holes hydrate.Holes
	if source != nil {
		t.Source.Size, holes = source.Size(), source
	}
	var first int64
	first, t.ToCopy = toCopy(geo, regions, holes)
	t.Hydrated = hydratedBytes(geo, regions)
	if t.ToCopy > 0 && source != nil {
		e.measure(t, source, first)
	}
	e.dest.checkPassdown(s)
	t.Warnings = append(t.Warnings, e.dest.geometry.Warnings...)
	t.Warnings = append(append(t.Warnings, e.dest.Warnings()...), e.warnings...)
	if source != nil {
		t.Warnings = append(t.Warnings, source.Warnings()...)
	} else if why := e.source.Away(); why != nil && t.ToCopy > 0 {
		t.Warnings = append(t.Warnings, "it would go on without the source: "+why.Error())
	}
	return t, nil
}

// tryDevice says what the block device would have, or what the one has that is to be recovered.
func (e *Engine) tryDevice() (ublk.Features, error) {
	if !e.start.Recover {
		has, err := ublk.Try(e.control, e.deviceOptions())
		return has, explain.Driver("add the block device", err)
	}
	r := leftover.Device{Control: e.control}
	err := r.Find(&e.start.Definition)
	return r.Info.Features, err
}

// mapNow is the region map as the next daemon would find it, in memory of its own.
func (e *Engine) mapNow(nr uint64) (*bitmap.Map, error) {
	memory := make([]bitmap.Page, bitmap.PagesFor(nr))
	regions := bitmap.New(nr, memory)
	if e.meta.created {
		return regions, nil
	}
	if e.live.taken {
		err := e.live.Used(func(page uint64) error { memory[page] = e.live.Pages()[page]; return nil })
		if err != nil {
			return nil, err
		}
		bits := make([]atomic.Uint64, (len(memory)+63)/64)
		err = e.live.EachZero(func(page uint64) error { bits[page/64].Or(1 << (page % 64)); return nil })
		if err != nil {
			return nil, err
		}
		regions.KeepZeros(bits)
	}
	if e.meta.detached() != nil {
		return regions, e.live.mapOf(regions)
	}
	return regions, e.live.fill(regions)
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
func (e *Engine) measure(t *control.DryRun, source *blockdev.Device, from int64) {
	rate, err := rate.Read(source, from, t.Size)
	if err != nil {
		t.Warnings = append(t.Warnings, fmt.Sprintf("how fast the source is could not be measured: %v", err))
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
		t.Warnings = append(t.Warnings, "the source is read through the page cache, which may know some of it: it may be slower than measured")
	}
}
