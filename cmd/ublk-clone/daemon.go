package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/file"
	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// engine is the clone that a daemon runs, as the rest of the daemon sees it.
type engine interface {
	// opens open the clone's devices and take them back. When they are done mark is known.
	opens() []step
	// mark is what the driver is to keep of the clone, to know its block device by.
	mark() uint64
	// steps bring the clone up from there to a usable block device, and take it down.
	steps() []step
	// top is what lies over the block device: a dead daemon's is found by the definition, which is complete by then.
	top() []step
	// device is the path of the block device, once the steps are done.
	device() string
	// note adds to the definition what the daemon knows by then.
	note(*definition)
	// tryStop makes the device go away unless somebody has it open: then it fails
	// with exit code 5. On a driver that cannot tell it stops the device; holders
	// have been looked for before.
	// With force it goes whoever has it open.
	tryStop(ctx context.Context, force bool) error
	// status fills in all but name, process and definition.
	status(*cloneStatus)
	// configure changes settings, all or none, and makes them last.
	configure(context.Context, change) error
	// events are what has happened to the clone.
	events() *eventLog
	// repair ends mode ro, if the metadata can be written again.
	repair(context.Context) error
	// retry takes a source back that was away, forgets what failed and tries again; with an error nothing has
	// changed.
	retry(context.Context) error
	// finishable refuses a clone that its destination cannot stand in for.
	finishable() error
	// handOver leads what lies over the block device to the destination. With an error all is as it was.
	handOver(ctx context.Context, limit time.Duration) error
	// finish makes what follows, which takes the clone down, final.
	finish(keepMetadata bool)
	// drain brings requests and copies to rest, so that the daemon can leave at once. With an error the clone goes on; goOn
	// has it do so after a drain that has succeeded.
	drain(limit time.Duration) error
	goOn()
	// keepDevice says whether taking down leaves the block device, its users waiting.
	keepDevice(bool)
	// mayReplace fails if the steps would, as far as that can be seen while the daemon that is to be replaced serves.
	mayReplace(runDir) error
	// warmUp does in advance what the steps can do faster then: while the daemon that is to be replaced still serves.
	warmUp() error
	// warn notes what the user should know of the start.
	warn(format string, args ...any)
	// farewell is what whoever ends the clone should know, when the steps are taken back.
	farewell() []string
	// answers says whether all loops have gone round since it was called last.
	answers() bool
	// waits is what the steps wait for now, nil for nothing. Any goroutine may ask.
	waits() error
}

// daemon is the process of one clone. Goroutines: the one of run, which starts,
// waits for signals and stop requests, and stops; one per control connection;
// and the engine's.
type daemon struct {
	dir    runDir
	start  start
	engine engine
	log    zerolog.Logger

	lock   *nameLock
	server *server
	done   steps
	stops  chan stopRequest
	// stopping is taken by the one stop request that may wait.
	stopping chan struct{}
	manager  *service // nil: none
	stay     bool     // SIGTERM is not obeyed: the machine goes down, and the device is in use
	logged   bool     // standard error is the log that the name has
	foundLog bool     // a dead daemon has left it, and this one is not up yet
	keep     bool     // taking down leaves the block device, and the definition for who recovers it

	// changing has a place for each request that changes something, and changes counts them: the engine is taken
	// down when none is left.
	changing chan struct{}
	changes  sync.WaitGroup

	// mu is held, for reading, while a status is made, which waits for nothing.
	mu struct {
		sync.RWMutex
		phase phase
		// serving ends with phaseUp, by endServing: so do the changes under way.
		serving    context.Context
		endServing context.CancelCauseFunc
	}
}

func newDaemon(dir runDir, st start, e engine, log zerolog.Logger) *daemon {
	return &daemon{
		dir: dir, start: st, engine: e, log: log, stops: make(chan stopRequest), stopping: make(chan struct{}, 1),
		changing: make(chan struct{}, maxChanges), keep: st.Recover,
	}
}

