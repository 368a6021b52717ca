package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/direct"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// directPath has the layer lead what is durably hydrated straight to the destination (package
// direct). Its goroutine looks every second; a change of the settings looks at once. No request
// waits for a look, and all of the layer for the moment of an exchange.
type directPath struct {
	*devices.Devices
	lanes  *lanes
	layer  *dm.Over
	device *blockDevice

	bytes   atomic.Int64           // led there now
	refusal atomic.Pointer[string] // why nothing is led there, though that is wanted, as it was told
	quit    chan struct{}          // nil: there is nothing to do
	left    chan struct{}

	mu struct {
		sync.Mutex // held for a look and an exchange
		paused     bool
		chosen     time.Time // when it was last looked through the map
		exchanged  time.Time
		done       glance // nothing is to be done as long as this is so
	}
}

// glance is what says without much ado whether anything may have changed.
type glance struct {
	durable                     uint64 // regions
	wanted, complete, hydrating bool
}

// lookPeriod is between two looks.
const lookPeriod = time.Second

// start begins to look, if the clone has a layer and its destination is a device.
func (d *directPath) start(context.Context) error {
	if d.Wanted.Definition.DM == "" || !d.Dest.IsBlock() {
		return nil
	}
	d.quit, d.left = make(chan struct{}), make(chan struct{})
	if is, ok := d.table(); ok { // that a dead daemon has left
		d.bytes.Store(direct.Bytes(is))
	}
	guard.Go("direct extents", d.run)
	return nil
}

func (d *directPath) stop() error {
	if d.quit != nil {
		close(d.quit)
		<-d.left
	}
	return nil
}

func (d *directPath) run() {
	defer close(d.left)
	tick := time.NewTicker(lookPeriod)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			d.look()
		case <-d.quit:
			return
		}
	}
}

// pause keeps the layer's table as it is: its end is near. goOn takes that back.
func (d *directPath) pause() { d.setPaused(true) }

func (d *directPath) goOn() { d.setPaused(false) }

func (d *directPath) setPaused(paused bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.paused, d.mu.done = paused, glance{}
}

// changed is of the settings: what is wanted, or not any more, is done now.
func (d *directPath) changed() {
	if d.quit == nil {
		return
	}
	d.mu.Lock()
	d.mu.chosen, d.mu.exchanged = time.Time{}, time.Time{}
	d.mu.Unlock()
	d.look()
}

// wanted says whether anything is to be led to the destination. Discards of what is would reach it.
func (d *directPath) wanted() bool {
	s := d.Settings.Get()
	return s.Direct && s.DiscardPassdown
}

// unsteady says that no exchange is tried now: a request may hang, or nobody can tell what is
// durable, if that is asked.
func (d *directPath) unsteady(wanted bool) bool {
	return d.lanes.sourceAway() != nil || d.lanes.sourceHangs() || wanted && d.inDoubt()
}

func (d *directPath) inDoubt() bool {
	return d.lanes.core.Mode() != clone.ReadWrite || d.lanes.core.FlushLost() || d.Meta.Detached() != nil || d.Dest.CutShort() != nil
}

// look exchanges the layer's table if that is wanted and worth it.
func (d *directPath) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.glance()
	if d.mu.paused || now == d.mu.done || d.unsteady(now.wanted) || now.wanted && time.Since(d.mu.chosen) < direct.Pause {
		return
	}
	is, ok := d.table()
	if !ok {
		return
	}
	d.bytes.Store(direct.Bytes(is))
	var to []dm.Extent
	if now.wanted = now.wanted && d.fits(); now.wanted {
		d.mu.chosen = time.Now()
		to = direct.Choose(d.Dest.Geometry.Size, d.durable)
	}
	more, worth, done := direct.Bytes(to)-direct.Bytes(is), len(is) > 0, true
	if now.wanted {
		p := direct.Progress{Size: d.Dest.Geometry.Size, Direct: direct.Bytes(is), More: more, Since: time.Since(d.mu.exchanged), Hydrating: now.hydrating, Complete: now.complete}
		worth, done = p.Worth(), !p.WorthLater()
	}
	if worth {
		done = d.exchange(to) // what has failed, and not for want of time, is not tried again for nothing
	}
	if done {
		now.wanted = d.wanted()
		d.mu.done = now
	}
}

func (d *directPath) glance() glance {
	complete := d.lanes.core.Complete()
	return glance{durable: d.lanes.core.DurableHydrated(), wanted: d.wanted(), complete: complete, hydrating: d.Settings.Get().Hydration && !complete}
}

func (d *directPath) durable(visit func(off, length int64)) {
	d.lanes.core.EachDurable(direct.Unit, visit)
}

// table are the extents that the layer leads to the destination; not ok: it is not the clone's
// layer, or somebody else has changed it.
func (d *directPath) table() (is []dm.Extent, ok bool) {
	l, err := d.layer.Find()
	if err != nil || !d.layer.IsOurs(l) || l.Suspended {
		return nil, false
	}
	st, err := sys.StatPath(d.device.path())
	if err != nil {
		return nil, false
	}
	return l.Direct(st.Rdev, d.Dest.Number())
}

