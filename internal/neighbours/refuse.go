package neighbours

import (
	"errors"
	"fmt"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// Refuse refuses a device that a clone is started with if it shares bytes with one of another
// clone, or lies on the clone itself (I9). warn is told of what force overrides.
func Refuse(st *definition.Start, role blockdev.Role, warn func(format string, args ...any)) error {
	mine := devices(&st.Definition)[role]
	here := located([]Device{mine}, lookAround)
	if len(here) == 0 { // opening it will say why
		return nil
	}
	mine = here[0]
	if err := refuseItself(st, mine); err != nil {
		return err
	}
	if st.Replace { // the former daemon had them a moment ago
		return nil
	}
	others, err := ofOthers(control.DefaultDir(), st.Definition.Name)
	if err != nil {
		return err
	}
	for _, other := range others {
		if err := refuseOne(st, mine, other, warn); err != nil {
			return err
		}
	}
	return nil
}

func refuseOne(st *definition.Start, mine, other Device, warn func(format string, args ...any)) error {
	node := mine.Place.Shares(other.Place)
	switch {
	case node == "", mine.mayShare(other):
		return nil
	case !other.Alive && (st.Recover || mine.Role == blockdev.Source && other.Role == blockdev.Source):
		return nil // it opens nothing by itself, and will be refused
	case other.Alive && gives(control.DefaultDir(), other.Clone, mine.Clone):
		return nil
	case !other.Alive && st.Force:
		warn("clone %s, whose daemon is dead, has %s as its %s (--force)", other.Clone, other.Path, other.Role)
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
func refuseItself(st *definition.Start, mine Device) error {
	def := &st.Definition
	if !st.Recover || def.Device == "" {
		return nil
	}
	device, err := sys.StatPath(def.Device)
	if err != nil || !mine.Place.On(device.Rdev) {
		return nil
	}
	return &exit.Error{Code: exit.Refused, Doing: "open the " + mine.Role.String(), Object: mine.Path,
		Cause: errors.New("it lies on " + def.Device + ", the clone itself"), Next: "Lead the path back to where it led when the clone was added."}
}