// list is the start-up in order:
//
//	1    lock the name: one daemon for each. One that is to be replaced leaves first
//	2    remove the block device that a dead daemon of that name has left; if it is to be recovered, see that it
//	     is still the clone that was meant
//	3    write the definition
//	4    control socket, which tells how far the start is
//	5..  the engine's: its devices
//	     write the mark of the block device into the definition, before there is one: whoever finds the daemon dead
//	     knows by it what is left
//	     the engine's: region map, core, block device
//	     complete the definition, for whoever finds the daemon dead
//	     what lies over the block device
//	last serve all control requests
//
// A stop takes them back in reverse.
func (d *daemon) list() []step {
	def := &d.start.Definition
	list := []step{
		{
			name: "lock the name",
			do: func(context.Context) error {
				err := d.takeName()
				if err == nil {
					d.ownLog()
				}
				return err
			},
			undo: func() error { return errors.Join(d.forgetLog(), d.lock.release()) },
		},
		{name: "clear up after a dead daemon", do: func(context.Context) error { return d.clearUp(def.Name) }},
		{
			name: "write the definition",
			do:   func(context.Context) error { return d.storeAgain(def) },
			undo: func() error {
				if d.keep {
					return nil
				}
				return file.Remove(d.dir.definition(def.Name))
			},
		},
	}
	list = append(list, step{
		name: "open the control socket",
		do: func(context.Context) (err error) {
			d.server, err = listen(d.dir.socket(def.Name), d.log, d.answer)
			if err == nil {
				guard.Go("control", d.server.serve)
			}
			return err
		},
		undo: func() error { return d.server.listener.Close() },
	})
	list = append(list, d.engine.opens()...)
	list = append(list, step{name: "write the mark", do: func(context.Context) error { return d.writeMark() }})
	list = append(list, d.engine.steps()...)
	list = append(list, step{
		name: "complete the definition",
		do: func(context.Context) error {
			whole := *def
			d.engine.note(&whole)
			whole.Unit = d.manager.name()
			err := d.storeAgain(&whole)
			d.mu.Lock()
			defer d.mu.Unlock()
			*def = whole
			return err
		},
	})
	list = append(list, d.engine.top()...)
	return append(list,
		step{
			name: "serve control requests",
			do:   func(context.Context) error { d.enter(phaseUp); return nil },
			undo: func() error { d.enter(phaseStopping); return nil },
		})
}

// writeMark leaves a definition as it is that has a block device: in a recovery the metadata may turn out not to be those of
// the clone, and the device must still be found.
func (d *daemon) writeMark() error {
	whole := d.start.Definition
	if d.start.Recover || whole.Mark == d.engine.mark() {
		return nil
	}
	whole.Mark = d.engine.mark()
	err := d.storeAgain(&whole)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.start.Definition = whole
	return err
}

// storeAgain writes the definition. A recovery finds one that is nearly the same, and is not kept from serving by a full
// folder.
func (d *daemon) storeAgain(def *definition) error {
	err := d.dir.store(def)
	if err != nil && d.start.Recover {
		d.engine.warn("the definition stays as it was: %v", err)
		err = nil
	}
	return err
}

// enter begins a phase. Behind phaseUp it waits for the changes under way, which it has ended.
func (d *daemon) enter(p phase) {
	d.mu.Lock()
	if !d.mu.phase.leadsTo(p) {
		d.log.Error().Uint8("from", uint8(d.mu.phase)).Uint8("to", uint8(p)).Msg("a phase that cannot follow")
	}
	d.mu.phase = p
	if d.mu.endServing != nil {
		d.mu.endServing(d.notUp())
	}
	if p == phaseUp {
		d.mu.serving, d.mu.endServing = context.WithCancelCause(context.Background())
	}
	d.mu.Unlock()
	if p != phaseUp {
		d.changes.Wait()
	}
}

// clearUp holds the name's lock: whoever wrote a definition that is there is dead.
func (d *daemon) clearUp(name string) error {
	if d.start.Recover {
		return d.stillDefined()
	}
	old, err := d.dir.load(name)
	if exit.Code(err) == exit.NoClone {
		return nil
	}
	if err != nil {
		return err
	}
	return removeDead(old, forceDead)
}

// run is the daemon's life. ready is told of the outcome of the start.
func (d *daemon) run(ready func(device string, err error)) error {
	defer guard.Guard("daemon", guard.Fatal)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)

	up, ended := make(chan struct{}), make(chan struct{})
	defer close(ended)
	if d.manager != nil {
		guard.Go("status line", func() { d.manager.follow(d, up, ended) })
	}
	err := d.bringUp(signals)
	ready(d.engine.device(), err)
	if err != nil {
		return err
	}
	d.log.Info().Str("device", d.engine.device()).Msg("clone is up")
	d.keepDevice(false)
	d.foundLog = false
	if d.manager != nil {
		close(up)
		guard.Go("watchdog", func() { d.manager.feed(d.engine.answers, ended) })
	}
	return d.live(signals)
}

// bringUp does the steps; a signal ends it between two of them.
func (d *daemon) bringUp(signals <-chan os.Signal) error {
	if err := d.prepare(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	guard.Go("signals", func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	})
	return d.done.run(ctx, d.list())
}

// answer serves one control request, on the connection's goroutine.
func (d *daemon) answer(ctx context.Context, req request) answer {
	switch req.Verb {
	case verbStop, verbLeave, verbStay, verbFinish, verbFinishable:
		return d.answerStop(ctx, req)
	case verbEvents:
		return d.engine.events().answer(ctx, req.After, time.Duration(req.WaitMS)*time.Millisecond)
	case verbStatus:
		return answer{Status: d.currentStatus()}
	}
	return answer{Error: toWire(d.change(ctx, req))}
}

