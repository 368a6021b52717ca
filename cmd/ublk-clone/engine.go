package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
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

// cloneEngine is the clone itself: devices, region map, core, hydrator, committer and block device. Its
// fields are set by the steps and not changed afterwards, but for what mu guards.
type cloneEngine struct {
	start   start
	log     zerolog.Logger
	records recordDir

	meta       *blockdev.MetadataFile // nil: they could not be opened. Changed by the committer's goroutine
	source     source
	print      sourcePrint // of the source at the start, if it was there
	dest       *blockdev.Device
	found      *metadata.Superblock // nil: there were no metadata before this start
	geometry   blockdev.Geometry
	use        use
	warnings   []string // for the user, of the start
	noPassdown string   // why discards cannot be passed down
	store      *metadata.Store
	created    bool // the metadata, by this start
	base       metadata.Counters

	mapper       *sys.DM // nil: nothing lies over the block device
	handedOver   bool    // by `finish`: that leads to the destination
	forced       bool    // by `del --force`: the device goes from under its users
	finished     bool    // taking down is for good
	keepMetadata bool
	control      *ublk.Control
	dev          *ublk.Device
	keep         bool // taking down leaves the block device, with its users waiting
	fence        fence
	busySince    time.Time // when the source was found locked, in a recovery
	busyLimit    time.Duration
	live         liveMap
	memory       []*sys.Mapping // of the copy buffers
	spare        []*sys.Mapping // of these, what was taken in advance
	core         *clone.Core
	committer    *committer
	background   *background
	frontends    []*frontend
	caution      *caution    // nil: there is no need for it
	life         *time.Timer // its end
	sampler      sampler
	sample       destSample
	failures     failures
	happened     *eventLog
	watcher      *watcher
	shorter      atomic.Pointer[error] // the destination is, since it was opened. The watcher looks
	parting      []string              // what whoever ends the clone should know, when it has ended

	reopening  sync.Mutex // one caller of findSource at a time
	lookAtOpen sourceLook // at the source that is open
	lookAtPath sourceLook // at what the source's path leads to

	mu struct {
		sync.Mutex
		settings settings
		print    *sourcePrint // of the source that was taken back
		detached error        // why the live map stands in for the metadata
		ended    bool         // the live map is about to be closed
	}
}

func newEngine(st start, log zerolog.Logger) engine {
	e := &cloneEngine{start: st, log: log, records: theRecordDir(), committer: newCommitter(log), keep: st.Recover}
	e.happened = newEventLog(st.Definition.Name, log)
	e.watcher = newWatcher(e.happened, e.look, e.whenHydrated)
	e.source.noticed = e.watcher.kick
	return e
}

// warn notes what the user should know, for the log and the status. During the start only.
func (e *cloneEngine) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	e.warnings = append(e.warnings, text)
	e.log.Warn().Msg(text)
}

// changed tells committer and watcher that something has changed. It never blocks.
func (e *cloneEngine) changed() {
	e.committer.kick()
	e.watcher.kick()
}

// keepState keeps the core's state in the live map. The core calls it in the order of the changes (clone.Config.State),
// so that no thread brings back a mode that another one has made worse (I10).
func (e *cloneEngine) keepState(m clone.Mode, flushLost bool) { e.live.SetState(uint8(m), flushLost) }

// opens end with the metadata read, which says who the clone is.
func (e *cloneEngine) opens() []step {
	look := step{name: "look at the device-mapper device", do: e.openLayer, undo: e.closeLayer}
	return append([]step{look}, e.openSteps()...)
}

// steps bring the clone up. Undone in reverse: the block device goes while its queues serve, then the
// hydrator, then the last commit and the clean mark, then the device number, then files and locks.
func (e *cloneEngine) steps() []step {
	return []step{
		{name: "open the driver", do: e.openDriver, undo: func() error { return e.control.Close() }},
		{name: "add the device", do: e.addDevice, undo: e.deleteDevice, limit: teardownLimit},
		{name: "load the region map and lock the memory", do: e.loadMap, undo: e.freeMemory},
		{name: "begin the session", do: e.beginSession, undo: e.endSession, limit: teardownLimit},
		{name: "repair the metadata", do: e.repairForced},
		{name: "record the use of the destination", do: e.recordUse},
		{name: "tell udev of the devices", do: e.nameForUdev, undo: e.unnameForUdev},
		{name: "watch for events", do: e.startWatcher, undo: func() error { e.watcher.stop(); return nil }, limit: teardownLimit},
		{name: "start hydration", do: e.startHydration, undo: func() error { return e.background.stop() }, limit: teardownLimit},
		{name: "start the device", do: e.startDevice, undo: e.stopDevice, limit: teardownLimit},
	}
}