// fits says whether the layer stays the device that its users know. If not, that is told once.
func (d *directPath) fits() bool {
	st, err := sys.StatPath(d.device.path())
	var clone, dest direct.Limits
	if err == nil {
		clone, err = limits(st.Rdev)
	}
	if err == nil {
		dest, err = limits(d.Dest.Number())
	}
	if err == nil {
		err = clone.Fit(dest)
	}
	if err != nil {
		d.refuse("nothing is led straight to the destination: " + err.Error())
	}
	return err == nil
}

func limits(number uint64) (direct.Limits, error) {
	return direct.LimitsAt(fmt.Sprintf("/sys/dev/block/%d:%d", sys.Major(number), sys.Minor(number)))
}

// refuse tells why nothing is led to the destination, once.
func (d *directPath) refuse(why string) {
	if was := d.refusal.Swap(&why); was == nil || *was != why {
		d.Happened.Add(control.EventDirect, why)
	}
}

// exchange leads these extents to the destination, and all else to the clone; failed: it is not
// possible.
func (d *directPath) exchange(to []dm.Extent) (failed bool) {
	d.mu.exchanged = time.Now()
	err := direct.Exchange(d.layer, d.Dest.Number(), to)
	switch {
	case errors.Is(err, direct.ErrStuck):
		guard.Fatal(err) // recover lets the users go on
	case dm.IsLate(err):
		d.mu.chosen, d.mu.exchanged = d.mu.chosen.Add(direct.Again-direct.Pause), time.Time{}
		d.Log.Debug().Err(err).Msg("requests at work have not ended in time: the layer leads where it led")
		return false
	case err != nil:
		d.Log.Warn().Err(err).Msg("exchange the table of the layer")
		d.refuse("the layer cannot lead elsewhere: " + err.Error())
		return true
	}
	d.refusal.Store(nil)
	d.bytes.Store(direct.Bytes(to))
	d.Happened.Add(control.EventDirect, fmt.Sprintf("%s of %s in %s are led straight to %s", text.Size(direct.Bytes(to)), text.Size(d.Dest.Geometry.Size),
		text.Plural(int64(len(to)), "extent"), d.Wanted.Definition.Dest))
	return false
}

// leadBack leads nothing to the destination any more. It is paused.
func (d *directPath) leadBack(ctx context.Context) error {
	for d.quit != nil {
		is, ok := d.table()
		if !ok || len(is) == 0 {
			break
		}
		err := direct.Exchange(d.layer, d.Dest.Number(), nil)
		switch {
		case err == nil:
			d.bytes.Store(0)
			return nil
		case errors.Is(err, direct.ErrStuck):
			guard.Fatal(err)
		}
		select {
		case <-time.After(lookPeriod):
		case <-ctx.Done():
			return &exit.Error{Code: exit.Timeout, Doing: "lead the layer away from", Object: d.Dest.Path(), Cause: err, Next: "The daemon goes on serving. Try again when requests at work end."}
		}
	}
	return nil
}

// check refuses, in a recovery, a layer that leads straight to the destination where the map does
// not know of anything hydrated: what users wrote there meanwhile would be lost, as reads would go
// to the source. With force it is led to the clone, as it is when the destination was attached
// anew.
func (d *directPath) check(context.Context) error {
	if d.Wanted.Definition.DM == "" || !d.Wanted.Recover || !d.Dest.IsBlock() {
		return nil
	}
	l, err := d.layer.Find()
	st, errStat := sys.StatPath(d.device.path())
	if err != nil || errStat != nil || l == nil || !l.IsOf(d.Cookie()) {
		return errors.Join(err, errStat)
	}
	if _, ok := l.Direct(st.Rdev, d.Dest.Number()); l.IsMixed() && !ok {
		d.layer.Anew()
	}
	regions, geo := d.lanes.core.Regions(), d.lanes.core.Geometry()
	for _, e := range l.Elsewhere(st.Rdev) {
		if first, end := geo.Touched(e.Off, e.Length); e.End() <= geo.Size() && regions.AllHydrated(first, end) {
			continue
		}
		if d.Wanted.Force {
			d.Warn("--force: %s is led to the clone again, whose map does not say that bytes %d to %d are in the destination; what was written there is lost", l.Path(), e.Off, e.End())
			d.layer.Anew()
			return nil
		}
		return &exit.Error{Code: exit.Metadata, Doing: "use the metadata", Object: d.Wanted.Definition.Metadata,
			Cause: fmt.Errorf("its map does not say that bytes %d to %d are in the destination, and %s leads them there: it is older than that", e.Off, e.End(), d.Wanted.Definition.LayerPath()),
			Next:  "Nothing was written. Bring the newest metadata back. `ublk-clone recover " + d.Wanted.Definition.Name + " --force` reads from the source there, and loses what was written."}
	}
	return nil
}