// change carries out a request that changes the clone, and may wait for its devices: as long as the clone is up and the
// client is there.
func (d *daemon) change(ctx context.Context, req request) error {
	select {
	case d.changing <- struct{}{}:
		defer func() { <-d.changing }()
	default:
		return &exit.Error{Code: exit.Busy, Doing: "change clone", Object: d.start.Definition.Name,
			Cause: fmt.Errorf("%d other commands wait for it", maxChanges), Next: "See `ublk-clone status " + d.start.Definition.Name + "` for what they wait for."}
	}
	d.mu.RLock()
	serving, up := d.mu.serving, d.mu.phase == phaseUp
	if up {
		d.changes.Add(1)
		defer d.changes.Done()
	}
	d.mu.RUnlock()
	if !up {
		return d.notUp()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(serving, guard.Wrap("end a change", func() { cancel(context.Cause(serving)) }))()
	return d.carryOut(ctx, req)
}

// carryOut is the change itself.
func (d *daemon) carryOut(ctx context.Context, req request) error {
	if err := still(ctx); err != nil {
		return err
	}
	switch req.Verb {
	case verbPause:
		return d.engine.configure(ctx, hydration(false))
	case verbResume:
		err := d.engine.repair(ctx)
		if err == nil {
			err = d.engine.retry(ctx)
		}
		if err != nil {
			return err
		}
		return d.engine.configure(ctx, hydration(true)) // last: what had failed is not to be tried as that
	case verbMessage:
		return d.engine.configure(ctx, req.Message.change())
	case verbSet:
		return d.engine.configure(ctx, *req.Change)
	}
	return &exit.Error{Code: exit.Usage, Doing: "serve control request", Object: fmt.Sprintf("%q", req.Verb), Cause: errors.New("unknown verb"),
		Next: "The daemon may be older than this program."}
}

// notUp is the answer to what needs the clone, which is not there yet or any more.
func (d *daemon) notUp() error {
	return &exit.Error{Code: exit.Busy, Doing: "ask clone", Object: d.start.Definition.Name, Cause: errors.New("it is starting or stopping"),
		Next: "See `ublk-clone status " + d.start.Definition.Name + "`, then try again."}
}

// currentStatus is the status of now.
func (d *daemon) currentStatus() *cloneStatus {
	d.mu.RLock()
	defer d.mu.RUnlock()
	st := d.status()
	return &st
}

// status is what the commands print. d.mu is held.
func (d *daemon) status() cloneStatus {
	def := &d.start.Definition
	st := cloneStatus{
		Name: def.Name, PID: os.Getpid(), Device: def.Device, DMName: def.DM, DMDevice: def.layerPath(),
		Source: def.Source, Dest: def.Dest, Metadata: def.Metadata, BadRanges: []badRange{}, Queues: []queueStatus{},
	}
	if d.mu.phase == phaseUp {
		d.engine.status(&st)
	} else {
		st.RegionSize, st.Size = def.RegionSize, def.Size
		st.State, st.Reason, st.Action = d.explainPhase()
	}
	return st
}

// explainPhase is the state of a clone that is not up.
func (d *daemon) explainPhase() (state, reason, action string) {
	switch d.mu.phase {
	case phaseStopping:
		return stateStopping, "Its daemon is about to end.", ""
	case phaseFinishing:
		return stateFinishing, "It is being handed over to its destination.", ""
	}
	state, reason = stateStarting, "It is being started"
	if d.start.Recover {
		state, reason = stateRecovering, "A new daemon takes the device over; its users wait, and see no error"
	}
	reason += fmt.Sprintf(". It is at: %s.", d.done.current())
	if err := d.engine.waits(); err != nil {
		reason = strings.TrimSuffix(reason, ".") + fmt.Sprintf(", and waits for the last requests of the dead daemon: %v.", err)
		action = "Nothing, if these are requests in flight. Otherwise end whoever holds it."
	}
	return state, reason, action
}

// readiness is the one line that a daemon sends to the command that started it.
type readiness struct {
	Device string     `json:"device,omitempty"`
	Error  *wireError `json:"error,omitempty"`
	Trial  *trial     `json:"trial,omitempty"` // of a dry run, in a device's place
}

// report sends the outcome of the start through the pipe, and closes it.
func (r readiness) report(pipe *os.File) error {
	b, err := json.Marshal(r)
	if err == nil {
		_, err = pipe.Write(append(b, '\n'))
	}
	return errors.Join(err, pipe.Close())
}
