package daemon

import (
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/process"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// prepare makes the process one that memory reclaim does not wait for in a circle. Its memory is
// locked later, when there is most of it.
func (d *daemon) prepare() error {
	process.SmallHeap()
	process.GiveProcessors(d.start.Definition.Queues)
	if err := sys.DieQuickly(); err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the process", Cause: err}
	}
	if err := sys.NoHugePages(); err != nil {
		d.log.Warn().Err(err).Msg("the kernel may keep requests waiting while it rearranges the daemon's memory")
	}
	if err := sys.SetIOFlusher(); err != nil {
		d.log.Warn().Err(err).Msg("the kernel may wait for this daemon while it frees memory for it")
	}
	// Whoever waits for the device waits for the daemon; killing it frees what is little and
	// bounded.
	if err := sys.SpareFromOOM(); err != nil {
		d.log.Warn().Err(err).Msg("the kernel may kill this daemon when memory runs out")
	}
	return nil
}
