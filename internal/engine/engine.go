package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
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
	"github.com/ublk-clone/ublk-clone/internal/rate"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/steps"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// Limits of what a stop waits for.
const (
	drainLimit    = 60 * time.Second // requests in flight on slow backends
	deleteLimit   = 10 * time.Second // the last user of ublkbN and ublkcN to let go
	teardownLimit = 2 * drainLimit   // of one undo step
)

// Engine is the clone itself: devices, region map, core, hydrator, committer and block device. Its
// fields are set by the steps and not changed afterwards, but for what mu guards.
type Engine struct {
	*devices
	base metadata.Counters

	mapper     *sys.DM // nil: nothing lies over the block device
	handedOver bool    // by `finish`: that leads to the destination
	control    *ublk.Control
	dev        *ublk.Device
	live       liveMap
	memory     []*sys.Mapping // of the copy buffers
	spare      []*sys.Mapping // of these, what was taken in advance
	core       *clone.Core
	committer  *committer.Committer
	background *dataplane.Background
	frontends  []*dataplane.Frontend
	caution    *dataplane.Caution // nil: there is no need for it
	life       *time.Timer        // its end
	sampler    rate.Sampler
	failures   events.Failures
	watcher    *events.Watcher
	parting    []string // what whoever ends the clone should know, when it has ended

	mu struct {
		sync.Mutex
		ended bool // the live map is about to be closed
	}
}

func New(st definition.Start, log zerolog.Logger) *Engine {
	e := &Engine{devices: newDevices(newShared(st, log), records.DefaultDir()), committer: committer.NewCommitter(log)}
	e.watcher = events.NewWatcher(e.happened, e.look, e.whenHydrated)
	e.source.Noticed, e.source.save = e.watcher.Kick, e.committer.Save
	return e
}

// changed tells committer and watcher that something has changed. It never blocks.
func (e *Engine) changed() {
	e.committer.Kick()
	e.watcher.Kick()
}

// keepState keeps the core's state in the live map. The core calls it in the order of the changes (clone.Config.State),
// so that no thread brings back a mode that another one has made worse (I10).
func (e *Engine) keepState(m clone.Mode, flushLost bool) { e.live.SetState(uint8(m), flushLost) }

// Opens end with the metadata read, which says who the clone is.
func (e *Engine) Opens() []steps.Step {
	look := steps.Step{Name: "look at the device-mapper device", Do: e.openLayer, Undo: e.closeLayer}
	return append([]steps.Step{look}, e.steps()...)
}

// Steps bring the clone up. Undone in reverse: the block device goes while its queues serve, then the
// hydrator, then the last commit and the clean mark, then the device number, then files and locks.
func (e *Engine) Steps() []steps.Step {
	return []steps.Step{
		{Name: "open the driver", Do: e.openDriver, Undo: func() error { return e.control.Close() }},
		{Name: "add the device", Do: e.addDevice, Undo: e.deleteDevice, Limit: teardownLimit},
		{Name: "load the region map and lock the memory", Do: e.loadMap, Undo: e.freeMemory},
		{Name: "begin the session", Do: e.beginSession, Undo: e.endSession, Limit: teardownLimit},
		{Name: "repair the metadata", Do: e.repairForced},
		{Name: "record the use of the destination", Do: e.recordUse},
		{Name: "tell udev of the devices", Do: e.nameForUdev, Undo: e.unnameForUdev},
		{Name: "watch for events", Do: e.startWatcher, Undo: func() error { e.watcher.Stop(); return nil }, Limit: teardownLimit},
		{Name: "start hydration", Do: e.startHydration, Undo: func() error { return e.background.Stop() }, Limit: teardownLimit},
		{Name: "start the device", Do: e.startDevice, Undo: e.stopDevice, Limit: teardownLimit},
	}
}

// Top is the layer.
func (e *Engine) Top() []steps.Step {
	return []steps.Step{{Name: "lay the device-mapper device", Do: e.layLayer, Undo: func() error { return e.liftLayer(dm.RemoveLimit, false) }}}
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
	regions, err := e.readMap(geo.Regions())
	if err == nil {
		err = e.settlePages(regions.NrPages(), func(page uint64) bool { return regions.Full(page) || regions.AllZero(page) })
	}
	if err == nil {
		err = e.makeCore(geo, regions)
	}
	if err == nil {
		err = e.lockMemory()
	}
	if err != nil {
		return errors.Join(err, e.freeMemory())
	}
	return nil
}

