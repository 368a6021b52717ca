package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/committer"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/holders"
	"github.com/ublk-clone/ublk-clone/internal/preflight"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/steps"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// Engine is the clone itself: it makes the parts, and brings them up and down by its steps. What is
// asked of it, its parts answer.
type Engine struct {
	*devices.Devices // Cookie, Waits, Warn, Events
	*session         // Repair, Farewell
	*lanes           // Retry, Answers
	*handover        // Finishable, HandOver, FinishDue, Finish
	*drain           // Drain, GoOn
	*reports         // Status
	live             *liveMap
	caution          *caution
	device           *blockDevice
	layer            *dm.Over
	direct           *directPath
	watcher          *events.Watcher
}

// New makes the parts of a clone. Nothing is opened before the steps.
func New(st definition.Start, log zerolog.Logger) *Engine {
	d := devices.New(devices.NewShared(st, log), records.DefaultDir())
	live, lanes, device, layer := newLiveMap(d), &lanes{Devices: d}, &blockDevice{Devices: d}, dm.NewOver(&d.Wanted, d.Warn)
	d.Dest.GoThrough()
	direct := &directPath{Devices: d, lanes: lanes, layer: layer, device: device}
	session := &session{Devices: d, live: live, lanes: lanes, committer: committer.NewCommitter(log)}
	e := &Engine{
		Devices: d, session: session, live: live, lanes: lanes, device: device, layer: layer, direct: direct,
		handover: &handover{Devices: d, session: session, lanes: lanes, device: device, layer: layer, direct: direct, due: make(chan struct{}, 1)},
		drain:    &drain{Devices: d, session: session, lanes: lanes, device: device, direct: direct},
		reports:  &reports{Devices: d, session: session, lanes: lanes, device: device, layer: layer, direct: direct},
		caution:  &caution{Shared: d.Shared, live: live, lanes: lanes},
	}
	e.watcher = events.NewWatcher(e.Happened, e.look, e.whenHydrated)
	d.Source.Noticed, d.Source.Save = e.watcher.Kick, session.committer.Save
	return e
}

// changed tells committer and watcher that something has changed. It never blocks.
func (e *Engine) changed() {
	e.session.committer.Kick()
	e.watcher.Kick()
}

// Opens end with the metadata read, which says who the clone is.
func (e *Engine) Opens() []steps.Step {
	look := steps.Step{
		Name: "look at the device-mapper device", Do: func(context.Context) error { return e.layer.Open() }, Undo: e.layer.Close,
	}
	return append([]steps.Step{look}, e.Devices.Steps()...)
}

// Steps bring the clone up. Undone in reverse: the block device goes while its queues serve, then
// the hydrator, then the last commit and the clean flag, then the device number, then files and
// locks.
func (e *Engine) Steps() []steps.Step {
	return []steps.Step{
		{Name: "open the driver", Do: e.device.openDriver, Undo: func() error { return e.device.control.Close() }},
		{Name: "add the device", Do: e.device.add, Undo: e.device.delete, Limit: teardownLimit},
		{Name: "load the region map and lock the memory", Do: e.loadMap, Undo: e.freeMemory},
		{Name: "look at what the layer leads to the destination", Do: e.direct.check},
		{Name: "begin the session", Do: e.session.begin, Undo: e.session.end, Limit: teardownLimit},
		{Name: "repair the metadata", Do: e.session.repairForced},
		{Name: "record what the destination is used for", Do: e.session.writeRecord},
		{Name: "tell udev of the devices", Do: e.nameForUdev, Undo: e.unnameForUdev},
		{Name: "watch for events", Do: e.startWatcher, Undo: func() error { e.watcher.Stop(); return nil }, Limit: teardownLimit},
		{Name: "start hydration", Do: e.lanes.startHydration, Undo: func() error { return e.lanes.background.Stop() }, Limit: teardownLimit},
		{Name: "start the device", Do: e.startDevice, Undo: e.stopDevice, Limit: teardownLimit},
	}
}

