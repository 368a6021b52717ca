package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/rate"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// Configure makes a change of the settings, or refuses it as a whole, and writes it down. It does not wait longer for
// the metadata than ctx: the next superblock that is written has the change.
func (e *Engine) Configure(ctx context.Context, c definition.Change) error {
	if c.DiscardPassdown != nil && *c.DiscardPassdown && e.dest.noPassdown != "" {
		return &exit.Error{Code: exit.Dest, Doing: "switch on discard passdown to", Object: e.dest.Path(), Cause: errors.New(e.dest.noPassdown),
			Next: "Nothing was changed."}
	}
	different := e.settings.change(c, func(s definition.Settings) {
		e.lanes.tellCore(s)
		e.lanes.background.Configure(s.ForHydrator())
	})
	if different {
		e.happened.Add(control.EventSettings, c.String())
	}
	err := e.session.committer.Save(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return &exit.Error{Code: exit.Timeout, Doing: "write the settings down in", Object: e.start.Definition.Metadata, Cause: errors.New("the metadata does not answer"),
			Next: "The change is in effect, and is written down as soon as the metadata answers."}
	case err != nil:
		return explain.Metadata("keep the settings in", e.start.Definition.Metadata, err)
	}
	return nil
}

// Events are what has happened to the clone.
func (e *Engine) Events() *events.Log { return e.happened }

// condition is what the watcher compares.
func (e *Engine) condition() events.Condition {
	return events.Condition{Mode: e.lanes.core.Mode(), FlushLost: e.lanes.core.FlushLost(), Complete: e.lanes.core.Complete(), Hydration: e.lanes.background.Status(), Away: e.lanes.sourceAway()}
}

// look is the watcher's, every second at least.
func (e *Engine) look() events.Condition {
	e.source.letGo()
	e.lanes.watchAnswers()
	e.dest.lookShorter()
	return e.condition()
}

// Status fills in what the engine knows. It changes nothing.
func (e *Engine) Status(st *control.Status) {
	sb, h, geo := e.meta.store.Superblock(), e.lanes.background.Status(), e.lanes.core.Geometry()
	st.UUID, st.Mode = sb.UUID.String(), e.lanes.core.Mode().String()
	st.Size, st.RegionSize = geo.Size(), geo.RegionSize()
	e.countBytes(st)
	st.Regions.Hydrating = h.InFlight
	for _, b := range h.Bad {
		st.BadRanges = append(st.BadRanges, control.BadRange{Offset: geo.Start(b.First), Length: geo.Start(b.End) - geo.Start(b.First), Attempts: b.Attempts})
	}
	st.State, st.Reason, st.Action = e.explain(st, h)
	if st.State == control.StateFailed && e.dest.shorter.Load() != nil {
		st.StalledBy = blockdev.Dest.String()
	}
	if st.State == control.StateStalled {
		st.StalledBy = e.stalledBy(h).String()
	}
	st.Rate, st.LastRate, st.ActiveSecs = e.session.sampler.Rates()
	st.ActiveSecs += int64(e.session.counters.ActiveSeconds)
	st.ETA = rate.ETA(st.State, st.Bytes.Remaining, st.Rate)
	st.Starts = int64(e.session.counters.Starts)
	st.Settings = e.settings.get()
	st.Settings.DiscardPassdown = e.dest.passdown(st.Settings)
	st.LastEvent = e.happened.LastSeq()
	st.MetadataBlocks = e.metadataBlocks()
	st.Failed = e.lanes.failures.List()
	st.Warnings = slices.Concat(e.dest.geometry.Warnings, e.dest.Warnings(), e.warnings)
	if d := e.source.Device(); d != nil {
		st.Warnings = append(st.Warnings, d.Warnings()...)
	}
	if why := e.lanes.sourceAway(); why != nil && !dataplane.IsRenamed(why) {
		st.Warnings = append(st.Warnings, "going on without the source: "+why.Error())
	}
	st.Warnings = append(st.Warnings, e.layer.Warnings()...)
	st.ZeroCopy = e.dev.Info().ZeroCopy()
	for _, f := range e.lanes.frontends {
		st.Queues = append(st.Queues, control.QueueStatus{Requests: f.Served()})
	}
}

// countBytes: the counters come from different moments, and none may say more than there is.
func (e *Engine) countBytes(st *control.Status) {
	regions, geo, lanes := e.lanes.core.Regions(), e.lanes.core.Geometry(), e.lanes.core.Stats()
	done := min(regions.NrHydrated()+regions.NrZero(), geo.Regions())
	st.Regions.Total = geo.Regions()
	st.Regions.Hydrated = done
	if !e.lanes.core.Complete() { // I12: not complete before the durable plane is full
		st.Regions.Hydrated = min(done, geo.Regions()-1)
	}
	st.Bytes.Copied = int64(e.session.counters.BytesCopied) + lanes.Copied
	st.Bytes.Written = int64(e.session.counters.BytesWritten) + lanes.Written
	st.Bytes.Discarded = int64(e.session.counters.BytesDiscarded) + lanes.Discarded
	st.Bytes.SourceRead = lanes.SourceRead
	st.Bytes.Hydrated = hydratedBytes(geo, regions)
	st.Bytes.Remaining = geo.Size() - st.Bytes.Hydrated
}