// top is the layer.
func (e *cloneEngine) top() []step {
	return []step{{name: "lay the device-mapper device", do: e.layLayer, undo: func() error { return e.liftLayer(removeLimit, false) }}}
}

// openSteps open and lock the three devices and see that they belong together.
func (e *cloneEngine) openSteps() []step {
	return []step{
		{name: "open the metadata", do: e.behindFence(e.openMeta), undo: e.closeMeta, revert: e.removeMeta},
		{name: "open the source", do: e.behindFence(e.openSource), undo: func() error { e.source.close(); return nil }, limit: teardownLimit},
		{name: "open the destination", do: e.behindFence(e.openDest), undo: func() error { return e.dest.Close() }, revert: func() error { return e.dest.Remove() }},
		{name: "read the metadata", do: e.openStore, revert: e.revertStore},
	}
}

// openDriver comes before the map is read, which may take long.
func (e *cloneEngine) openDriver(context.Context) (err error) {
	e.control, err = ublk.OpenControl()
	return driverError("open the ublk driver", err)
}

// driverError gives an error of package ublk its exit code.
func driverError(doing string, err error) error {
	if err == nil {
		return nil
	}
	e := &exit.Error{Code: exit.Other, Doing: doing, Cause: err}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Code, e.Next = exit.Denied, "Run it as root; `ublk-clone doctor` says what else may be in the way."
	case errors.Is(err, ublk.ErrNoDriver), errors.Is(err, ublk.ErrNotSupported):
		e.Code, e.Next = exit.Feature, "`ublk-clone doctor` says what is missing, and how to get it."
	}
	return e
}

// addDevice makes the device, which tells how many queues the driver allows. Nothing is served before
// startDevice.
func (e *cloneEngine) addDevice(context.Context) (err error) {
	if e.start.Recover {
		return e.takeOverDevice()
	}
	e.dev, err = ublk.Create(e.control, e.deviceOptions())
	return driverError("add the block device", err)
}

// deviceOptions are those of a new device.
func (e *cloneEngine) deviceOptions() ublk.Options {
	def, geo := &e.start.Definition, &e.geometry
	hint := max(int(min(def.RegionSize, maxHint)), geo.PhysicalBlock)
	// Memory of users goes to the backends as it is, unless it is copied.
	dma, copied := geo.DMAAlignment, def.Copied
	if dma >= os.Getpagesize() {
		dma, copied = 0, true
	}
	return ublk.Options{
		ID: ublk.AnyID, Queues: def.Queues, Depth: def.QueueDepth, Private: e.mark(), Recoverable: true, Copy: copied,
		Tokens: queueOps(def.QueueDepth),
		Params: ublk.Params{
			Size: geo.Size, LogicalBlockSize: geo.LogicalBlock, PhysicalBlockSize: geo.PhysicalBlock, IOMin: hint, IOOpt: hint,
			MaxIO: maxIO, DMAAlignment: dma,
			// Passdown or not: a discard of a part of a region does nothing, so nobody is to be told that
			// it might (dm-clone shows the destination's granularity and ignores such discards).
			DiscardGranularity: def.RegionSize, MaxDiscard: clone.MaxSpan, MaxWriteZeroes: clone.MaxSpan,
			VolatileCache: true, FUA: true,
		},
	}
}

// maxIO is the most bytes of a READ or WRITE.
const maxIO = 512 << 10

// maxHint bounds io_min and io_opt, in bytes: the page cache reads ahead twice io_opt.
const maxHint = 512 << 10

// mark is what the driver keeps for us, to know the device by: the beginning of the clone's UUID.
func (e *cloneEngine) mark() uint64 { return markOf(e.store.Superblock().UUID) }

func markOf(uuid [16]byte) uint64 { return binary.LittleEndian.Uint64(uuid[:]) }

