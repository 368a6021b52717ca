package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/committer"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/holders"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/steps"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// Limits of what a stop waits for.
const (
	drainLimit    = 60 * time.Second // requests in flight on slow backends
	deleteLimit   = 10 * time.Second // the last user of ublkbN and ublkcN to let go
	teardownLimit = 2 * drainLimit   // of one undo step
)

// Engine is the clone itself: it makes the parts, and brings them up and down by its steps.
type Engine struct {
	*devices
	*session // Repair, Farewell
	live     *liveMap
	lanes    *lanes
	caution  *caution

	layer   *dm.Over
	control *ublk.Control
	dev     *ublk.Device
	watcher *events.Watcher
}

func New(st definition.Start, log zerolog.Logger) *Engine {
	sh := newShared(st, log)
	d := newDevices(sh, records.DefaultDir())
	live, lanes := &liveMap{shared: sh, meta: &d.meta}, &lanes{devices: d}
	e := &Engine{
		devices: d, live: live, lanes: lanes, caution: &caution{shared: sh, live: live, lanes: lanes},
		session: &session{devices: d, live: live, lanes: lanes, committer: committer.NewCommitter(log)},
	}
	e.layer = dm.NewOver(&sh.start, e.Warn)
	e.watcher = events.NewWatcher(e.happened, e.look, e.whenHydrated)
	e.source.Noticed, e.source.save = e.watcher.Kick, e.session.committer.Save
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
	return append([]steps.Step{look}, e.steps()...)
}

// Steps bring the clone up. Undone in reverse: the block device goes while its queues serve, then the
// hydrator, then the last commit and the clean mark, then the device number, then files and locks.
func (e *Engine) Steps() []steps.Step {
	return []steps.Step{
		{Name: "open the driver", Do: e.openDriver, Undo: func() error { return e.control.Close() }},
		{Name: "add the device", Do: e.addDevice, Undo: e.deleteDevice, Limit: teardownLimit},
		{Name: "load the region map and lock the memory", Do: e.loadMap, Undo: e.freeMemory},
		{Name: "begin the session", Do: e.session.begin, Undo: e.session.end, Limit: teardownLimit},
		{Name: "repair the metadata", Do: e.session.repairForced},
		{Name: "record the use of the destination", Do: e.session.recordUse},
		{Name: "tell udev of the devices", Do: e.nameForUdev, Undo: e.unnameForUdev},
		{Name: "watch for events", Do: e.startWatcher, Undo: func() error { e.watcher.Stop(); return nil }, Limit: teardownLimit},
		{Name: "start hydration", Do: e.startHydration, Undo: func() error { return e.lanes.background.Stop() }, Limit: teardownLimit},
		{Name: "start the device", Do: e.startDevice, Undo: e.stopDevice, Limit: teardownLimit},
	}
}

// Top is the layer.
func (e *Engine) Top() []steps.Step {
	return []steps.Step{{
		Name: "lay the device-mapper device", Do: func(context.Context) error { return e.layLayer() },
		Undo: func() error { return e.liftLayer(dm.RemoveLimit, false) },
	}}
}

func (e *Engine) layLayer() error {
	return e.layer.Lay(dm.Base{Device: e.Device(), Size: e.dest.geometry.Size, Clone: e.meta.store.Superblock().UUID})
}

// liftLayer leaves the layer to the next daemon with its device, and to the destination when it leads there.
func (e *Engine) liftLayer(limit time.Duration, force bool) error {
	if e.ending.keep || e.ending.handedOver {
		return nil
	}
	return e.layer.Lift(limit, force)
}

// openDriver comes before the map is read, which may take long.
func (e *Engine) openDriver(context.Context) (err error) {
	e.control, err = ublk.OpenControl()
	return explain.Driver("open the ublk driver", err)
}

// addDevice makes the device, which tells how many queues the driver allows. Nothing is served before
// startDevice.
func (e *Engine) addDevice(context.Context) (err error) {
	if e.start.Recover {
		return e.takeOverDevice()
	}
	e.dev, err = ublk.Create(e.control, e.deviceOptions())
	return explain.Driver("add the block device", err)
}

// deviceOptions are those of a new device.
func (e *Engine) deviceOptions() ublk.Options {
	def, geo := &e.start.Definition, &e.dest.geometry
	hint := max(int(min(def.RegionSize, maxHint)), geo.PhysicalBlock)
	// Memory of users goes to the backends as it is, unless it is copied.
	dma, copied := geo.DMAAlignment, def.Copied
	if dma >= os.Getpagesize() {
		dma, copied = 0, true
	}
	return ublk.Options{
		ID: ublk.AnyID, Queues: def.Queues, Depth: def.QueueDepth, Private: e.Mark(), Recoverable: true, Copy: copied,
		Tokens: dataplane.QueueOps(def.QueueDepth),
		Params: ublk.Params{
			Size: geo.Size, LogicalBlockSize: geo.LogicalBlock, PhysicalBlockSize: geo.PhysicalBlock, IOMin: hint, IOOpt: hint,
			MaxIO: footprint.MaxIO, DMAAlignment: dma,
			// Passdown or not: a discard of a part of a region does nothing, so nobody is to be told that
			// it might (dm-clone shows the destination's granularity and ignores such discards).
			DiscardGranularity: def.RegionSize, MaxDiscard: clone.MaxSpan, MaxWriteZeroes: clone.MaxSpan,
			VolatileCache: true, FUA: true,
		},
	}
}

