package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// lanes are the core with a lane for each queue and one for the hydrator, and what is asked of all
// of them. A step makes them; afterwards any goroutine may ask.
type lanes struct {
	*devices.Devices
	core       *clone.Core
	background *dataplane.Background
	frontends  []*dataplane.Frontend
	memory     memory
	failures   events.Failures

	serving atomic.Bool // all threads are there
	rested  bool        // the watcher's
}

// make makes the lanes of a core. changed is told of what may be news.
func (l *lanes) make(core *clone.Core, queues, depth int, changed func()) error {
	l.core = core
	l.Dest.DropCache()
	dest, err := dataplane.NewFile(l.Dest.Device)
	if err != nil {
		return err
	}
	if l.Dest.SparesZeros() != blockdev.ZerosUnknown {
		dest.Unit = min(max(l.Dest.DiscardUnit(), leastUnit), definition.DefaultBatchBytes)
	}
	each, hydrator := footprint.QueueBuffers(core.Geometry().RegionSize()), footprint.HydratorBuffers
	l.memory.makeStock(footprint.Buffers{Own: queues*each.Own + hydrator.Own, Most: queues*each.Most + hydrator.Most})
	for range queues {
		buffers, err := l.memory.lane(each, core.Complete(), l.restBuffers())
		if err != nil {
			return err
		}
		l.frontends = append(l.frontends, dataplane.NewFrontend(core, &l.Source.Source, dest, queues, depth, buffers, l.Log, l.requestFailed, l.requestRefused))
	}
	buffers, err := l.memory.lane(hydrator, core.Complete(), 0)
	if err != nil {
		return err
	}
	s := l.Settings.Get()
	l.Dest.CheckPassdown(s)
	l.background = dataplane.NewBackground(core, &l.Source.Source, dest, buffers, s.ForHydrator(), changed)
	l.tellCore(s)
	l.memory.begin(core)
	return nil
}

// restBuffers is how many copy buffers a queue keeps when the clone is complete: none, unless zeros
// that are there are looked for.
func (l *lanes) restBuffers() int {
	if l.Dest.SparesZeros() == blockdev.ZerosUnknown {
		return 0
	}
	return 1
}

// rest has the lanes of a complete clone give up the buffers that nobody needs any more. It is for
// lanes that run.
func (l *lanes) rest() {
	if !l.core.Complete() || l.rested {
		return
	}
	l.rested = true
	for _, b := range l.backends() {
		b.Wake()
	}
	l.memory.rest(len(l.frontends) * l.restBuffers())
}

// leastUnit bounds from below what the ends of background copies are aligned to, in bytes.
const leastUnit = 64 << 10

// startHydration starts the hydrator's thread. The queues' threads come with the block device.
func (l *lanes) startHydration(context.Context) error { return l.background.Start(guard.Fatal) }

// tellCore lets the core know the settings.
func (l *lanes) tellCore(s definition.Settings) {
	l.core.SetReadThrough(s.ReadThrough)
	l.core.SetDiscardPassdown(l.Dest.Passdown(s))
	l.core.SetSpareZeros(l.spares(s))
}

// spares says which zeros are not written where the destination reads as zeros. If it keeps them
// only until a part of their unit is written, regions must be of whole units.
func (l *lanes) spares(s definition.Settings) clone.Spare {
	unit := l.Dest.DiscardUnit()
	switch zeros := l.Dest.SparesZeros(); {
	case !s.DiscardPassdown || zeros == blockdev.ZerosUnknown:
		return clone.SpareNothing
	case zeros == blockdev.ZerosSteady:
		return clone.SpareAll
	case unit > 0 && l.Wanted.Definition.RegionSize%unit == 0:
		return clone.SpareDiscarded
	}
	return clone.SpareNothing
}

// backends are those of all lanes.
func (l *lanes) backends() []*dataplane.Backend {
	all := []*dataplane.Backend{l.background.Backend}
	for _, f := range l.frontends {
		all = append(all, f.Backend)
	}
	return all
}

// users are the queues' backends.
func (l *lanes) users() (lanes []*dataplane.Backend) {
	for _, f := range l.frontends {
		lanes = append(lanes, f.Backend)
	}
	return lanes
}

// orderAll has the lanes obey, and waits for all of them.
func (l *lanes) orderAll(ctx context.Context, o dataplane.Order) error {
	return dataplane.OrderAll(ctx, o, l.backends())
}

// Answers says whether all loops have gone round since it was called last.
func (l *lanes) Answers() bool {
	alive := l.background.Alive()
	for _, f := range l.frontends {
		alive = f.Alive() && alive
	}
	return alive
}

// sourceAway says why the clone lacks its source, nil if it does not.
func (l *lanes) sourceAway() error {
	if l.core.Complete() {
		return nil
	}
	return l.Source.Away()
}

