package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// The layer is a device-mapper device over the block device, which `add --dm` lays: users have that open, and `finish`
// leads it to the destination while they do.
//
//	/dev/mapper/DMNAME  linear  -->  /dev/ublkbN      until finish
//	                            -->  the destination  from then on
//
// It is known as the clone's by its UUID, which has the clone's. It outlives the daemon, as the block device does. All is
// done by ioctls (sys.DM): programs such as dmsetup may lie on the clone, and could not be read while it is suspended.

// layerPrefix is what the UUID of a layer begins with; the clone's UUID follows.
const layerPrefix = "UBLK-CLONE-"

// layerPattern is what a layer may be called, up to layerNameMax bytes: what device-mapper's own program takes without escapes.
var layerPattern = regexp.MustCompile(`^[A-Za-z0-9_#+:=@.-]+$`)

const layerNameMax = 127 // DM_NAME_LEN - 1, linux/dm-ioctl.h

// mapperFolder has the links to device-mapper devices.
const mapperFolder = "/dev/mapper"

// checkLayer refuses what no layer can be called.
func (d *definition) checkLayer() error {
	if d.DM == "" || len(d.DM) <= layerNameMax && layerPattern.MatchString(d.DM) && !slices.Contains([]string{".", "..", "control"}, d.DM) {
		return nil
	}
	return usage(fmt.Sprintf("--dm %q: letters, digits and _#+:=@.- are allowed, 127 at most", d.DM))
}

// layerPath is the link to the layer, "" if the clone has none.
func (d *definition) layerPath() string {
	if d.DM == "" {
		return ""
	}
	return filepath.Join(mapperFolder, d.DM)
}

// layer is how a layer was found.
type layer struct {
	sys.DMDevice
	uuid metadata.UUID // of the clone whose layer it is; zero: of none
	to   string        // where the live table leads to, MAJOR:MINOR; "" without one, or with another than linear from 0 on
}

// path is the layer's node, which is there without udev too.
func (l *layer) path() string { return fmt.Sprintf("/dev/dm-%d", sys.Minor(l.Dev)) }

// leadsTo says whether the live table leads to the block device of that number.
func (l *layer) leadsTo(dev uint64) bool { return l.to == deviceNumber(dev) }

// isOf says whether the layer is that of a clone.
func (l *layer) isOf(mark uint64) bool { return l.uuid != metadata.UUID{} && l.uuid.Mark() == mark }

// deviceNumber is a device number as device-mapper writes it.
func deviceNumber(dev uint64) string { return fmt.Sprintf("%d:%d", sys.Major(dev), sys.Minor(dev)) }

// openMapper opens device-mapper.
func openMapper() (*sys.DM, error) {
	dm, err := sys.OpenDM()
	if err == nil {
		return dm, nil
	}
	e := &exit.Error{Code: exit.Feature, Doing: "open device-mapper", Cause: err, Next: "`modprobe dm_mod` loads it."}
	if errors.Is(err, fs.ErrPermission) {
		e.Code, e.Next = exit.Denied, "Run it as root."
	}
	return nil, e
}

// isBusy says that somebody has a device open exclusively.
func isBusy(err error) bool { return errors.Is(err, syscall.EBUSY) }

// layerError is of something that was tried with a layer.
func layerError(doing, name string, err error) error {
	if err == nil {
		return nil
	}
	return &exit.Error{Code: exit.Other, Doing: doing + " the device-mapper device", Object: name, Cause: err}
}

// findLayer looks at a device-mapper device; nil: there is none of that name.
func findLayer(dm *sys.DM, name string) (*layer, error) {
	found, err := dm.Status(name)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return nil, nil
	case err != nil:
		return nil, layerError("look at", name, err)
	}
	l := &layer{DMDevice: found, uuid: layerUUID(found.UUID)}
	if !found.Live {
		return l, nil
	}
	table, err := dm.Table(name)
	if err != nil {
		return nil, layerError("look at", name, err)
	}
	if to, begin, _ := strings.Cut(table.Params, " "); table.Target == "linear" && begin == "0" {
		l.to = to
	}
	return l, nil
}

// layerUUID is the clone's UUID in that of a layer, zero if it is none.
func layerUUID(text string) (u metadata.UUID) {
	digits, ours := strings.CutPrefix(text, layerPrefix)
	if b, err := hex.DecodeString(strings.ReplaceAll(digits, "-", "")); ours && err == nil && len(b) == len(u) {
		copy(u[:], b)
	}
	return u
}