func (e *Engine) makeCore(geo clone.Geometry, regions *bitmap.Map) error {
	sb, left := e.meta.store.Superblock(), e.live.State()
	e.core = clone.New(clone.Config{
		Geometry: geo, Map: regions, Uncommitted: e.live.uncommitted, Doubt: e.meta.detached() != nil,
		Mode: max(clone.Mode(sb.Mode), clone.Mode(left.Mode)), FlushLost: sb.DestFlushFailed || left.FlushLost, // I10
		LeastZeros: e.start.Definition.LeastZeros(), Kick: e.committer.Kick, Event: e.changed, State: e.keepState, Classify: func(err error) clone.ErrorClass { return classify(err, e.dest.Device) }, Touch: e.live.Touch, Release: e.givePageBack,
	})
	e.dest.DropCache()
	dest, err := dataplane.NewFile(e.dest.Device)
	if err != nil {
		return err
	}
	if e.dest.SparesZeros() != blockdev.ZerosUnknown {
		dest.Unit = min(max(e.dest.DiscardUnit(), leastUnit), definition.DefaultBatchBytes)
	}
	depth, queues := e.dev.Info().Depth, e.dev.Info().Queues
	for range queues {
		buffers, err := e.buffers(footprint.QueueBuffers(geo.RegionSize(), depth))
		if err != nil {
			return err
		}
		e.frontends = append(e.frontends, dataplane.NewFrontend(e.core, &e.source.Source, dest, queues, depth, buffers, e.log, e.requestFailed, e.requestRefused))
	}
	buffers, err := e.buffers(footprint.HydratorBuffers, definition.DefaultBatchBytes)
	if err != nil {
		return err
	}
	s := e.settings.get()
	e.dest.checkPassdown(s)
	e.background = dataplane.NewBackground(e.core, &e.source.Source, dest, buffers, s.ForHydrator(), e.changed)
	e.tellCore(s)
	return nil
}

// leastUnit bounds from below what the ends of background copies are aligned to, in bytes.
const leastUnit = 64 << 10

func (e *Engine) buffers(n int, size int64) ([][]byte, error) {
	m, err := e.allocate(int64(n) * size)
	if err != nil {
		return nil, err
	}
	buffers := make([][]byte, n)
	for i := range buffers {
		from, to := int64(i)*size, int64(i+1)*size
		buffers[i] = m.Bytes()[from:to:to]
	}
	return buffers, nil
}

// allocate gives memory that was taken in advance, or maps some. freeMemory gives it back.
func (e *Engine) allocate(size int64) (*sys.Mapping, error) {
	for i, m := range e.spare {
		if int64(len(m.Bytes())) == size {
			e.spare = slices.Delete(e.spare, i, i+1)
			return m, nil
		}
	}
	m, err := sys.Map(int(size), true)
	if err != nil {
		return nil, fmt.Errorf("allocate: %w", err)
	}
	e.memory = append(e.memory, m)
	return m, nil
}

// givePageBack is of a page of the region map that nobody looks at any more.
func (e *Engine) givePageBack(page uint64, p *bitmap.Page) {
	if e.core.Regions().Full(page) { // else it is zero throughout, and noted so
		e.live.SetFull(page) // before its memory says nothing any more (I9)
	}
	if err := sys.GiveBack(p); err != nil {
		e.log.Debug().Err(err).Msg("a page of the region map stays in memory")
	}
}

func (e *Engine) freeMemory() (err error) {
	if e.background != nil && e.background.Abandoned {
		e.memory = nil // reads of the source under way may fill it yet: it goes with the process
	}
	for _, m := range e.memory {
		err = errors.Join(err, m.Close())
	}
	e.memory = nil
	return errors.Join(err, e.closeLive(), e.end.fault(8))
}

// startWatcher begins with the condition as it is: what was so before is no event.
func (e *Engine) startWatcher(context.Context) error {
	e.watcher.Was = e.condition()
	guard.Go("events", e.watcher.Run)
	return nil
}

func (e *Engine) startHydration(context.Context) error { return e.background.Start(guard.Fatal) }

func (e *Engine) startDevice(context.Context) error {
	e.beginCaution()
	err := e.dev.Start(func(q *ublk.Queue) ublk.Target { return e.frontends[q.Index()].Attach(q) })
	if err != nil {
		e.endCaution()
		return explain.Driver("start the block device", err)
	}
	e.watchLife()
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
	if err := e.atWork(); err != nil {
		return err
	}
	if err := e.liftLayer(0, force); err != nil {
		return err
	}
	if force {
		e.end.forced = true
		return explain.Driver("stop the block device", stop())
	}
	err := holders.StopUnused(ctx, e.control, e.dev.Info().ID, stop)
	if exit.Code(err) == exit.Busy {
		if err := e.layLayer(ctx); err != nil {
			return err
		}
	}
	return err
}