// hangPatience is far less than what makes an outage: what waits for that may try again later.
const hangPatience = time.Second

// sourceHangs says that it does not answer now, and may be away.
func (l *lanes) sourceHangs() bool {
	return !l.core.Complete() && l.Source.Hangs(l.backends(), hangPatience)
}

// Retry takes back a source that has come back, and forgets what failed. With an error nothing has
// changed.
func (l *lanes) Retry(ctx context.Context) error {
	if !l.core.Complete() {
		if err := l.Source.Find(); err != nil {
			return err
		}
	}
	if err := control.Still(ctx); err != nil {
		return err
	}
	l.background.Resume()
	return nil
}

// watchAnswers notices that the source has fallen silent, or has answered (I15).
func (l *lanes) watchAnswers() {
	silent, again := l.Source.WatchAnswers(l.backends(), time.Duration(l.Settings.Get().SourceTimeout)*time.Second)
	if silent != nil {
		l.Log.Warn().Err(silent).Msg("the source does not answer")
	}
	if again {
		l.background.Resume()
	}
}

// stopPatience is how long a del waits for requests of users who have gone.
const stopPatience = 5 * time.Second

// atWork fails, with exit code 5, if users' requests do not end, though nobody has the device open:
// the kernel would not let go of the device before they have, and whoever has asked would not know
// why.
func (l *lanes) atWork(device string) error {
	var n int64
	for deadline := time.Now().Add(stopPatience); ; time.Sleep(control.HolderPause) {
		if n = l.core.UserInFlight(); n == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			break
		}
	}
	cause := fmt.Errorf("%d requests of former users have not ended", n)
	if reads := l.Source.UsersWaiting(l.backends()); reads > 0 {
		cause = fmt.Errorf("%w: %d reads of the source %s wait for its answer", cause, reads, l.Wanted.Definition.Source)
	}
	return &exit.Error{Code: exit.Busy, Doing: "delete", Object: device, Cause: cause, Next: "The kernel keeps the device until they end. Make the source answer, or fail the requests that wait (as `nbd-client -d` does), then try again."}
}

// hydratedBytes is what needs no source any more. The counters come from different moments, and it
// is never more than there is.
func hydratedBytes(geo clone.Geometry, regions *bitmap.Map) int64 {
	done, last := min(regions.NrHydrated()+regions.NrZero(), geo.Regions()), geo.Regions()-1
	bytes := min(geo.Size(), int64(done)*geo.RegionSize())
	if done < geo.Regions() && regions.State(last) != bitmap.Source {
		bytes -= int64(geo.Regions())*geo.RegionSize() - geo.Size() // the tail is shorter
	}
	return bytes
}

// remaining is what is not in the destination yet, in bytes.
func (l *lanes) remaining() int64 {
	return l.core.Geometry().Size() - hydratedBytes(l.core.Geometry(), l.core.Regions())
}

// requestFailed is told of every request that the core could not serve, on the queue's thread. Its
// own refusals are no news.
func (l *lanes) requestFailed(r *clone.Request, err error) {
	if side, ok := dataplane.SideOf(err); ok {
		now := time.Now()
		l.failures.Add(side, r.Off, err, now)
		l.Happened.DeviceError(now, side, r.Off, err)
	}
}

// requestRefused tells of a condemned request.
func (l *lanes) requestRefused(r *clone.Request) {
	l.Happened.Add(control.EventRequestRefused, fmt.Sprintf("%v of %d bytes at byte %d is answered with an error: %d daemons have died of it", r.Op, r.Len, r.Off, dataplane.CondemnedAfter))
}

// classify says what an error of I/O means to the core. What a buffered destination writes late may
// be reported as a want of space to anybody: there it says nothing about the write that gets it.
func classify(err error, dest *blockdev.Device) clone.ErrorClass {
	var errno syscall.Errno
	side, ok := dataplane.SideOf(err)
	switch {
	case !ok:
		return clone.Local
	case side == blockdev.Source && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, blockdev.ErrChanged) || dataplane.IsRenamed(err)):
		return clone.Away // it has lost its size, or is not what it was
	case !errors.As(err, &errno):
		return clone.Local
	case dataplane.IsAwayErrno(errno):
		return clone.Away
	case side == blockdev.Source || !dataplane.IsFullErrno(errno):
		return clone.Local
	case !dest.Present():
		return clone.Away
	case dest.Direct():
		return clone.Full
	}
	return clone.Local
}

// progress is the sampler's: the bytes that have left state Source, and whether hydration is
// active.
func (l *lanes) progress() (total int64, active bool) {
	regions, state := l.core.Regions(), l.background.Status().State
	total = int64(regions.NrHydrated()+regions.NrZero()) * l.core.Geometry().RegionSize()
	return total, state == hydrate.Hydrating || state == hydrate.Yielding
}
