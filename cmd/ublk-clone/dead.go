package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// What a dead daemon has left: a block device whose users wait, or nothing. The device is known as the clone's
// by the mark that the driver keeps; one that bears another is somebody else's, and never touched.

// Limits of what the driver is asked: lookLimit for a command that only tells, deadLimit to delete a device
// without server.
const (
	lookLimit = 2 * time.Second
	deadLimit = 10 * time.Second
)

// errNoRemains: the dead daemon has left no device, or there is another's in its place.
var errNoRemains = errors.New("its block device is gone")

// remains is the block device of a dead daemon.
type remains struct {
	control *ublk.Control
	info    ublk.Info
}

// findRemains looks for the device that a dead daemon has left. It opens no device but the driver's own, so that
// it does not wait for the daemon that is not there.
func findRemains(def *definition) (*remains, error) {
	if def.Mark == 0 {
		return nil, errNoRemains // it never had one
	}
	control, err := ublk.OpenControl()
	if errors.Is(err, ublk.ErrNoDriver) {
		return nil, errNoRemains
	}
	if err != nil {
		return nil, driverError("open the ublk driver", err)
	}
	r := &remains{control: control}
	if err := r.find(def); err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return r, nil
}

// orphans are the devices of dead daemons that no definition knows of any more, and that bear the mark of a live map:
// those whose users wait, and those that were never started. None is recoverable by name.
func (d runDir) orphans() (all []definition, err error) {
	uuids, err := livemap.List(livemap.Folder)
	if err != nil || len(uuids) == 0 {
		return nil, err
	}
	err = d.ourDevices(func(_ *ublk.Control, info ublk.Info) error {
		waits := info.State == ublk.StateQuiesced || info.State == ublk.StateFailIO
		defined, err := d.definedMarks()
		if path := ublk.BlockPath(info.ID); err == nil && (waits || unstarted(info)) && !slices.Contains(defined, info.Private) {
			all = append(all, definition{Name: path, Device: path, Mark: info.Private})
		}
		return err
	})
	return all, err
}

// find looks at the number that the definition has. A daemon that was killed before it had written that left its mark.
func (r *remains) find(def *definition) error {
	if id, err := def.deviceID(); err == nil {
		return r.look(id, def.Mark)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
	defer cancel()
	infos, err := r.control.ListDevices(ctx)
	if i := slices.IndexFunc(infos, func(info ublk.Info) bool { return info.Private == def.Mark }); i >= 0 {
		r.info = infos[i]
		return nil
	}
	if err != nil {
		return driverError("list the ublk devices", err)
	}
	return errNoRemains
}

// path is the block device's.
func (r *remains) path() string { return ublk.BlockPath(r.info.ID) }

func (r *remains) look(id int, mark uint64) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
	defer cancel()
	r.info, err = r.control.GetDevInfo(ctx, id)
	switch {
	case errors.Is(err, syscall.ENODEV), err == nil && r.info.Private != mark:
		return errNoRemains
	case err != nil:
		return driverError("examine "+ublk.BlockPath(id), err)
	}
	return nil
}

// holders are those who have the device open. To find them takes a look at every process.
func (r *remains) holders() ([]blockdev.Holder, error) {
	holders, err := users(r.path(), r.info.Private)
	if errors.Is(err, syscall.ENOENT) { // stopped, and not deleted yet
		err = nil
	}
	return holders, err
}

// stopUnused stops the device, if nobody uses it.
func (r *remains) stopUnused() error {
	ctx, cancel := context.WithTimeout(context.Background(), deadLimit)
	defer cancel()
	if r.info.State == ublk.StateDead {
		return nil // stopped before
	}
	err := stopUnused(ctx, r.control, r.info.ID, nil)
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

// remove deletes the device. Whoever has it open keeps its number in use, and need not be waited for: all he
// gets is errors.
func (r *remains) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), deadLimit)
	defer cancel()
	err := errors.Join(r.control.StopDev(ctx, r.info.ID), r.control.DelDevAsync(ctx, r.info.ID))
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return driverError("delete "+r.path(), err)
}

// clearing is how what a dead daemon has left is removed.
type clearing struct {
	force bool          // from under its users
	wait  time.Duration // at most, for them to close it
}

var forceDead = clearing{force: true}

// removeDead deletes the block device that a dead daemon has left, if there is one; exit code 5 names its users.
func removeDead(def *definition, c clearing) error {
	for deadline := time.Now().Add(c.wait); ; time.Sleep(holderPause) {
		err := tryRemoveDead(def, c.force)
		if exit.Code(err) != exit.Busy || !time.Now().Before(deadline) {
			return err
		}
	}
}