// linear is the table of a layer over the block device of that number.
func linear(size int64, dev uint64) sys.DMTable {
	return sys.DMTable{Sectors: uint64(size / sectorSize), Target: "linear", Params: deviceNumber(dev) + " 0"}
}

// openLayer opens device-mapper and looks at the name, before anything else is touched: it is to be free, or in a recovery
// the clone's own. A table that a `finish` has loaded and not used keeps the destination open, and is given up.
func (e *cloneEngine) openLayer(context.Context) (err error) {
	def := &e.start.Definition
	if def.DM == "" {
		return nil
	}
	if e.mapper, err = openMapper(); err != nil {
		return err
	}
	l, err := findLayer(e.mapper, def.DM)
	switch {
	case err != nil || l == nil:
	case !e.start.Recover:
		err = layerExists(def.DM, l)
	case l.isOf(def.Mark) && l.Inactive:
		err = layerError("clear", def.DM, e.mapper.Clear(def.DM))
	}
	if err != nil {
		return errors.Join(err, e.closeLayer())
	}
	return nil
}

func (e *cloneEngine) closeLayer() error {
	if e.mapper == nil {
		return nil
	}
	return e.mapper.Close()
}

// layerExists is the error of a name that is taken.
func layerExists(name string, l *layer) error {
	cause := errors.New("it exists already, and is not this clone's")
	if l.uuid != (metadata.UUID{}) {
		cause = fmt.Errorf("it exists already, of clone %s, which is finished or was given up", l.uuid)
	}
	return &exit.Error{Code: exit.Exists, Doing: "lay the device-mapper device", Object: name, Cause: cause,
		Next: "Nothing was changed. Use another name for --dm, or remove it with `dmsetup remove " + name + "` if it is not needed."}
}

// layLayer makes the layer, or lets the one go on that a dead daemon has left: if it was suspended, its users have waited
// for this.
func (e *cloneEngine) layLayer(context.Context) error {
	name := e.start.Definition.DM
	if name == "" {
		return nil
	}
	l, err := findLayer(e.mapper, name)
	if err != nil {
		return err
	}
	ours := l != nil && l.isOf(e.mark())
	switch {
	case l == nil:
		if _, err := e.mapper.Create(name, layerPrefix+e.store.Superblock().UUID.String()); err != nil {
			return layerError("make", name, err)
		}
	case !ours && e.start.Recover: // the block device has users, whatever stands there by now
		e.warn("%v", layerExists(name, l))
		return nil
	case !ours:
		return layerExists(name, l)
	}
	if l == nil || !l.Live {
		err = e.loadLayer()
	}
	if err == nil {
		err = layerError("resume", name, e.mapper.Resume(name))
	}
	if err != nil && !ours {
		err = errors.Join(err, layerError("remove", name, e.mapper.Remove(name, false)))
	}
	if err != nil {
		return err
	}
	return e.linkLayer()
}

// loadLayer gives the layer an inactive table that leads to the block device.
func (e *cloneEngine) loadLayer() error {
	st, err := sys.StatPath(e.device())
	if err == nil {
		err = e.mapper.Load(e.start.Definition.DM, linear(e.geometry.Size, st.Rdev))
	}
	return layerError("load a table that leads to "+e.device()+" into", e.start.Definition.DM, err)
}

// udevLimit is how long udev may take to make a link.
const udevLimit = 2 * time.Second

// linkLayer sees to it that the layer has its name in /dev/mapper: udev's rules make that, where there are any.
func (e *cloneEngine) linkLayer() error {
	l, err := findLayer(e.mapper, e.start.Definition.DM)
	if err != nil || l == nil {
		return err
	}
	link := e.start.Definition.layerPath()
	leads := func() bool {
		st, err := sys.StatPath(link)
		return err == nil && st.IsBlock() && st.Rdev == l.Dev
	}
	if _, err := os.Stat("/run/udev/control"); err == nil {
		for deadline := time.Now().Add(udevLimit); !leads() && time.Now().Before(deadline); time.Sleep(holderPause) {
			continue
		}
	}
	if leads() {
		return nil
	}
	err = file.Remove(link)
	if err == nil {
		err = os.Symlink(linkTo(l), link)
	}
	if err != nil {
		e.warn("%s is there, and has no link: %v", l.path(), err)
	}
	return nil
}

// linkTo is what a link in /dev/mapper says.
func linkTo(l *layer) string { return "../" + filepath.Base(l.path()) }

// removeLimit is how long whoever looks at a new device, as udev does, may keep it open.
const removeLimit = 2 * time.Second