// loadMap reads the region map and makes the core with a lane for each queue and one for the hydrator.
func (e *cloneEngine) loadMap(context.Context) error {
	geo, err := clone.NewGeometry(e.geometry.Size, e.start.Definition.RegionSize)
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

func (e *cloneEngine) makeCore(geo clone.Geometry, regions *bitmap.Map) error {
	sb, left := e.store.Superblock(), e.live.State()
	e.core = clone.New(clone.Config{
		Geometry: geo, Map: regions, Uncommitted: e.live.uncommitted, Doubt: e.detached() != nil,
		Mode: max(clone.Mode(sb.Mode), clone.Mode(left.Mode)), FlushLost: sb.DestFlushFailed || left.FlushLost, // I10
		LeastZeros: e.start.Definition.leastZeros(), Kick: e.committer.kick, Event: e.changed, State: e.keepState, Classify: e.classify, Touch: e.live.Touch, Release: e.givePageBack,
	})
	e.dest.DropCache()
	dest, err := newSharedFile(e.dest)
	if err != nil {
		return err
	}
	if e.dest.SparesZeros() != blockdev.ZerosUnknown {
		dest.unit = min(max(e.dest.DiscardUnit(), leastUnit), defaultBatchBytes)
	}
	depth, queues := e.dev.Info().Depth, e.dev.Info().Queues
	for range queues {
		buffers, err := e.buffers(queueBuffers(geo.RegionSize(), depth))
		if err != nil {
			return err
		}
		e.frontends = append(e.frontends, newFrontend(e.core, &e.source, dest, queues, depth, buffers, e.log, e.requestFailed, e.requestRefused))
	}
	buffers, err := e.buffers(hydratorBuffers, defaultBatchBytes)
	if err != nil {
		return err
	}
	s := e.settings()
	e.checkPassdown(s)
	e.background = newBackground(e.core, &e.source, dest, buffers, s.forHydrator(), e.changed)
	e.tellCore(s)
	return nil
}

// leastUnit bounds from below what the ends of background copies are aligned to, in bytes.
const leastUnit = 64 << 10

// hydratorBuffers is the most background copies in flight.
const hydratorBuffers = 16

// queueBufferBytes is the most memory for copy buffers of a queue.
const queueBufferBytes = 16 << 20

// queueBuffers: a copy buffer of a queue holds a region and what a small request adds to it at either side, as
// long as that is within reason, and any READ, for read-through; there are no more of them than can be used at a time.
func queueBuffers(regionSize int64, depth int) (n int, size int64) {
	size = min(max(2*regionSize, maxIO), 1<<20)
	return min(depth, int(queueBufferBytes/size)), size
}

func (e *cloneEngine) buffers(n int, size int64) ([][]byte, error) {
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
func (e *cloneEngine) allocate(size int64) (*sys.Mapping, error) {
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
func (e *cloneEngine) givePageBack(page uint64, p *bitmap.Page) {
	if e.core.Regions().Full(page) { // else it is zero throughout, and noted so
		e.live.SetFull(page) // before its memory says nothing any more (I9)
	}
	if err := sys.GiveBack(p); err != nil {
		e.log.Debug().Err(err).Msg("a page of the region map stays in memory")
	}
}

func (e *cloneEngine) freeMemory() (err error) {
	if e.background != nil && e.background.abandoned {
		e.memory = nil // reads of the source under way may fill it yet: it goes with the process
	}
	for _, m := range e.memory {
		err = errors.Join(err, m.Close())
	}
	e.memory = nil
	return errors.Join(err, e.closeLive(), e.faultIfFinished(8))
}

// startWatcher begins with the condition as it is: what was so before is no event.
func (e *cloneEngine) startWatcher(context.Context) error {
	e.watcher.was = e.condition()
	guard.Go("events", e.watcher.run)
	return nil
}

func (e *cloneEngine) startHydration(context.Context) error { return e.background.start(guard.Fatal) }

func (e *cloneEngine) startDevice(context.Context) error {
	e.beginCaution()
	err := e.dev.Start(func(q *ublk.Queue) ublk.Target { return e.frontends[q.Index()].attach(q) })
	if err != nil {
		e.endCaution()
		return driverError("start the block device", err)
	}
	e.watchLife()
	e.happened.add(eventStarted, fmt.Sprintf("%s is up, %s", e.device(), modeText(e.condition())))
	return nil
}

// device is the path of the block device, empty before it is added.
func (e *cloneEngine) device() string {
	if e.dev == nil {
		return ""
	}
	return e.dev.BlockPath()
}

// note adds to the definition what is known by now.
func (e *cloneEngine) note(def *definition) {
	def.Device, def.Mark = e.device(), e.mark()
	def.Size, def.RegionSize = e.geometry.Size, e.start.Definition.RegionSize
}

// tryStop stops the device if nobody uses it, or with force from under its users. The layer goes first, and comes back
// if the device stays.
func (e *cloneEngine) tryStop(ctx context.Context, force bool) error {
	stop := func() error { return e.dev.Stop(drainLimit) }
	if err := e.atWork(); err != nil {
		return err
	}
	if err := e.liftLayer(0, force); err != nil {
		return err
	}
	if force {
		e.forced = true
		return driverError("stop the block device", stop())
	}
	err := stopUnused(ctx, e.control, e.dev.Info().ID, stop)
	if exit.Code(err) == exit.Busy {
		if err := e.layLayer(ctx); err != nil {
			return err
		}
	}
	return err
}