func tryRemoveDead(def *definition, force bool) error {
	r, err := findRemains(def)
	if errors.Is(err, errNoRemains) {
		return liftDead(def, force)
	}
	if err != nil {
		return err
	}
	if !force {
		err = r.unused(def)
	}
	if err == nil {
		err = liftDead(def, force)
	}
	if err == nil && !force {
		err = r.stopUnused()
	}
	if err == nil {
		err = r.remove()
	}
	return errors.Join(err, r.control.Close())
}

// unused fails with exit code 5 if somebody can be seen who uses the device.
func (r *remains) unused(def *definition) error {
	users, err := r.holders()
	if err == nil && len(users) > 0 {
		err = heldError(r.path(), users)
		err.(*exit.Error).Next = "Its daemon is dead, they wait: `ublk-clone recover " + def.Name + "` lets them go on; --force gives them errors."
	}
	return err
}

// clearDead removes what a dead daemon has left, its block device first.
func (l leftovers) clearDead(def *definition, c clearing) error {
	if done, err := l.finishDead(def, true); done || err != nil {
		return err
	}
	lock, err := l.dir.acquire(def.Name)
	if err != nil {
		return err
	}
	if err := removeDead(def, c); err != nil {
		return errors.Join(err, lock.release())
	}
	return errors.Join(l.dir.forget(def), lock.release())
}

// forget removes what the daemon of a clone has left in the folder, the definition last.
func (d runDir) forget(def *definition) error {
	err := d.forgetUdev(def)
	trial := d.trial(def.Name)
	for _, path := range []string{
		d.socket(def.Name), d.log(def.Name), trial + ".new", trial, d.definition(def.Name) + ".new", d.definition(def.Name),
	} {
		err = errors.Join(err, file.Remove(path))
	}
	return err
}

// silent is the status of a clone whose daemon does not answer, with err.
func (l leftovers) silent(name string, err error) cloneStatus {
	st := cloneStatus{Name: name, State: stateSilent, Reason: err.Error() + ".", Action: exit.Next(err), BadRanges: []badRange{}, Queues: []queueStatus{}}
	def, loadErr := l.dir.load(name)
	if loadErr != nil {
		return st
	}
	st.DMName, st.DMDevice = def.DM, def.layerPath()
	st.Device, st.Source, st.Dest, st.Metadata, st.Size, st.RegionSize = def.Device, def.Source, def.Dest, def.Metadata, def.Size, def.RegionSize
	if !l.dir.alive(name) {
		st.State = stateDead
		l.examine(&st, def)
	}
	return st
}

// examine says what a dead daemon has left and what to do.
func (l leftovers) examine(st *cloneStatus, def *definition) {
	if _, yes, err := def.switched(); yes && err == nil {
		st.Reason = "Its daemon died in a finish, when there was nothing to serve any more: " + def.finishedText() + "."
		st.Action = "`ublk-clone finish " + def.Name + "` does the rest."
		return
	}
	r, err := findRemains(def)
	if err == nil && r.info.State == ublk.StateDead { // nobody can have it open
		err = errors.Join(errNoRemains, r.control.Close())
	}
	switch {
	case errors.Is(err, errNoRemains):
		st.Reason = "Its daemon is dead, and has left no block device. What was acknowledged is not lost."
		st.Action = "The same `ublk-clone add` goes on where it was; `ublk-clone del " + def.Name + "` forgets it."
		return
	case err != nil:
		st.Reason = "Its daemon is dead; what it has left cannot be told: " + err.Error() + "."
		return
	}
	st.Holders, err = r.holders()
	err = errors.Join(err, r.control.Close())
	st.Reason = fmt.Sprintf("Its daemon is dead. %s waits for the next one, %s. What was acknowledged is not lost.", r.path(), heldText(st.Holders))
	st.Action = "`ublk-clone recover " + def.Name + "` brings it back; " + l.dir.log(def.Name) + " says how the daemon ended."
	if err != nil {
		st.Warnings = append(st.Warnings, err.Error())
	}
}

// heldText says who waits.
func heldText(holders []blockdev.Holder) string {
	if len(holders) == 0 {
		return "nobody has it open"
	}
	var names []string
	for _, h := range holders {
		names = append(names, h.String())
	}
	return "so " + waiting(len(holders)) + ": " + strings.Join(names, ", ")
}

func waiting(users int) string {
	if users == 1 {
		return "does 1 user"
	}
	return fmt.Sprintf("do %d users", users)
}
