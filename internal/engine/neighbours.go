package engine

import (
	"errors"
	"fmt"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/neighbours"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// refuseNeighbours refuses a device of this clone that shares bytes with one of another clone, or lies on the clone itself
// (I9).
func (e *Engine) refuseNeighbours(role blockdev.Role) error {
	mine := neighbours.Devices(&e.start.Definition)[role]
	here := neighbours.Located([]neighbours.Device{mine}, neighbours.LookAround)
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
	others, err := neighbours.Of(control.DefaultDir(), e.start.Definition.Name)
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

func (e *Engine) refuseNeighbour(mine, other neighbours.Device) error {
	node := mine.Place.Shares(other.Place)
	switch {
	case node == "", mine.MayShare(other):
		return nil
	case !other.Alive && (e.start.Recover || mine.Role == blockdev.Source && other.Role == blockdev.Source):
		return nil // it opens nothing by itself, and will be refused
	case other.Alive && neighbours.Gives(control.DefaultDir(), other.Clone, mine.Clone):
		return nil
	case !other.Alive && e.start.Force:
		e.Warn("clone %s, whose daemon is dead, has %s as its %s (--force)", other.Clone, other.Path, other.Role)
		return nil
	}
	err := &exit.Error{Code: exit.Busy, Doing: "open the " + mine.Role.String(), Object: mine.Path}
	err.Cause = fmt.Errorf("clone %s uses it as its %s", other.Clone, other.Role)
	if mine.Path != other.Path {
		err.Cause = fmt.Errorf("clone %s uses %s as its %s, and both lie on %s", other.Clone, other.Path, other.Role, node)
	}
	switch {
	case mine.Role == blockdev.Source && other.Role == blockdev.Source:
		err.Next = "Several clones may read one source if all of them are added with --source-shared; then it is not locked, and nobody may write to it."
	case other.Alive:
		err.Next = "Choose another device, or end that clone first: `ublk-clone finish " + other.Clone + "` or `ublk-clone del " + other.Clone + "`."
	default:
		err.Code = exit.Refused
		err.Next = "Its daemon is dead. `ublk-clone recover " + other.Clone + "` brings it back, `ublk-clone del " + other.Clone + "` forgets it; --force overrides."
	}
	return err
}

// refuseItself: what the clone needs to serve its device cannot lie on that device, which waits.
func (e *Engine) refuseItself(mine neighbours.Device) error {
	def := &e.start.Definition
	if !e.start.Recover || def.Device == "" {
		return nil
	}
	st, err := sys.StatPath(def.Device)
	if err != nil || !mine.Place.On(st.Rdev) {
		return nil
	}
	return &exit.Error{Code: exit.Refused, Doing: "open the " + mine.Role.String(), Object: mine.Path,
		Cause: errors.New("it lies on " + def.Device + ", the clone itself"), Next: "Lead the path back to where it led when the clone was added."}
}

// tolerance of others that use the devices: see blockdev.Tolerance.
func (e *Engine) tolerance() blockdev.Tolerance {
	switch {
	case e.start.Replace, e.start.Force:
		return blockdev.TolerateEveryone
	case e.start.Recover:
		return blockdev.TolerateIdle
	}
	return blockdev.TolerateNobody
}