// LayerSteps lay the layer, and lead its extents.
func (e *Engine) LayerSteps() []steps.Step {
	return []steps.Step{
		{
			Name: "lay the device-mapper device", Do: func(context.Context) error { return e.layLayer() },
			Undo: func() error { return e.liftLayer(dm.RemoveLimit, e.Ending.Forced) },
		},
		{Name: "name the device", Do: func(context.Context) error { return e.nameTop() }},
		{Name: "lead what is hydrated to the destination", Do: e.direct.start, Undo: e.direct.stop, Limit: teardownLimit},
	}
}

func (e *Engine) layLayer() error {
	return e.layer.Lay(dm.Base{Device: e.device.path(), Size: e.Dest.Geometry.Size, Clone: e.Meta.Store.Superblock().UUID})
}

// liftLayer leaves the layer to the next daemon with its device, and to the destination when it
// leads there.
func (e *Engine) liftLayer(limit time.Duration, force bool) error {
	if e.Ending.Keep || e.Ending.HandedOver {
		return nil
	}
	return e.layer.Lift(limit, force)
}

// loadMap reads the region map and makes the core with a lane for each queue and one for the
// hydrator.
func (e *Engine) loadMap(context.Context) error {
	geo, err := clone.NewGeometry(e.Dest.Geometry.Size, e.Wanted.Definition.RegionSize)
	if err != nil {
		return err
	}
	regions, err := e.session.readMap(geo.Regions())
	if err == nil {
		err = e.live.touchFirst(regions.NrPages(), func(page uint64) bool { return regions.Full(page) || regions.AllZero(page) })
	}
	var delta clone.DeltaConfig
	if err == nil {
		delta, err = e.lanes.memory.takeForMarks(regions.NrPages())
	}
	if err == nil {
		info := e.device.Info()
		err = e.lanes.make(e.newCore(geo, regions, delta), info.Queues, info.Depth, e.changed)
	}
	if err == nil {
		lockMemory(e.Warn)
		err = e.live.Unlock()
	}
	if err != nil {
		return errors.Join(err, e.freeMemory())
	}
	return nil
}

// newCore makes a core that goes on where the metadata and the live map say.
func (e *Engine) newCore(geo clone.Geometry, regions *bitmap.Map, delta clone.DeltaConfig) *clone.Core {
	sb, left := e.Meta.Store.Superblock(), e.live.State()
	return clone.New(clone.Config{
		Geometry: geo, Map: regions, Uncommitted: e.live.uncommitted, Doubt: e.Meta.Detached() != nil,
		Mode: max(clone.Mode(sb.Mode), clone.Mode(left.Mode)), FlushLost: sb.DestFlushFailed || left.FlushLost, // I10
		LeastZeros: e.Wanted.Definition.LeastZeros(), Kick: e.session.committer.Kick, Event: e.changed, State: e.live.keepState,
		Classify: func(err error) clone.ErrorClass { return classify(err, e.Dest.Device) },
		Delta:    delta,
		Touch:    e.live.Touch, Release: func(page uint64, p *bitmap.Page) { e.live.givePageBack(regions, page, p) },
	})
}

// freeMemory gives back what the map and the lanes have.
func (e *Engine) freeMemory() error {
	// Reads of the source under way may fill what is abandoned.
	abandoned := e.lanes.background != nil && e.lanes.background.Abandoned
	return errors.Join(e.lanes.memory.free(abandoned), e.live.close(), e.Ending.Fault(8))
}

// startWatcher begins with the condition as it is: what was so before is no event.
func (e *Engine) startWatcher(context.Context) error {
	e.watcher.Was = e.condition()
	guard.Go("events", e.watcher.Run)
	return nil
}

