package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/metadata"
)

func (e *cloneEngine) settings() settings {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.settings
}

// tellCore lets the core know the settings.
func (e *cloneEngine) tellCore(s settings) {
	e.core.SetReadThrough(s.ReadThrough)
	e.core.SetDiscardPassdown(e.passdown(s))
	e.core.SetSpareZeros(e.spares(s))
}

// spares says which zeros are not written where the destination reads as zeros. If it keeps them only until a part of their
// unit is written, regions must be of whole units.
func (e *cloneEngine) spares(s settings) clone.Spare {
	unit := e.dest.DiscardUnit()
	switch zeros := e.dest.SparesZeros(); {
	case !s.DiscardPassdown || zeros == blockdev.ZerosUnknown:
		return clone.SpareNothing
	case zeros == blockdev.ZerosSteady:
		return clone.SpareAll
	case unit > 0 && e.start.Definition.RegionSize%unit == 0:
		return clone.SpareDiscarded
	}
	return clone.SpareNothing
}

// passdown says whether discards are passed down: if that is wanted and possible.
func (e *cloneEngine) passdown(s settings) bool { return s.DiscardPassdown && e.noPassdown == "" }

// checkPassdown finds, as dm-clone does, whether the destination can discard whole regions; if not, it is
// no failure.
func (e *cloneEngine) checkPassdown(s settings) {
	limit, region := e.dest.MaxDiscard(), e.start.Definition.RegionSize
	switch {
	case limit == 0:
		e.noPassdown = "the destination cannot discard"
	case limit < region:
		e.noPassdown = fmt.Sprintf("the destination discards at most %s at a time, a region has %s", formatSize(limit), formatSize(region))
	}
	if s.DiscardPassdown && e.noPassdown != "" {
		e.warn("discards are not passed down: %s", e.noPassdown)
	}
}

// configure makes a change of the settings, or refuses it as a whole, and writes it down. It does not wait longer for
// the metadata than ctx: the next superblock that is written has the change.
func (e *cloneEngine) configure(ctx context.Context, c change) error {
	if c.DiscardPassdown != nil && *c.DiscardPassdown && e.noPassdown != "" {
		return &exit.Error{Code: exit.Dest, Doing: "switch on discard passdown to", Object: e.dest.Path(), Cause: errors.New(e.noPassdown),
			Next: "Nothing was changed."}
	}
	e.mu.Lock()
	was := e.mu.settings
	c.apply(&e.mu.settings)
	different := e.mu.settings != was
	e.tellCore(e.mu.settings)
	e.background.Configure(e.mu.settings.forHydrator())
	e.mu.Unlock()
	if different {
		e.happened.add(eventSettings, c.String())
	}
	err := e.committer.save(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return &exit.Error{Code: exit.Timeout, Doing: "write the settings down in", Object: e.start.Definition.Metadata, Cause: errors.New("the metadata does not answer"),
			Next: "The change is in effect, and is written down as soon as the metadata answers."}
	case err != nil:
		return metaError("keep the settings in", e.start.Definition.Metadata, err)
	}
	return nil
}

// events are what has happened to the clone.
func (e *cloneEngine) events() *eventLog { return e.happened }

// condition is what the watcher compares.
func (e *cloneEngine) condition() condition {
	return condition{mode: e.core.Mode(), flushLost: e.core.FlushLost(), complete: e.core.Complete(), hydration: e.background.Status(), away: e.sourceAway()}
}

// look is the watcher's, every second at least.
func (e *cloneEngine) look() condition {
	e.letGo()
	e.watchAnswers()
	if err := e.dest.Shorter(); err == nil {
		e.shorter.Store(nil)
	} else if e.shorter.Swap(&err) == nil {
		e.happened.add(eventDestError, err.Error())
	}
	return e.condition()
}

// requestFailed is told of every request that the core could not serve, on the queue's thread. Its own refusals
// are no news.
func (e *cloneEngine) requestFailed(r *clone.Request, err error) {
	if side, ok := sideOf(err); ok {
		now := time.Now()
		e.failures.add(side, r.Off, err, now)
		e.happened.deviceError(now, side, r.Off, err)
	}
}

