package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/devices"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/faults"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/holders"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// A complete clone is handed over to its destination. Where a layer lies over the block device its
// users go on while that is done, and where the daemon dies in between the kernel's own table says
// how far it had come:
//
//	                                                     killed behind it, the next recover or finish finds
//	1  commit; note in the superblock that all is        a clone like any other: recover serves it
//	   hydrated; forget the record of the destination
//	2  suspend the layer: its requests have been         a layer that is suspended: recover serves the block device
//	   answered, or wait in device-mapper                and resumes it; nothing was lost, as nothing was at work
//	3  the lanes let the destination go, it is closed    the same
//	4  load a table that leads to the destination        the same, with an inactive table, which recover gives up
//	5  resume the layer: it leads to the destination     a layer that leads to the destination: there is nothing to
//	                                                     serve any more. recover and finish do 6 to 11
//	   note in the definition that it is finished        the same, also without a layer
//	6  stop the block device                             the same, and so on: what is gone is no obstacle
//	7  last commit, of nothing, and the clean flag
//	8  remove the live map
//	9  delete the block device
//	10 remove the private device over the destination (dm.Under), and the metadata
//	11 remove the definition                             nothing: it is finished
//
// Without a layer the block device is stopped first (6), when nobody has it open, and then the
// definition says that the clone is finished. Killed between the two the clone is complete, and add
// brings it back. From 10 on nothing but the definition keeps the same add from beginning anew,
// over what users wrote: so the metadata stays if the definition could not be written
// (TestFinishPlainKilled).
//
// Why no write is lost or lands late: when 2 has ended nobody has a request at work, but for those
// who have opened the block device itself since it was looked for them; their requests end before 3
// does, or wait, and get errors after 5. Our description is closed when no I/O is on it, before the
// layer leads to the destination. Some of it may have led there for long (package direct). What was
// acknowledged and not flushed is in the destination's cache either way, which whoever flushes next
// flushes.
//
// If one of 2 to 5 fails, what was done is taken back: the table, the lock, the service of the
// block device, the suspension, in this order; users have waited, and see no error. While the layer
// is suspended nothing here touches a file: that may lie on it (I9). What takes its time has a
// limit.

// handover ends a clone that is complete. With a layer, its users go on with the destination. It
// runs on the daemon's goroutine.
type handover struct {
	*devices.Devices
	session *session
	lanes   *lanes
	device  *blockDevice
	layer   *dm.Over
	direct  *directPath
	due     chan struct{}
}

// FinishDue is told when the clone is complete, and when it is to finish by itself.
func (h *handover) FinishDue() <-chan struct{} { return h.due }

// tellDue never blocks.
func (h *handover) tellDue() {
	select {
	case h.due <- struct{}{}:
	default:
	}
}

// Limits of the handover, in which users wait.
const (
	letGoLimit = 10 * time.Second // for the lanes to let the destination go, when nobody has a request at work
	grabLimit  = 2 * time.Second  // for whoever looks at the destination, as udev does when we have closed it

	openPause = 20 * time.Millisecond // between two tries to open it, or to have device-mapper open it
)

// Finishable refuses, with exit code 14, a clone that its destination cannot stand in for.
func (h *handover) Finishable() error {
	def := &h.Wanted.Definition
	refuse := func(cause error, next string) error {
		return &exit.Error{Code: exit.Refused, Doing: "finish clone", Object: def.Name, Cause: cause, Next: next}
	}
	switch {
	case h.lanes.core.Mode() != clone.ReadWrite || h.lanes.core.FlushLost() || h.Meta.Detached() != nil:
		return refuse(errors.New("its metadata or destination has failed"), "See `ublk-clone status "+def.Name+"`.")
	case h.Dest.Shorter() != nil:
		return refuse(h.Dest.Shorter(), "See `ublk-clone status "+def.Name+"`.")
	case h.lanes.remaining() > 0:
		return refuse(fmt.Errorf("%s of %s are not in the destination yet", text.Size(h.lanes.remaining()), text.Size(h.Dest.Geometry.Size)),
			"`ublk-clone wait "+def.Name+"` returns when they are; `ublk-clone status "+def.Name+"` says what keeps them.")
	case !h.lanes.core.Complete():
		return refuse(errors.New("some of it is not durable in the destination yet"), "`ublk-clone wait "+def.Name+"` returns when it is.")
	case def.DM != "" && !h.Dest.IsBlock():
		return refuse(errors.New("the destination is a file, and "+def.LayerPath()+" can lead to block devices only"),
			"It stays with the daemon. When nobody uses it, `ublk-clone del "+def.Name+"` leaves the file, which has all of it.")
	}
	return nil
}

// HandOver is 1 to 5, where there is a layer. It takes at most about limit until users go on.
func (h *handover) HandOver(ctx context.Context, limit time.Duration) (err error) {
	h.direct.pause()
	defer func() {
		if err != nil {
			h.direct.goOn()
		}
	}()
	if err := h.check(); err != nil {
		return err
	}
	if err := h.commitComplete(ctx); err != nil { // 1
		return err
	}
	if err := control.Still(ctx); err != nil {
		return err
	}
	if err := faults.Finish(1); err != nil {
		return err
	}
	name := h.Wanted.Definition.DM
	if err := h.layer.Suspend(limit); err != nil { // 2
		return &exit.Error{Code: exit.Timeout, Doing: "suspend the device-mapper device", Object: name, Cause: err,
			Next: "Nothing has changed: it goes on as before. Requests in flight have not ended; try again when the destination answers."}
	}
	err = h.exchange()
	if err == nil {
		h.Ending.HandedOver = true
		return nil
	}
	h.Log.Error().Err(err).Msg("the destination is not handed over: going back")
	h.takeBack()
	return &exit.Error{Code: exit.Dest, Doing: "hand over to the destination", Object: h.Dest.Path(), Cause: err,
		Next: "The clone goes on as before, its users have seen no error. Try again."}
}

