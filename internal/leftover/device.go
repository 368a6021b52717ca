package leftover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/dm"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/holders"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/udev"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// What a dead daemon has left: a block device whose users wait, or nothing. The device is known as
// the clone's by the cookie that the driver keeps; one that bears another is somebody else's, and
// never touched.

// ErrNone: the dead daemon has left no device, or there is another's in its place.
var ErrNone = errors.New("its block device is gone")

// Device is the block device of a dead daemon.
type Device struct {
	Control *ublk.Control
	Info    ublk.Info
}

// Find looks for the device that a dead daemon has left. It opens no device but the driver's own,
// so that it does not wait for the daemon that is not there.
func Find(def *definition.Definition) (*Device, error) {
	if def.Cookie == 0 {
		return nil, ErrNone // it never had one
	}
	control, err := ublk.OpenControl()
	if errors.Is(err, ublk.ErrNoDriver) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, explain.Driver("open the ublk driver", err)
	}
	r := &Device{Control: control}
	if err := r.Find(def); err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return r, nil
}

// Orphans are the devices of dead daemons that no definition knows of any more, and that bear the
// cookie of a live map: those whose users wait, and those that were never started. None is
// recoverable by name.
func Orphans(d control.Dir) (all []definition.Definition, err error) {
	uuids, err := livemap.List(livemap.Dir)
	if err != nil || len(uuids) == 0 {
		return nil, err
	}
	err = ourDevices(d, func(_ *ublk.Control, info ublk.Info) error {
		waits := info.State == ublk.StateQuiesced || info.State == ublk.StateFailIO
		defined, err := definedCookies(d)
		if path := ublk.BlockPath(info.ID); err == nil && (waits || unstarted(info)) && !slices.Contains(defined, info.Private) {
			all = append(all, definition.Definition{Name: path, Added: definition.Added{Device: path, Cookie: info.Private}})
		}
		return err
	})
	return all, err
}

// Find looks at the number that the definition has. A daemon that was killed before it had written
// that left its cookie.
func (r *Device) Find(def *definition.Definition) error {
	if id, err := def.DeviceID(); err == nil {
		return r.look(id, def.Cookie)
	}
	ctx, cancel := context.WithTimeout(context.Background(), control.LookLimit)
	defer cancel()
	infos, err := r.Control.ListDevices(ctx)
	if i := slices.IndexFunc(infos, func(info ublk.Info) bool { return info.Private == def.Cookie }); i >= 0 {
		r.Info = infos[i]
		return nil
	}
	if err != nil {
		return explain.Driver("list the ublk devices", err)
	}
	return ErrNone
}

// path is the block device's.
func (r *Device) path() string { return ublk.BlockPath(r.Info.ID) }

func (r *Device) look(id int, cookie uint64) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), control.LookLimit)
	defer cancel()
	r.Info, err = r.Control.GetDevInfo(ctx, id)
	switch {
	case errors.Is(err, syscall.ENODEV), err == nil && r.Info.Private != cookie:
		return ErrNone
	case err != nil:
		return explain.Driver("examine "+ublk.BlockPath(id), err)
	}
	return nil
}

// holders are those who have the device open. To find them takes a look at every process.
func (r *Device) holders() ([]blockdev.Holder, error) {
	holders, err := holders.Of(r.path(), r.Info.Private)
	if errors.Is(err, syscall.ENOENT) { // stopped, and not deleted yet
		err = nil
	}
	return holders, err
}

// stopUnused stops the device, if nobody uses it.
func (r *Device) stopUnused() error {
	ctx, cancel := context.WithTimeout(context.Background(), control.DeadLimit)
	defer cancel()
	if r.Info.State == ublk.StateDead {
		return nil // stopped before
	}
	err := holders.StopUnused(ctx, r.Control, r.Info.ID, nil)
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

// remove deletes the device. Whoever has it open keeps its number in use, and need not be waited
// for: all he gets is errors.
func (r *Device) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), control.DeadLimit)
	defer cancel()
	err := errors.Join(r.Control.StopDev(ctx, r.Info.ID), r.Control.DelDevAsync(ctx, r.Info.ID))
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return explain.Driver("delete "+r.path(), err)
}

// How is how what a dead daemon has left is removed.
type How struct {
	Force bool          // from under its users
	Wait  time.Duration // at most, for them to close it
}

var Force = How{Force: true}

// RemoveDevice deletes the block device that a dead daemon has left, if there is one; exit code 5
// names its users.
func RemoveDevice(def *definition.Definition, c How) error {
	for deadline := time.Now().Add(c.Wait); ; time.Sleep(control.HolderPause) {
		err := tryRemoveDead(def, c.Force)
		if exit.Code(err) != exit.Busy || !time.Now().Before(deadline) {
			return err
		}
	}
}

func tryRemoveDead(def *definition.Definition, force bool) error {
	layers, err := layersOf(def)
	if err != nil {
		return err
	}
	r, err := Find(def)
	switch {
	case errors.Is(err, ErrNone):
		err = liftDead(def, layers, force)
	case err == nil:
		err = errors.Join(r.tryRemove(def, layers, force), r.Control.Close())
	}
	if err == nil && force {
		err = cutDead(def, layers)
	}
	if err == nil {
		err = dm.NewUnder(def).Remove()
	}
	return err
}

