package main

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
)

// background is the hydrator's thread: a loop of its own, without driver commands, that moves data for
// package hydrate through a lane of the core.
type background struct {
	*hydrate.Hydrator
	lane    *clone.Lane
	backend *backend
	ops     int         // of the lane, and so tokens of the loop
	timer   *time.Timer // runs Pump again
	pulse   pulse

	// abandon: leave although reads of the source are in flight. abandoned says that it has come to that.
	abandon   atomic.Bool
	abandoned bool // read after left is closed

	quit chan struct{} // closed: stop starting, leave when nothing is in flight
	left chan struct{} // closed when the thread has given everything back
	err  error         // why it left; read after left is closed
}

// newBackground makes the hydrator and its lane; nothing runs before start.
func newBackground(core *clone.Core, source *source, dest *sharedFile, buffers [][]byte,
	settings hydrate.Settings, event func()) *background {
	request, depth := source.takes()
	b := &background{
		backend: newBackend(source, dest, 2*len(buffers), 1),
		ops:     2 * len(buffers),
		quit:    make(chan struct{}),
		left:    make(chan struct{}),
	}
	b.lane = core.NewLane(clone.LaneConfig{
		Backend: b.backend,
		Wake:    b.wake,
		Ops:     b.ops,
		Buffers: buffers,
	})
	b.timer = time.AfterFunc(time.Hour, guard.Wrap("wake the hydrator", b.wake))
	b.timer.Stop()
	b.Hydrator = hydrate.New(hydrate.Config{
		Core: core, Lane: b.lane, Holes: source, Request: request, Depth: depth, Align: dest.unit, Batches: len(buffers),
		Now: time.Now, After: func(d time.Duration) { b.timer.Reset(d) },
		Wake: b.wake, Event: event, Settings: settings,
	})
	return b
}

func (b *background) wake() { b.backend.wake() }

// alive says whether the loop has gone round since it was called last.
func (b *background) alive() bool { return b.pulse.ask(b.wake) }

// start runs the thread and answers when it is there.
func (b *background) start(fatal func(error)) error {
	ready := make(chan error)
	go b.runThread(ready, fatal)
	return <-ready
}

// runThread is the thread. The goroutine stays locked, so that the thread ends with it.
func (b *background) runThread(ready chan<- error, fatal func(error)) {
	runtime.LockOSThread()
	defer close(b.left)
	defer guard.Guard("hydrator", fatal)
	loop, err := uring.NewLoop(b, uring.LoopOptions{Tokens: b.ops})
	if err == nil {
		b.backend.attach(loop)
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

// stop lets what is in flight end, and waits for the thread to leave. Reads of the source are not waited for longer than
// readPatience, nor at all if it is silent: they change nothing, and may never end.
func (b *background) stop() error {
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

func (b *background) patience() time.Duration {
	if b.backend.source.now.Load().silent.Load() != nil {
		return 0
	}
	return readPatience
}

// Complete is the end of a backend I/O.
func (b *background) Complete(token uint32, err error) {
	b.lane.Complete(token, b.backend.ended(token, err))
}

// Drain is called once a round.
func (b *background) Drain() {
	b.pulse.answer()
	b.backend.newRound()
	b.lane.Drain()
	b.backend.obey(b.InFlight())
	select {
	case <-b.quit:
		switch {
		case b.InFlight() == 0:
			b.backend.loop.Stop()
		case b.abandon.Load() && b.backend.abandonReads():
			b.abandoned = true
		}
	default:
		if !b.backend.gate.shut {
			b.Pump()
		}
	}
}