// removeLayer removes a layer that nobody has open; exit code 5 if somebody has it longer than limit. Deferred, it goes when
// all have closed it.
func removeLayer(dm *sys.DM, l *layer, deferred bool, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(holderPause) {
		err := dm.Remove(l.Name, deferred)
		if isBusy(err) && time.Now().Before(deadline) {
			continue
		}
		switch {
		case isBusy(err):
			return &exit.Error{Code: exit.Busy, Doing: "remove the device-mapper device", Object: l.Name, Cause: errors.New("somebody has it open"),
				Next: "End whoever uses it, then try again."}
		case err != nil && !errors.Is(err, syscall.ENXIO):
			return layerError("remove", l.Name, err)
		}
		return unlink(l, deferred)
	}
}

// unlink removes a link that we have made, and udev has not. If the device was not to be there any more and is, another one has
// its number.
func unlink(l *layer, mayBeThere bool) error {
	link := filepath.Join(mapperFolder, l.Name)
	to, err := os.Readlink(link)
	if err != nil || to != linkTo(l) {
		return nil
	}
	if _, err := os.Stat(link); err == nil && !mayBeThere {
		return nil
	}
	return file.Remove(link)
}

// liftLayer takes the layer away, as long as the block device is under it. With force its users get errors, and it
// goes when they have closed it.
func (e *cloneEngine) liftLayer(limit time.Duration, force bool) error {
	name := e.start.Definition.DM
	if name == "" || e.keep || e.handedOver {
		return nil
	}
	l, err := findLayer(e.mapper, name)
	if err != nil || l == nil || !l.isOf(e.mark()) {
		return err
	}
	return removeLayer(e.mapper, l, force, limit)
}

// lookAtLayer warns of a layer that is not as it should be.
func (e *cloneEngine) lookAtLayer(st *cloneStatus) {
	name := e.start.Definition.DM
	if name == "" {
		return
	}
	l, err := findLayer(e.mapper, name)
	switch {
	case err != nil:
		st.Warnings = append(st.Warnings, err.Error())
	case l == nil:
		st.Warnings = append(st.Warnings, "the device-mapper device "+name+" was removed; `ublk-clone restart "+st.Name+"` lays it again")
	case l.Suspended:
		st.Warnings = append(st.Warnings, "the device-mapper device "+name+" is suspended by somebody else: its users wait")
	}
}

// users are those who have the block device of a clone open, or the layer over it, which itself is none.
func users(device string, mark uint64) ([]blockdev.Holder, error) {
	holders, err := blockdev.Holders(device)
	if err != nil {
		return nil, err
	}
	over, err := blockdev.MappedOver(device)
	for _, m := range over {
		if l := (layer{uuid: layerUUID(m.UUID)}); !l.isOf(mark) {
			continue
		}
		holders = slices.DeleteFunc(holders, m.Is)
		above, errAbove := blockdev.Holders(m.Path)
		holders, err = append(holders, above...), errors.Join(err, errAbove)
	}
	return holders, err
}

// liftDead removes the layers of a clone whose daemon is dead: what lies over its block device, and one that got no table.
// With force from under their users, who get errors when the block device is gone.
func liftDead(def *definition, force bool) error {
	names, err := layersOf(def)
	if err != nil || len(names) == 0 {
		return err
	}
	dm, err := openMapper()
	if err != nil {
		return err
	}
	defer dm.Close()
	for _, name := range names {
		err = errors.Join(err, liftNamed(dm, def, name, force))
	}
	return err
}

// layersOf are the names that layers of a clone may have.
func layersOf(def *definition) ([]string, error) {
	var names []string
	over, err := blockdev.MappedOver(def.Device)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, m := range over {
		names = append(names, m.Name)
	}
	if def.DM != "" && !slices.Contains(names, def.DM) {
		names = append(names, def.DM)
	}
	return names, err
}

func liftNamed(mapper *sys.DM, def *definition, name string, force bool) error {
	l, err := findLayer(mapper, name)
	if err != nil || l == nil || !l.isOf(def.Mark) {
		return err
	}
	if st, err := sys.StatPath(def.Device); l.Live && (err != nil || !l.leadsTo(st.Rdev)) {
		return nil // it leads to the destination
	}
	if force && l.Suspended { // else its users would wait for ever
		err = errors.Join(mapper.Clear(name), mapper.Resume(name))
	}
	return errors.Join(err, removeLayer(mapper, l, force, removeLimit))
}
