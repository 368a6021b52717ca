package neighbours

import (
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// Device is a device of a clone.
type Device struct {
	Clone  string
	Role   blockdev.Role
	Path   string
	shared bool // a source that several clones may use
	Alive  bool
	Place  blockdev.Place
}

// lookAround bounds what is asked of paths: one may lie on a server, or on a clone, that does not
// answer.
const lookAround = 3 * time.Second

// startLimit is how long another clone may take to start before its devices count as used.
const startLimit = 10 * time.Second

// devices are those of a definition, by role.
func devices(d *definition.Definition) []Device {
	return []Device{
		{Clone: d.Name, Role: blockdev.Source, Path: d.Source, shared: d.SourceShared},
		{Clone: d.Name, Role: blockdev.Dest, Path: d.Dest},
		{Clone: d.Name, Role: blockdev.Metadata, Path: d.Metadata},
	}
}

// ofOthers are the devices of all clones but one.
func ofOthers(d control.Dir, name string) (all []Device, err error) {
	names, err := d.Names()
	if err != nil {
		return nil, err
	}
	for _, other := range names {
		if other == name {
			continue
		}
		def, err := d.Load(other)
		if err != nil { // gone by now, or unreadable
			continue
		}
		alive := d.Alive(other)
		for _, n := range devices(def) {
			n.Alive = alive
			all = append(all, n)
		}
	}
	return located(all, lookAround), nil
}

// gives says that another clone, which starts at the same time as this one, has failed. Of two that
// want the same only the one whose name comes first waits for that, so that not both are refused.
func gives(d control.Dir, way, to string) bool {
	for deadline := time.Now().Add(startLimit); way > to; time.Sleep(control.HolderPause) {
		def, err := d.Load(way)
		if err != nil || !d.Alive(way) {
			return true
		}
		if def.Device != "" || time.Now().After(deadline) {
			return false
		}
	}
	return false
}

// located are those of which it is known where they lie, within the limit.
func located(all []Device, limit time.Duration) (known []Device) {
	found := make(chan Device, len(all))
	for _, n := range all {
		guard.Go("look for "+n.Path, func() {
			n.Place, _ = blockdev.PlaceOf(n.Path) // none: there is nothing of that name
			found <- n
		})
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for range all {
		select {
		case n := <-found:
			if n.Place != nil {
				known = append(known, n)
			}
		case <-timer.C:
			return known
		}
	}
	return known
}

// mayShare says that both only read, and say so where a device would be locked; files are not.
func (n Device) mayShare(other Device) bool {
	if n.Role != blockdev.Source || other.Role != blockdev.Source {
		return false
	}
	return n.shared && other.shared || !n.Place.IsBlock() && !other.Place.IsBlock()
}