// metadataBlocks: two superblocks, and two slots for each page of the map that has a mark.
func (e *Engine) metadataBlocks() control.BlockCounts {
	regions := e.lanes.core.Regions()
	used := int64(2)
	for page := range regions.NrPages() {
		if regions.Used(page) {
			used += 2
		}
	}
	return control.BlockCounts{Used: used, Total: metadata.Size(regions.NrRegions()) / metadata.BlockSize}
}

// explain gives the state, why it is in it and what to do.
func (e *Engine) explain(st *control.Status, h hydrate.Status) (state, reason, action string) {
	switch {
	case e.lanes.core.FlushLost():
		return control.StateFailed, "A flush of the destination failed: what was written since the flush before it may be lost. Hydrated regions are served, no region is marked any more, FLUSH fails.",
			"Copy what matters off the device. With a sound destination, `ublk-clone del` and `add --force` begin anew from the last commit."
	case e.meta.detached() != nil:
		return control.StateFailed, fmt.Sprintf("The metadata could not be used (%v): the region map in memory stands in for them. Nothing acknowledged is lost. Hydrated regions are served and written; writes to others and FLUSH fail.", e.meta.detached()),
			"Bring " + e.start.Definition.Metadata + " back, then `ublk-clone resume " + st.Name + "` commits all marks and goes on. Until then do not restart this machine."
	case e.lanes.core.Mode() != clone.ReadWrite:
		return control.StateFailed, "The metadata could not be written: no region can be marked any more. Hydrated regions are served and written; writes to others and FLUSH fail. What was acknowledged stays visible as long as the daemon lives.",
			"Repair " + e.start.Definition.Metadata + ", then `ublk-clone resume " + st.Name + "` commits all marks and goes on. Until then copy what was written since the last FLUSH."
	case e.dest.shorter.Load() != nil:
		return control.StateFailed, fmt.Sprintf("The destination has become shorter (%v). What was behind its end is lost, and requests there fail.", *e.dest.shorter.Load()),
			"Copy what matters off the device. A destination that was cut short cannot be made whole again from here."
	case e.lanes.core.Complete():
		return control.StateHydrated, "Everything is in the destination and durable.", "`ublk-clone finish " + st.Name + "` has " + e.start.Definition.Dest + " stand alone."
	}
	if away := e.lanes.sourceAway(); away != nil {
		return control.StateStalled, events.StalledReason(away, h), e.awayAdvice(away, st.Name) + " No write is at risk."
	}
	switch h.State {
	case hydrate.Paused:
		return control.StatePaused, "Background hydration is switched off.", "`ublk-clone resume " + st.Name + "` switches it on."
	case hydrate.Yielding:
		return control.StateYielding, "Background hydration makes way for requests in flight.", ""
	case hydrate.Stalled:
		return control.StateStalled, events.StalledReason(nil, h), e.advice(h) + ", then `ublk-clone resume " + st.Name + "`. No write is at risk."
	case hydrate.Done:
		return control.StateHydrating, "Everything is copied; the last commit is under way.", ""
	}
	return control.StateHydrating, "Background hydration is on.", ""
}

// stalledBy is the side that hydration waits for.
func (e *Engine) stalledBy(h hydrate.Status) blockdev.Role {
	if e.lanes.sourceAway() != nil {
		return blockdev.Source
	}
	side, _ := dataplane.SideOf(h.LastError)
	return side
}

// advice says what to do about copies that fail.
func (e *Engine) advice(h hydrate.Status) string {
	def := &e.start.Definition
	switch {
	case h.LastError != nil && classify(h.LastError, e.dest.Device) == clone.Full:
		return "Make room for " + def.Dest
	case e.stalledBy(h) == blockdev.Dest:
		return "Repair " + def.Dest
	}
	return "Repair " + def.Source + " or bring it back"
}

// awayAdvice says what to do about a source that is away.
func (e *Engine) awayAdvice(away error, name string) string {
	path, resume := e.start.Definition.Source, "`ublk-clone resume "+name+"`"
	switch {
	case dataplane.IsRenamed(away):
		return resume + " goes on with the file that is open. It is there until this daemon ends: do not restart the clone before it is hydrated."
	case errors.Is(away, blockdev.ErrChanged):
		return "Put the former contents of " + path + " back, then " + resume + ", which compares samples of it."
	}
	if errors.Is(away, syscall.ETIMEDOUT) && e.source.Device() != nil {
		return "Nothing, if it comes back by itself; else make " + path + " answer, or fail what waits."
	}
	return "Bring " + path + " back, then " + resume + "."
}