// exchange is 3 to 5. The layer is suspended.
func (h *handover) exchange() error {
	if err := faults.Finish(2); err != nil {
		return err
	}
	if !h.Dest.Sample.Stop() {
		return errors.New("it does not answer")
	}
	ctx, cancel := context.WithTimeout(context.Background(), letGoLimit)
	defer cancel()
	err := h.lanes.orderAll(ctx, dataplane.Order{}) // 3
	if err == nil {
		err = h.Dest.Close()
	}
	if err == nil {
		err = faults.Finish(3)
	}
	if err == nil {
		err = h.loadDest() // 4
	}
	if err == nil {
		err = faults.Finish(4)
	}
	if err == nil {
		err = h.layer.Resume() // 5
	}
	if err != nil {
		return err
	}
	// Users are on the destination. Whatever fails now keeps nobody from it.
	_ = faults.Finish(5)
	_ = h.lanes.orderAll(ctx, dataplane.Order{Refuse: dataplane.ErrHandedOver})
	return nil
}

// loadDest loads the table that leads to the destination. Somebody may have opened that the moment
// it was closed.
func (h *handover) loadDest() (err error) {
	for deadline := time.Now().Add(grabLimit); ; time.Sleep(openPause) {
		err = h.layer.Load(h.Dest.Path(), h.Dest.Number())
		if !dm.IsBusy(err) || time.Now().After(deadline) {
			return err
		}
	}
}

// check looks for what would make the handover fail or lose data, before anything is done.
func (h *handover) check() error {
	def, device := &h.Wanted.Definition, h.device.path()
	l, err := h.layer.Find()
	if err != nil {
		return err
	}
	st, err := sys.StatPath(device)
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "look at", Object: device, Cause: err}
	}
	if !h.layer.IsOurs(l) || !l.LeadsOver(st.Rdev, h.Dest.Number()) || l.Suspended || l.Inactive {
		return &exit.Error{Code: exit.Other, Doing: "finish clone", Object: def.Name,
			Cause: fmt.Errorf("the device-mapper device %s is not as it was laid over %s, or somebody has suspended it", def.DM, device),
			Next:  "`dmsetup info " + def.DM + "` and `dmsetup table " + def.DM + "` show it; `ublk-clone restart " + def.Name + "` lays one that is missing, and resumes it."}
	}
	open, err := blockdev.Holders(device)
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "look for users of", Object: device, Cause: err}
	}
	own := blockdev.Mapped{Path: l.Path()}
	var others []blockdev.Holder
	for _, holder := range open {
		if !own.Is(holder) {
			others = append(others, holder)
		}
	}
	if len(others) == 0 {
		return nil
	}
	busy := holders.Busy(device, others).(*exit.Error)
	busy.Doing, busy.Next = "hand over", "They use the block device itself, which goes away: have them use "+def.LayerPath()+", or end them. Then try again."
	return busy
}

// commitComplete is 1: from here on the metadata, too, say that the destination stands alone.
func (h *handover) commitComplete(ctx context.Context) error {
	if err := h.session.committer.Save(ctx); err != nil {
		return explain.Metadata("commit to", h.Wanted.Definition.Metadata, err)
	}
	if !h.Meta.Store.Superblock().Complete {
		return explain.Metadata("commit to", h.Wanted.Definition.Metadata, errors.New("it does not say that all is hydrated"))
	}
	h.session.lastRecord()
	return nil
}

// takeBack makes the clone what it was, after an exchange that failed:
//
//	a  the layer leads to the block device, whatever table it has by now
//	b  the destination is open again, with its lock (I7)
//	c  the lanes take it, and serve
//	d  the layer goes on
//
// If somebody else has the destination and keeps it, the daemon ends as by a death, with the layer
// resumed: users wait at the block device, and recover says for whom.
func (h *handover) takeBack() {
	if err := h.layer.LeadBack(h.Dest.Number()); err != nil { // a
		guard.Fatal(err)
	}
	err := h.retakeDest() // b
	if err == nil {
		if h.Dest.Sample.Stop() {
			h.Dest.Sample.Resume(h.session.committer.Kick)
		}
		err = h.reopenGates() // c
	}
	err = errors.Join(err, h.layer.Resume()) // d
	if err != nil {
		guard.Fatal(fmt.Errorf("go back to %s: %w", h.device.path(), err))
	}
}

// retakeDest opens the destination again if it was closed.
func (h *handover) retakeDest() (err error) {
	if h.Dest.IsOpen() {
		return nil
	}
	for deadline := time.Now().Add(control.RetakeLimit); ; time.Sleep(openPause) {
		if err = h.Dest.Retake(); exit.Code(err) != exit.Busy || time.Now().After(deadline) {
			return err
		}
	}
}

// reopenGates has all lanes serve through the destination's description of now.
func (h *handover) reopenGates() error {
	dest, err := dataplane.NewFile(h.Dest.Device)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), letGoLimit)
	defer cancel()
	return h.lanes.orderAll(ctx, dataplane.Order{Dest: dest})
}

// Finish says that taking down is 6 to 10: what only an unfinished clone needs goes.
func (h *handover) Finish(keepMetadata bool) {
	h.Ending.Finished, h.Ending.KeepMetadata = true, keepMetadata
	h.Happened.Add(control.EventFinished, h.Wanted.Definition.FinishedText())
}