// status fills in what the engine knows. It changes nothing.
func (e *cloneEngine) status(st *cloneStatus) {
	sb, h, geo := e.store.Superblock(), e.background.Status(), e.core.Geometry()
	st.UUID, st.Mode = sb.UUID.String(), e.core.Mode().String()
	st.Size, st.RegionSize = geo.Size(), geo.RegionSize()
	e.countBytes(st)
	st.Regions.Hydrating = h.InFlight
	for _, b := range h.Bad {
		st.BadRanges = append(st.BadRanges, badRange{Offset: geo.Start(b.First), Length: geo.Start(b.End) - geo.Start(b.First), Attempts: b.Attempts})
	}
	st.State, st.Reason, st.Action = e.explain(st, h)
	if st.State == stateFailed && e.shorter.Load() != nil {
		st.StalledBy = blockdev.Dest.String()
	}
	if st.State == stateStalled {
		st.StalledBy = e.stalledBy(h).String()
	}
	st.Rate, st.LastRate, st.ActiveSecs = e.sampler.rates()
	st.ActiveSecs += int64(e.base.ActiveSeconds)
	st.ETA = eta(st.State, st.Bytes.Remaining, st.Rate)
	st.Starts = int64(e.base.Starts)
	st.Settings = e.settings()
	st.Settings.DiscardPassdown = e.passdown(st.Settings)
	st.LastEvent = e.happened.lastSeq()
	st.MetadataBlocks = e.metadataBlocks()
	st.Failed = e.failures.list()
	st.Warnings = slices.Concat(e.geometry.Warnings, e.dest.Warnings(), e.warnings)
	if d := e.source.device(); d != nil {
		st.Warnings = append(st.Warnings, d.Warnings()...)
	}
	if why := e.sourceAway(); why != nil && !isRenamed(why) {
		st.Warnings = append(st.Warnings, "going on without the source: "+why.Error())
	}
	e.lookAtLayer(st)
	st.ZeroCopy = e.dev.Info().ZeroCopy()
	for _, f := range e.frontends {
		st.Queues = append(st.Queues, queueStatus{Requests: f.served()})
	}
}

// countBytes: the counters come from different moments, and none may say more than there is.
func (e *cloneEngine) countBytes(st *cloneStatus) {
	regions, geo, lanes := e.core.Regions(), e.core.Geometry(), e.core.Stats()
	done := min(regions.NrHydrated()+regions.NrZero(), geo.Regions())
	st.Regions.Total = geo.Regions()
	st.Regions.Hydrated = done
	if !e.core.Complete() { // I12: not complete before the durable plane is full
		st.Regions.Hydrated = min(done, geo.Regions()-1)
	}
	st.Bytes.Copied = int64(e.base.BytesCopied) + lanes.Copied
	st.Bytes.Written = int64(e.base.BytesWritten) + lanes.Written
	st.Bytes.Discarded = int64(e.base.BytesDiscarded) + lanes.Discarded
	st.Bytes.SourceRead = lanes.SourceRead
	st.Bytes.Hydrated = min(geo.Size(), int64(done)*geo.RegionSize())
	if last := geo.Regions() - 1; done < geo.Regions() && regions.State(last) != bitmap.Source {
		st.Bytes.Hydrated -= int64(geo.Regions())*geo.RegionSize() - geo.Size() // the tail is shorter
	}
	st.Bytes.Remaining = geo.Size() - st.Bytes.Hydrated
}

// metadataBlocks: two superblocks, and two slots for each page of the map that has a mark.
func (e *cloneEngine) metadataBlocks() blockCounts {
	regions := e.core.Regions()
	used := int64(2)
	for page := range regions.NrPages() {
		if regions.Used(page) {
			used += 2
		}
	}
	return blockCounts{Used: used, Total: metadata.Size(regions.NrRegions()) / metadata.BlockSize}
}

// explain gives the state, why it is in it and what to do.
func (e *cloneEngine) explain(st *cloneStatus, h hydrate.Status) (state, reason, action string) {
	switch {
	case e.core.FlushLost():
		return stateFailed, "A flush of the destination failed: what was written since the flush before it may be lost. Hydrated regions are served, no region is marked any more, FLUSH fails.",
			"Copy what matters off the device. With a sound destination, `ublk-clone del` and `add --force` begin anew from the last commit."
	case e.detached() != nil:
		return stateFailed, fmt.Sprintf("The metadata could not be used (%v): the region map in memory stands in for them. Nothing acknowledged is lost. Hydrated regions are served and written; writes to others and FLUSH fail.", e.detached()),
			"Bring " + e.start.Definition.Metadata + " back, then `ublk-clone resume " + st.Name + "` commits all marks and goes on. Until then do not restart this machine."
	case e.core.Mode() != clone.ReadWrite:
		return stateFailed, "The metadata could not be written: no region can be marked any more. Hydrated regions are served and written; writes to others and FLUSH fail. What was acknowledged stays visible as long as the daemon lives.",
			"Repair " + e.start.Definition.Metadata + ", then `ublk-clone resume " + st.Name + "` commits all marks and goes on. Until then copy what was written since the last FLUSH."
	case e.shorter.Load() != nil:
		return stateFailed, fmt.Sprintf("The destination has become shorter (%v). What was behind its end is lost, and requests there fail.", *e.shorter.Load()),
			"Copy what matters off the device. A destination that was cut short cannot be made whole again from here."
	case e.core.Complete():
		return stateHydrated, "Everything is in the destination and durable.", "`ublk-clone finish " + st.Name + "` has " + e.start.Definition.Dest + " stand alone."
	}
	if away := e.sourceAway(); away != nil {
		return stateStalled, stalledReason(away, h), e.awayAdvice(away, st.Name) + " No write is at risk."
	}
	switch h.State {
	case hydrate.Paused:
		return statePaused, "Background hydration is switched off.", "`ublk-clone resume " + st.Name + "` switches it on."
	case hydrate.Yielding:
		return stateYielding, "Background hydration makes way for requests in flight.", ""
	case hydrate.Stalled:
		return stateStalled, stalledReason(nil, h), e.advice(h) + ", then `ublk-clone resume " + st.Name + "`. No write is at risk."
	case hydrate.Done:
		return stateHydrating, "Everything is copied; the last commit is under way.", ""
	}
	return stateHydrating, "Background hydration is on.", ""
}

