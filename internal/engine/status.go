package engine

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/rate"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// reports say how the clone is. They change nothing, and any goroutine may ask.
type reports struct {
	*devices.Devices
	session *session
	lanes   *lanes
	device  *blockDevice
	layer   *dm.Over
	direct  *directPath
	top     string // what users are to open, once it has its name
}

// condition is what the watcher compares.
func (r *reports) condition() events.Condition {
	return events.Condition{Mode: r.lanes.core.Mode(), FlushLost: r.lanes.core.FlushLost(), Complete: r.lanes.core.Complete(), Hydration: r.lanes.background.Status(), Away: r.lanes.sourceAway()}
}

// Status fills in what the engine knows. It changes nothing.
func (r *reports) Status(st *control.Status) {
	sb, h, geo := r.Meta.Store.Superblock(), r.lanes.background.Status(), r.lanes.core.Geometry()
	st.Path = r.top
	st.UUID, st.Mode = sb.UUID.String(), r.lanes.core.Mode().String()
	st.Size, st.RegionSize = geo.Size(), geo.RegionSize()
	r.countBytes(st)
	st.Regions.Hydrating = h.InFlight
	for _, b := range h.Bad {
		st.BadRanges = append(st.BadRanges, control.BadRange{Offset: geo.Start(b.First), Length: geo.Start(b.End) - geo.Start(b.First), Attempts: b.Attempts})
	}
	st.State, st.Reason, st.Action = r.explain(st, h)
	if st.State == control.StateFailed && r.Dest.CutShort() != nil {
		st.StalledBy = blockdev.Dest.String()
	}
	if st.State == control.StateStalled {
		st.StalledBy = r.stalledBy(h).String()
	}
	st.Rate, st.LastRate, st.ActiveSecs = r.session.sampler.Rates()
	st.ActiveSecs += int64(r.session.counters.ActiveSeconds)
	st.ETA = rate.ETA(st.State, st.Bytes.Remaining, st.Rate)
	st.Starts = int64(r.session.counters.Starts)
	st.Settings = r.Settings.Get()
	st.Settings.DiscardPassdown = r.Dest.Passdown(st.Settings)
	st.LastEvent = r.Happened.LastSeq()
	st.MetadataBlocks = r.metadataBlocks()
	st.Failed = r.lanes.failures.List()
	st.Warnings = slices.Concat(r.Dest.Geometry.Warnings, r.Dest.Warnings(), r.Warned)
	if d := r.Source.Device(); d != nil {
		st.Warnings = append(st.Warnings, d.Warnings()...)
	}
	if why := r.lanes.sourceAway(); why != nil && !dataplane.IsRenamed(why) {
		st.Warnings = append(st.Warnings, "going on without the source: "+why.Error())
	}
	st.Warnings = append(st.Warnings, r.layer.Warnings()...)
	st.ZeroCopy = r.device.Info().ZeroCopy()
	for _, f := range r.lanes.frontends {
		st.Queues = append(st.Queues, control.QueueStatus{Requests: f.Served()})
	}
}

// countBytes: the counters come from different moments, and none may say more than there is.
func (r *reports) countBytes(st *control.Status) {
	regions, geo, lanes := r.lanes.core.Regions(), r.lanes.core.Geometry(), r.lanes.core.Stats()
	done := min(regions.NrHydrated()+regions.NrZero(), geo.Regions())
	st.Regions.Total = geo.Regions()
	st.Regions.Hydrated = done
	if !r.lanes.core.Complete() { // I12: not complete before the durable plane is full
		st.Regions.Hydrated = min(done, geo.Regions()-1)
	}
	st.Bytes.Copied = int64(r.session.counters.BytesCopied) + lanes.Copied
	st.Bytes.Written = int64(r.session.counters.BytesWritten) + lanes.Written
	st.Bytes.Discarded = int64(r.session.counters.BytesDiscarded) + lanes.Discarded
	st.Bytes.SourceRead = lanes.SourceRead
	st.Bytes.Direct = r.direct.bytes.Load()
	st.Bytes.Hydrated = hydratedBytes(geo, regions)
	st.Bytes.Remaining = geo.Size() - st.Bytes.Hydrated
}

// metadataBlocks: two superblocks, and two slots for each page of the map that has a mark.
func (r *reports) metadataBlocks() control.BlockCounts {
	regions := r.lanes.core.Regions()
	used := int64(2)
	for page := range regions.NrPages() {
		if regions.Used(page) {
			used += 2
		}
	}
	return control.BlockCounts{Used: used, Total: metadata.Size(regions.NrRegions()) / metadata.BlockSize}
}