func (r *Device) tryRemove(def *definition.Definition, layers []string, force bool) (err error) {
	if !force {
		err = r.unused(def)
	}
	if err == nil {
		err = liftDead(def, layers, force)
	}
	if err == nil && !force {
		err = r.stopUnused()
	}
	if err == nil {
		err = r.remove()
	}
	return err
}

// unused fails with exit code 5 if somebody can be seen who uses the device.
func (r *Device) unused(def *definition.Definition) error {
	users, err := r.holders()
	if err == nil && len(users) > 0 {
		err = holders.Busy(r.path(), users)
		err.(*exit.Error).Next = "Its daemon is dead, so they wait: `ublk-clone recover " + def.Name + "` lets them go on; --force gives them errors."
	}
	return err
}

// ClearDead removes what a dead daemon has left, its block device first.
func (l Dirs) ClearDead(def *definition.Definition, c How) error {
	if done, err := l.FinishDead(def, true); done || err != nil {
		return err
	}
	lock, err := l.Dir.Acquire(def.Name)
	if err != nil {
		return err
	}
	if err := RemoveDevice(def, c); err != nil {
		return errors.Join(err, lock.Release())
	}
	return errors.Join(RemoveBegun(def), forget(l.Dir, def), lock.Release())
}

// forget removes what the daemon of a clone has left in the directory, the definition last.
func forget(d control.Dir, def *definition.Definition) error {
	return errors.Join(file.Remove(d.SocketPath(def.Name)), file.Remove(d.LogPath(def.Name)), Undefine(d, def))
}

// Undefine removes the definition of a clone that has ended, and before it what nobody looks for
// without one: what udev was told, also by daemons before that were killed, the name in
// /dev/ublk-clone, and what a killed successor has tried (TrialPath). The caller has the lock of the name.
func Undefine(d control.Dir, def *definition.Definition) error {
	return errors.Join(udev.Forget(d, def), takeName(d, def), file.Discard(d.TrialPath(def.Name)), file.Discard(d.DefinitionPath(def.Name)))
}

// takeName removes the name of a clone in /dev/ublk-clone. Clones of another directory than that of this
// machine, as tests have them, have no name there.
func takeName(d control.Dir, def *definition.Definition) error {
	if d != control.DefaultDir() {
		return nil
	}
	return udev.DevLinks().Take(def)
}

// Silent is the status of a clone whose daemon does not answer, with err.
func (l Dirs) Silent(name string, err error) control.Status {
	st := control.Status{
		Identity:  control.Identity{Name: name},
		Condition: control.Condition{State: control.StateSilent, Reason: err.Error() + ".", Action: exit.Next(err)},
		Progress:  control.Progress{BadRanges: []control.BadRange{}},
		Queues:    []control.QueueStatus{},
	}
	def, loadErr := l.Dir.Load(name)
	if loadErr != nil {
		return st
	}
	st.DMName, st.DMDevice, st.Path = def.DM, def.LayerPath(), udev.DevLinks().Now(name)
	st.Device, st.Source, st.Dest, st.Metadata, st.Size, st.RegionSize = def.Device, def.Source, def.Dest, def.Metadata, def.Size, def.RegionSize
	if !l.Dir.Alive(name) {
		st.State = control.StateDead
		l.explainDead(&st, def)
	}
	return st
}

// explainDead says what a dead daemon has left and what to do.
func (l Dirs) explainDead(st *control.Status, def *definition.Definition) {
	if yes, err := Finished(def); yes && err == nil {
		st.Reason = "Its daemon died during a finish, when nothing was left to serve: " + def.FinishedText() + "."
		st.Action = "`ublk-clone finish " + def.Name + "` does the rest."
		return
	}
	r, err := Find(def)
	if err == nil && r.Info.State == ublk.StateDead { // nobody can have it open
		err = errors.Join(ErrNone, r.Control.Close())
	}
	switch {
	case errors.Is(err, ErrNone):
		st.Reason = "Its daemon is dead, and left no block device. What was acknowledged is not lost."
		st.Action = "The same `ublk-clone add` goes on where it was; `ublk-clone del " + def.Name + "` forgets it."
		return
	case err != nil:
		st.Reason = "Its daemon is dead, and what it left behind could not be determined: " + err.Error() + "."
		return
	}
	st.Holders, err = r.holders()
	err = errors.Join(err, r.Control.Close())
	st.Reason = fmt.Sprintf("Its daemon is dead. %s waits for the next one, %s. What was acknowledged is not lost.", r.path(), heldText(st.Holders))
	st.Action = "`ublk-clone recover " + def.Name + "` brings it back; " + l.Dir.LogPath(def.Name) + " says how the daemon ended."
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

// Recoverable looks whether a dead daemon has left a device that waits for the next one.
func Recoverable(def *definition.Definition) error {
	r, err := Find(def)
	if err != nil {
		return err
	}
	if r.Info.State == ublk.StateDead { // stopped, and only not deleted
		err = ErrNone
	}
	return errors.Join(err, r.Control.Close())
}
