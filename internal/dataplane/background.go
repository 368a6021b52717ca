package dataplane

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
)

// Background is the hydrator's thread: a loop of its own, without driver commands, that moves data
// for package hydrate through a lane of the core.
type Background struct {
	*hydrate.Hydrator
	lane    *clone.Lane
	Backend *Backend
	ops     int         // of the lane, and so tokens of the loop
	timer   *time.Timer // runs Pump again
	pulse   pulse

	// abandon: leave although reads of the source are in flight. abandoned says that it has come to
	// that.
	abandon   atomic.Bool
	Abandoned bool // read after left is closed

	quit chan struct{} // closed: stop starting, leave when nothing is in flight
	left chan struct{} // closed when the thread has given everything back
	err  error         // why it left; read after left is closed
}

// NewBackground makes the hydrator and its lane; nothing runs before start.
func NewBackground(core *clone.Core, source *Source, dest *File, buffers copybuffers.Config,
	settings hydrate.Settings, event func()) *Background {
	request, depth := source.takes()
	b := &Background{
		Backend: NewBackend(source, dest, 2*buffers.Most, 1),
		ops:     2 * buffers.Most,
		quit:    make(chan struct{}),
		left:    make(chan struct{}),
	}
	b.lane = core.NewLane(clone.LaneConfig{
		Backend: b.Backend,
		Wake:    b.wake,
		Ops:     b.ops,
		Buffers: buffers,
	})
	b.timer = time.AfterFunc(time.Hour, guard.Wrap("wake the hydrator", b.wake))
	b.timer.Stop()
	b.Hydrator = hydrate.New(hydrate.Config{
		Core: core, Lane: b.lane, Holes: source, Request: request, Depth: depth, Align: dest.Unit, Batches: buffers.Most,
		Now: time.Now, After: func(d time.Duration) { b.timer.Reset(d) },
		Wake: b.wake, Event: event, Settings: settings,
	})
	return b
}

func (b *Background) wake() { b.Backend.Wake() }

// Alive says whether the loop has gone round since it was called last.
func (b *Background) Alive() bool { return b.pulse.ask(b.wake) }

// Start runs the thread and answers when it is there.
func (b *Background) Start(fatal func(error)) error {
	ready := make(chan error)
	go b.runThread(ready, fatal)
	return <-ready
}

// runThread is the thread. The goroutine stays locked, so that the thread ends with it.
func (b *Background) runThread(ready chan<- error, fatal func(error)) {
	runtime.LockOSThread()
	defer close(b.left)
	defer guard.Guard("hydrator", fatal)
	loop, err := uring.NewLoop(b, uring.LoopOptions{Tokens: b.ops})
	if err == nil {
		b.Backend.Attach(loop)
	}
	ready <- err
	if err != nil {
		return
	}
	loop.Wake() // the first Pump
	if err := loop.Run(); err != nil {
		fatal(err)
		b.err = err
		return
	}
	b.err = loop.Close()
}

// Stop lets what is in flight end, and waits for the thread to leave. Reads of the source are not
// waited for longer than readPatience, nor at all if it is silent: they change nothing, and may
// never end.
func (b *Background) Stop() error {
	close(b.quit)
	b.wake()
	select {
	case <-b.left:
	case <-time.After(b.patience()):
		b.abandon.Store(true)
		b.wake()
		<-b.left
	}
	b.timer.Stop()
	return b.err
}

// readPatience is as long as a batch takes on a line of 100 KiB/s.
const readPatience = 10 * time.Second

func (b *Background) patience() time.Duration {
	if b.Backend.source.Now.Load().silent.Load() != nil {
		return 0
	}
	return readPatience
}

// EndIO is the end of a backend I/O.
func (b *Background) EndIO(token uint32, err error) {
	b.lane.EndIO(token, b.Backend.Ended(token, err))
}

// Drain is called once a round.
func (b *Background) Drain() {
	b.pulse.answer()
	b.Backend.NewRound()
	b.lane.Drain()
	b.Backend.obey(b.InFlight())
	select {
	case <-b.quit:
		switch {
		case b.InFlight() == 0:
			b.Backend.loop.Stop()
		case b.abandon.Load() && b.Backend.abandonReads():
			b.Abandoned = true
		}
	default:
		if !b.Backend.gate.shut {
			b.Pump()
		}
	}
}