// maxHint bounds io_min and io_opt, in bytes: the page cache reads ahead twice io_opt.
const maxHint = 512 << 10

// loadMap reads the region map and makes the core with a lane for each queue and one for the hydrator.
func (e *Engine) loadMap(context.Context) error {
	geo, err := clone.NewGeometry(e.dest.geometry.Size, e.start.Definition.RegionSize)
	if err != nil {
		return err
	}
	regions, err := e.session.readMap(geo.Regions())
	if err == nil {
		err = e.live.settle(regions.NrPages(), func(page uint64) bool { return regions.Full(page) || regions.AllZero(page) })
	}
	if err == nil {
		info := e.dev.Info()
		err = e.lanes.make(e.newCore(geo, regions), info.Queues, info.Depth, e.changed)
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

func (e *Engine) newCore(geo clone.Geometry, regions *bitmap.Map) *clone.Core {
	sb, left := e.meta.store.Superblock(), e.live.State()
	return clone.New(clone.Config{
		Geometry: geo, Map: regions, Uncommitted: e.live.uncommitted, Doubt: e.meta.detached() != nil,
		Mode: max(clone.Mode(sb.Mode), clone.Mode(left.Mode)), FlushLost: sb.DestFlushFailed || left.FlushLost, // I10
		LeastZeros: e.start.Definition.LeastZeros(), Kick: e.session.committer.Kick, Event: e.changed, State: e.live.keepState,
		Classify: func(err error) clone.ErrorClass { return classify(err, e.dest.Device) },
		Touch:    e.live.Touch, Release: func(page uint64, p *bitmap.Page) { e.live.givePageBack(regions, page, p) },
	})
}

func (e *Engine) freeMemory() error {
	// Reads of the source under way may fill what is abandoned.
	abandoned := e.lanes.background != nil && e.lanes.background.Abandoned
	return errors.Join(e.lanes.memory.free(abandoned), e.live.close(), e.ending.fault(8))
}

// startWatcher begins with the condition as it is: what was so before is no event.
func (e *Engine) startWatcher(context.Context) error {
	e.watcher.Was = e.condition()
	guard.Go("events", e.watcher.Run)
	return nil
}

func (e *Engine) startHydration(context.Context) error { return e.lanes.background.Start(guard.Fatal) }

func (e *Engine) startDevice(context.Context) error {
	e.caution.begin()
	err := e.dev.Start(func(q *ublk.Queue) ublk.Target { return e.lanes.frontends[q.Index()].Attach(q) })
	if err != nil {
		e.caution.end()
		return explain.Driver("start the block device", err)
	}
	e.caution.watch()
	e.happened.Add(control.EventStarted, fmt.Sprintf("%s is up, %s", e.Device(), events.ModeText(e.condition())))
	return nil
}

// Device is the path of the block device, empty before it is added.
func (e *Engine) Device() string {
	if e.dev == nil {
		return ""
	}
	return e.dev.BlockPath()
}

// Note adds to the definition what is known by now.
func (e *Engine) Note(def *definition.Definition) {
	def.Device, def.Mark = e.Device(), e.Mark()
	def.Size, def.RegionSize = e.dest.geometry.Size, e.start.Definition.RegionSize
}

// TryStop stops the device if nobody uses it, or with force from under its users. The layer goes first, and comes back
// if the device stays.
func (e *Engine) TryStop(ctx context.Context, force bool) error {
	stop := func() error { return e.dev.Stop(drainLimit) }
	if err := e.lanes.atWork(e.Device()); err != nil {
		return err
	}
	if err := e.liftLayer(0, force); err != nil {
		return err
	}
	if force {
		e.ending.forced = true
		return explain.Driver("stop the block device", stop())
	}
	err := holders.StopUnused(ctx, e.control, e.dev.Info().ID, stop)
	if exit.Code(err) == exit.Busy {
		if err := e.layLayer(); err != nil {
			return err
		}
	}
	return err
}

// WarmUp takes the memory that the steps will need.
func (e *Engine) WarmUp() error { return e.lanes.memory.warmUp(&e.start.Definition) }

// Answers says whether all loops have gone round since it was called last.
func (e *Engine) Answers() bool { return e.lanes.alive() }