// explain gives the state, why it is in it and what to do.
func (r *reports) explain(st *control.Status, h hydrate.Status) (state, reason, action string) {
	switch {
	case r.lanes.core.FlushLost():
		return control.StateFailed, "A flush of the destination failed: what was written since the flush before it may be lost. Hydrated regions are served, no more regions are marked, and FLUSH fails.",
			"Copy what matters off the device. If the destination is sound, `ublk-clone del` and `add --force` go on from the last commit."
	case r.Meta.Detached() != nil:
		return control.StateFailed, fmt.Sprintf("The metadata could not be used (%v): the region map in memory stands in for it. Nothing acknowledged is lost. Hydrated regions are served and written; writes to others and FLUSH fail.", r.Meta.Detached()),
			"Bring " + r.Wanted.Definition.Metadata + " back, then `ublk-clone resume " + st.Name + "` commits all marks and goes on. Until then do not restart this machine."
	case r.lanes.core.Mode() != clone.ReadWrite:
		return control.StateFailed, "The metadata could not be written: no region can be marked any more. Hydrated regions are served and written; writes to others and FLUSH fail. What was acknowledged stays visible as long as the daemon lives.",
			"Repair " + r.Wanted.Definition.Metadata + ", then `ublk-clone resume " + st.Name + "` commits all marks and goes on. Until then copy what was written since the last FLUSH."
	case r.Dest.CutShort() != nil:
		return control.StateFailed, fmt.Sprintf("The destination has become shorter (%v). What was beyond its new end is lost, and requests there fail.", r.Dest.CutShort()),
			"Copy what matters off the device. A destination that was cut short cannot be made whole again from here."
	case r.lanes.core.Complete():
		return control.StateHydrated, "Everything is in the destination and durable.", "`ublk-clone finish " + st.Name + "` leaves " + r.Wanted.Definition.Dest + " on its own."
	}
	if away := r.lanes.sourceAway(); away != nil {
		return control.StateStalled, events.StalledReason(away, h), r.awayAdvice(away, st.Name) + " No write is at risk."
	}
	switch h.State {
	case hydrate.Paused:
		return control.StatePaused, "Background hydration is switched off.", "`ublk-clone resume " + st.Name + "` switches it on."
	case hydrate.Yielding:
		return control.StateYielding, "Background hydration gives way to the requests of users.", ""
	case hydrate.Stalled:
		return control.StateStalled, events.StalledReason(nil, h), r.advice(h) + ", then `ublk-clone resume " + st.Name + "`. No write is at risk."
	case hydrate.Done:
		return control.StateHydrating, "Everything is copied; the last commit is under way.", ""
	}
	return control.StateHydrating, "Background hydration is on.", ""
}

// stalledBy is the side that hydration waits for.
func (r *reports) stalledBy(h hydrate.Status) blockdev.Role {
	if r.lanes.sourceAway() != nil {
		return blockdev.Source
	}
	side, _ := dataplane.SideOf(h.LastError)
	return side
}

// advice says what to do about copies that fail.
func (r *reports) advice(h hydrate.Status) string {
	def := &r.Wanted.Definition
	switch {
	case h.LastError != nil && classify(h.LastError, r.Dest.Device) == clone.Full:
		return "Make room for " + def.Dest
	case r.stalledBy(h) == blockdev.Dest:
		return "Repair " + def.Dest
	}
	return "Repair " + def.Source + " or bring it back"
}

// awayAdvice says what to do about a source that is away.
func (r *reports) awayAdvice(away error, name string) string {
	path, resume := r.Wanted.Definition.Source, "`ublk-clone resume "+name+"`"
	switch {
	case dataplane.IsRenamed(away):
		return resume + " goes on with the file that is open. It is there until this daemon ends: do not restart the clone before it is hydrated."
	case errors.Is(away, blockdev.ErrChanged):
		return "Put the former contents of " + path + " back, then " + resume + ", which compares samples of it."
	}
	if errors.Is(away, syscall.ETIMEDOUT) && r.Source.Device() != nil {
		return "Do nothing if it comes back by itself. Otherwise make " + path + " answer, or fail the requests that wait."
	}
	return "Bring " + path + " back, then " + resume + "."
}