// stalledBy is the side that hydration waits for.
func (e *cloneEngine) stalledBy(h hydrate.Status) blockdev.Role {
	if e.sourceAway() != nil {
		return blockdev.Source
	}
	side, _ := sideOf(h.LastError)
	return side
}

// advice says what to do about copies that fail.
func (e *cloneEngine) advice(h hydrate.Status) string {
	def := &e.start.Definition
	switch {
	case h.LastError != nil && e.classify(h.LastError) == clone.Full:
		return "Make room for " + def.Dest
	case e.stalledBy(h) == blockdev.Dest:
		return "Repair " + def.Dest
	}
	return "Repair " + def.Source + " or bring it back"
}

// awayAdvice says what to do about a source that is away.
func (e *cloneEngine) awayAdvice(away error, name string) string {
	path, resume := e.start.Definition.Source, "`ublk-clone resume "+name+"`"
	switch {
	case isRenamed(away):
		return resume + " goes on with the file that is open. It is there until this daemon ends: do not restart the clone before it is hydrated."
	case errors.Is(away, blockdev.ErrChanged):
		return "Put the former contents of " + path + " back, then " + resume + ", which compares samples of it."
	}
	if errors.Is(away, syscall.ETIMEDOUT) && e.source.device() != nil {
		return "Nothing, if it comes back by itself; else make " + path + " answer, or fail what waits."
	}
	return "Bring " + path + " back, then " + resume + "."
}

// stalledReason: away is why there is no source, if so.
func stalledReason(away error, h hydrate.Status) string {
	const unreadable = "What is hydrated is served, and whole regions can be written; reads of others fail."
	switch {
	case isRenamed(away):
		return fmt.Sprintf("Hydration waits for a word: %v. Reads are served.", away)
	case errors.Is(away, blockdev.ErrChanged):
		return fmt.Sprintf("The source is not read any more: %v. %s", away, unreadable)
	case errors.Is(away, syscall.ETIMEDOUT):
		return fmt.Sprintf("The source does not answer: %v. %s", away, unreadable)
	case away != nil:
		return fmt.Sprintf("There is no source: %v. %s", away, unreadable)
	}
	text := fmt.Sprintf("%d copies failed, the last at byte %d: %v. ", h.Failures, h.LastErrorAt, h.LastError)
	if side, ok := sideOf(h.LastError); ok && side == blockdev.Dest {
		return text + "What could not be copied is read from the source; writes to it may fail."
	}
	return text + "What is hydrated is served; reads of what could not be copied fail."
}

// sampler takes the rate of hydration once a second.
type sampler struct {
	engine *cloneEngine
	quit   chan struct{}
	left   chan struct{}

	mu struct {
		sync.Mutex
		meter   rateMeter
		rate    int64
		seconds uint64 // in which hydration was active
	}
}

func (s *sampler) start(e *cloneEngine) {
	s.engine, s.quit, s.left = e, make(chan struct{}), make(chan struct{})
	guard.Go("sampler", s.run)
}

func (s *sampler) stop() {
	close(s.quit)
	<-s.left
}

func (s *sampler) run() {
	defer close(s.left)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s.sample(time.Now())
		select {
		case <-tick.C:
		case <-s.quit:
			return
		}
	}
}

// sample counts the bytes that have left state Source.
func (s *sampler) sample(now time.Time) {
	regions := s.engine.core.Regions()
	total := int64(regions.NrHydrated()+regions.NrZero()) * s.engine.core.Geometry().RegionSize()
	state := s.engine.background.Status().State
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.rate = s.mu.meter.add(now, total)
	if state == hydrate.Hydrating || state == hydrate.Yielding {
		s.mu.seconds++
	}
}

func (s *sampler) rates() (rate, last, active int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.rate, s.mu.meter.last, int64(s.mu.seconds)
}

func (s *sampler) active() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.seconds
}