func (e *Engine) startDevice(context.Context) error {
	e.caution.begin()
	err := e.device.Start(func(q *ublk.Queue) ublk.Target { return e.lanes.frontends[q.Index()].Attach(q) })
	if err != nil {
		e.caution.end()
		return explain.Driver("start the block device", err)
	}
	e.caution.watch()
	e.lanes.serving.Store(true)
	e.Happened.Add(control.EventStarted, fmt.Sprintf("%s is up, %s", e.device.path(), events.ModeText(e.condition())))
	return nil
}

func (e *Engine) stopDevice() error {
	defer e.caution.end()
	return e.device.stop()
}

// FillIn adds to the definition what is known by now.
func (e *Engine) FillIn(def *definition.Definition) {
	def.Device, def.Cookie = e.device.path(), e.Cookie()
	def.Size, def.RegionSize = e.Dest.Geometry.Size, e.Wanted.Definition.RegionSize
}

// TryStop stops the device if nobody uses it, or with force from under its users. The layer goes
// first, and comes back if the device stays.
func (e *Engine) TryStop(ctx context.Context, force bool) (err error) {
	e.direct.pause()
	defer func() {
		if err != nil {
			e.direct.goOn()
		}
	}()
	stop := func() error { return e.device.Stop(drainLimit) }
	if err := e.lanes.atWork(e.device.path()); err != nil {
		return err
	}
	if err := e.liftLayer(0, force); err != nil {
		return err
	}
	if force {
		e.Ending.Forced = true
		return errors.Join(explain.Driver("stop the block device", stop()), e.layer.Cut())
	}
	err = holders.StopUnused(ctx, e.device.control, e.device.Info().ID, stop)
	if exit.Code(err) == exit.Busy {
		if err := e.layLayer(); err != nil {
			return err
		}
	}
	return err
}

// WarmUp takes the memory that the steps will need.
func (e *Engine) WarmUp() error { return e.lanes.memory.warmUp(&e.Wanted.Definition) }

// KeepDevice says whether taking down leaves the block device with its users waiting, for another
// daemon to recover: so it is at a planned restart, and when a recovery fails.
func (e *Engine) KeepDevice(keep bool) { e.Ending.Keep = keep }

// MayReplace is the look before a daemon is replaced.
func (e *Engine) MayReplace(dir control.Dir) error {
	return preflight.MayReplace(dir, &e.Wanted.Definition)
}

// Device is the path of the block device, empty before it is added.
func (e *Engine) Device() string { return e.device.path() }

// look is the watcher's, every second at least.
func (e *Engine) look() events.Condition {
	e.Source.LetGo()
	if e.lanes.serving.Load() {
		e.lanes.rest()
	}
	e.lanes.watchAnswers()
	e.Dest.LookShorter()
	return e.condition()
}

// Configure makes a change of the settings, or refuses it as a whole, and writes it down. It does
// not wait longer for the metadata than ctx: the next superblock that is written has the change.
func (e *Engine) Configure(ctx context.Context, c definition.Change) error {
	if c.DiscardPassdown != nil && *c.DiscardPassdown && e.Dest.NoPassdown != "" {
		return &exit.Error{Code: exit.Dest, Doing: "switch on discard passdown to", Object: e.Dest.Path(), Cause: errors.New(e.Dest.NoPassdown),
			Next: "Nothing was changed."}
	}
	if err := e.RefuseAuto(c.FinishAuto); err != nil {
		return err
	}
	different := e.Settings.Change(c, func(s definition.Settings) {
		e.lanes.tellCore(s)
		e.lanes.background.Configure(s.ForHydrator())
	})
	if different {
		e.Happened.Add(control.EventSettings, c.String())
		e.direct.changed()
		e.handover.tellDue()
	}
	err := e.session.committer.Save(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return &exit.Error{Code: exit.Timeout, Doing: "write the settings down in", Object: e.Wanted.Definition.Metadata, Cause: errors.New("the metadata does not answer"),
			Next: "The change is in effect, and is written down as soon as the metadata answers."}
	case err != nil:
		return explain.Metadata("keep the settings in", e.Wanted.Definition.Metadata, err)
	}
	return nil
}
