package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// What the engine asks of all lanes.

// backends are those of all lanes.
func (e *Engine) backends() []*dataplane.Backend {
	all := []*dataplane.Backend{e.background.Backend}
	for _, f := range e.frontends {
		all = append(all, f.Backend)
	}
	return all
}

// watchAnswers notices that the source has fallen silent, or has answered (I15).
func (e *Engine) watchAnswers() {
	silent, again := e.source.WatchAnswers(e.backends(), time.Duration(e.settings.get().SourceTimeout)*time.Second)
	if silent != nil {
		e.log.Warn().Err(silent).Msg("the source does not answer")
	}
	if again {
		e.background.Resume()
	}
}

// stopPatience is how long a del waits for requests of users who have gone.
const stopPatience = 5 * time.Second

// atWork fails, with exit code 5, if users' requests do not end, though nobody has the device open: the kernel would not let
// go of the device before they have, and whoever has asked would not know why.
func (e *Engine) atWork() error {
	var n int64
	for deadline := time.Now().Add(stopPatience); ; time.Sleep(control.HolderPause) {
		if n = e.core.UserInFlight(); n == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			break
		}
	}
	cause := fmt.Errorf("%d requests of former users have not ended", n)
	if reads := e.source.UsersWaiting(e.backends()); reads > 0 {
		cause = fmt.Errorf("%w: %d reads of the source %s wait for its answer", cause, reads, e.start.Definition.Source)
	}
	return &exit.Error{Code: exit.Busy, Doing: "delete", Object: e.Device(), Cause: cause, Next: "The kernel keeps the device until they end. Make the source answer, or fail what waits (as `nbd-client -d` does), then try again."}
}

// orderAll has the lanes obey, and waits for all of them.
func (e *Engine) orderAll(ctx context.Context, o dataplane.Order) error {
	return dataplane.OrderAll(ctx, o, e.backends())
}

// userLanes are the queues' backends.
func (e *Engine) userLanes() (lanes []*dataplane.Backend) {
	for _, f := range e.frontends {
		lanes = append(lanes, f.Backend)
	}
	return lanes
}

// classify says what an error of I/O means to the core. What a buffered destination writes late may be reported as a want of space to anybody:
// there it says nothing about the write that gets it.
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

// Answers says whether all loops have gone round since it was called last.
func (e *Engine) Answers() bool {
	alive := e.background.Alive()
	for _, f := range e.frontends {
		alive = f.Alive() && alive
	}
	return alive
}
