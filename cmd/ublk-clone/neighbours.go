package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// No two clones may have bytes in common, but for a source that both only read. A lock keeps two of them from the very same
// device; a loop device or a table of device-mapper over another clone's device has no such lock, and the devices of a clone
// whose daemon is dead have none at all. So the definitions of all others are looked at, dead ones included.

// neighbour is a device of another clone.
type neighbour struct {
	clone  string
	role   blockdev.Role
	path   string
	shared bool // a source that several clones may use
	alive  bool
	place  blockdev.Place
}

// lookAround bounds what is asked of paths: one may lie on a server, or on a clone, that does not answer.
const lookAround = 3 * time.Second

// settleLimit is how long another clone may take to start before its devices count as used.
const settleLimit = 10 * time.Second

// devices of a definition, by role.
func (d *definition) devices() []neighbour {
	return []neighbour{
		{clone: d.Name, role: blockdev.Source, path: d.Source, shared: d.SourceShared},
		{clone: d.Name, role: blockdev.Dest, path: d.Dest},
		{clone: d.Name, role: blockdev.Metadata, path: d.Metadata},
	}
}

// neighbours are the devices of all clones but one.
func (d runDir) neighbours(name string) (all []neighbour, err error) {
	names, err := d.names()
	if err != nil {
		return nil, err
	}
	for _, other := range names {
		if other == name {
			continue
		}
		def, err := d.load(other)
		if err != nil { // gone by now, or unreadable
			continue
		}
		alive := d.alive(other)
		for _, n := range def.devices() {
			n.alive = alive
			all = append(all, n)
		}
	}
	return located(all, lookAround), nil
}

// gives says that another clone, which starts at the same time as this one, has failed. Of two that want the same only the
// one whose name comes first waits for that, so that not both are refused.
func (d runDir) gives(way, to string) bool {
	for deadline := time.Now().Add(settleLimit); way > to; time.Sleep(holderPause) {
		def, err := d.load(way)
		if err != nil || !d.alive(way) {
			return true
		}
		if def.Device != "" || time.Now().After(deadline) {
			return false
		}
	}
	return false
}

// located are those of which it is known where they lie, within the limit.
func located(all []neighbour, limit time.Duration) (known []neighbour) {
	found := make(chan neighbour, len(all))
	for _, n := range all {
		guard.Go("look for "+n.path, func() {
			n.place, _ = blockdev.PlaceOf(n.path) // none: there is nothing of that name
			found <- n
		})
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for range all {
		select {
		case n := <-found:
			if n.place != nil {
				known = append(known, n)
			}
		case <-timer.C:
			return known
		}
	}
	return known
}

// refuseNeighbours refuses a device of this clone that shares bytes with one of another clone, or lies on the clone itself
// (I9).
func (e *cloneEngine) refuseNeighbours(role blockdev.Role) error {
	mine := e.start.Definition.devices()[role]
	here := located([]neighbour{mine}, lookAround)
	if len(here) == 0 { // opening it will say why
		return nil
	}
	mine = here[0]
	if err := e.refuseItself(mine); err != nil {
		return err
	}
	if e.start.Replace { // the former daemon had them a moment ago
		return nil
	}
	others, err := theRunDir().neighbours(e.start.Definition.Name)
	if err != nil {
		return err
	}
	for _, other := range others {
		if err := e.refuseNeighbour(mine, other); err != nil {
			return err
		}
	}
	return nil
}

func (e *cloneEngine) refuseNeighbour(mine, other neighbour) error {
	node := mine.place.Shares(other.place)
	switch {
	case node == "", mine.mayShare(other):
		return nil
	case !other.alive && (e.start.Recover || mine.role == blockdev.Source && other.role == blockdev.Source):
		return nil // it opens nothing by itself, and will be refused
	case other.alive && theRunDir().gives(other.clone, mine.clone):
		return nil
	case !other.alive && e.start.Force:
		e.warn("clone %s, whose daemon is dead, has %s as its %s (--force)", other.clone, other.path, other.role)
		return nil
	}
	err := &exit.Error{Code: exit.Busy, Doing: "open the " + mine.role.String(), Object: mine.path}
	err.Cause = fmt.Errorf("clone %s uses it as its %s", other.clone, other.role)
	if mine.path != other.path {
		err.Cause = fmt.Errorf("clone %s uses %s as its %s, and both lie on %s", other.clone, other.path, other.role, node)
	}
	switch {
	case mine.role == blockdev.Source && other.role == blockdev.Source:
		err.Next = "Several clones may read one source if all of them are added with --source-shared; then it is not locked, and nobody may write to it."
	case other.alive:
		err.Next = "Choose another device, or end that clone first: `ublk-clone finish " + other.clone + "` or `ublk-clone del " + other.clone + "`."
	default:
		err.Code = exit.Refused
		err.Next = "Its daemon is dead. `ublk-clone recover " + other.clone + "` brings it back, `ublk-clone del " + other.clone + "` forgets it; --force overrides."
	}
	return err
}

// mayShare says that both only read, and say so where a device would be locked; files are not.
func (n neighbour) mayShare(other neighbour) bool {
	if n.role != blockdev.Source || other.role != blockdev.Source {
		return false
	}
	return n.shared && other.shared || !n.place.IsBlock() && !other.place.IsBlock()
}

// refuseItself: what the clone needs to serve its device cannot lie on that device, which waits.
func (e *cloneEngine) refuseItself(mine neighbour) error {
	def := &e.start.Definition
	if !e.start.Recover || def.Device == "" {
		return nil
	}
	st, err := sys.StatPath(def.Device)
	if err != nil || !mine.place.On(st.Rdev) {
		return nil
	}
	return &exit.Error{Code: exit.Refused, Doing: "open the " + mine.role.String(), Object: mine.path,
		Cause: errors.New("it lies on " + def.Device + ", the clone itself"), Next: "Lead the path back to where it led when the clone was added."}
}

// tolerance of others that use the devices: see blockdev.Tolerance.
func (e *cloneEngine) tolerance() blockdev.Tolerance {
	switch {
	case e.start.Replace, e.start.Force:
		return blockdev.TolerateEveryone
	case e.start.Recover:
		return blockdev.TolerateIdle
	}
	return blockdev.TolerateNobody
}
