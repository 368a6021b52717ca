package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/events"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
	"github.com/ublk-clone/ublk-clone/internal/steps"
)

// Engine is the clone that a daemon runs, as the rest of the daemon sees it.
type Engine interface {
	// Opens open the clone's devices and take them back. When they are done the cookie is known.
	Opens() []steps.Step
	// Cookie is what the driver is to keep of the clone, to know its block device by.
	Cookie() uint64
	// Steps bring the clone up from there to a usable block device, and take it down.
	Steps() []steps.Step
	// LayerSteps bring up what lies over the block device: a dead daemon's is found by the
	// definition, which is whole by then.
	LayerSteps() []steps.Step
	// Device is the path of the block device, once the steps are done.
	Device() string
	// FillIn adds to the definition what the daemon knows by then.
	FillIn(*definition.Definition)
	// TryStop makes the device go away unless somebody has it open: then it fails
	// with exit code 5. On a driver that cannot tell it stops the device; holders
	// have been looked for before.
	// With force it goes whoever has it open.
	TryStop(ctx context.Context, force bool) error
	// Status fills in all but name, process and definition.
	Status(*control.Status)
	// Configure changes settings, all or none, and makes them last.
	Configure(context.Context, definition.Change) error
	// Events are what has happened to the clone.
	Events() *events.Log
	// Repair ends mode ro, if the metadata can be written again.
	Repair(context.Context) error
	// Retry takes a source back that was away, forgets what failed and tries again; with an error
	// nothing has changed.
	Retry(context.Context) error
	// Finishable refuses a clone that its destination cannot stand in for.
	Finishable() error
	// HandOver leads what lies over the block device to the destination. With an error all is as it
	// was.
	HandOver(ctx context.Context, limit time.Duration) error
	// FinishDue is told when the clone may have become one that is to finish by itself.
	FinishDue() <-chan struct{}
	// Finish makes what follows, which takes the clone down, final.
	Finish(keepMetadata bool)
	// Drain brings requests and copies to rest, so that the daemon can leave at once. With an error
	// the clone goes on; GoOn has it do so after a drain that has succeeded. former: the next
	// daemon may be of the previous release, and is to find what that leaves.
	Drain(limit time.Duration, former bool) error
	GoOn()
	// KeepDevice says whether taking down leaves the block device, its users waiting.
	KeepDevice(bool)
	// MayReplace fails if the steps would, as far as that can be seen while the daemon that is to
	// be replaced serves.
	MayReplace(control.Dir) error
	// WarmUp does in advance what the steps can do faster then: while the daemon that is to be
	// replaced still serves.
	WarmUp() error
	// Warn notes what the user should know of the start.
	Warn(format string, args ...any)
	// Farewell is what whoever ends the clone should know, when the steps are taken back.
	Farewell() []string
	// Answers says whether all loops have gone round since it was called last.
	Answers() bool
	// Waits is what the steps wait for now, nil for nothing. Any goroutine may ask.
	Waits() error
}

// daemon is the process of one clone. Goroutines: the one of run, which starts,
// waits for signals and stop requests, and stops; one per control connection;
// and the engine's.
type daemon struct {
	dir    control.Dir
	start  definition.Start
	engine Engine
	log    zerolog.Logger

	lock   *control.NameLock
	server *control.Server
	done   steps.List
	stops  chan stopRequest
	// stopping is taken by the one stop request that may wait.
	stopping chan struct{}
	manager  *Manager // nil: none
	stay     bool     // SIGTERM is not obeyed: the machine goes down, and the device is in use
	named    namedLog
	keep     bool // taking down leaves the block device, and the definition for who recovers it
	life     *life
	byItself *byItself
}

func New(dir control.Dir, st definition.Start, e Engine, log zerolog.Logger) *daemon {
	d := &daemon{
		dir: dir, start: st, engine: e, log: log, stops: make(chan stopRequest), stopping: make(chan struct{}, 1),
		keep: st.Recover, life: newLife(st.Definition.Name, log),
	}
	d.byItself = newByItself(d, etc.DefaultDir())
	return d
}

// list is the start-up in order:
//
//	1    lock the name: one daemon for each. One that is to be replaced leaves first
//	2    remove the block device and begun files that a dead daemon of that name has left; if it is to be recovered,
//	     see that it is still the clone that was meant
//	3    write the definition
//	4    control socket, which tells how far the start is
//	5..  the engine's: its devices
//	     write the cookie of the block device into the definition, before there is one: whoever finds the daemon dead
//	     knows by it what is left
//	     the engine's: region map, core, block device
//	     complete the definition, for whoever finds the daemon dead
//	     what lies over the block device
//	last serve all control requests
//
// A stop takes them back in reverse.
func (d *daemon) list() []steps.Step {
	def := &d.start.Definition
	list := []steps.Step{
		{
			Name: "lock the name",
			Do: func(context.Context) error {
				err := d.takeName()
				if err == nil {
					d.named.own(d.dir, def.Name, d.log)
				}
				return err
			},
			Undo: func() error {
				var err error
				if !d.keep {
					err = d.named.forget(d.dir, def.Name)
				}
				return errors.Join(err, d.lock.Release())
			},
		},
		{Name: "clear up after a dead daemon", Do: func(context.Context) error { return d.clearUp(def.Name) }},
		{
			Name: "write the definition",
			Do:   func(context.Context) error { return d.storeAgain(def) },
			Undo: func() error {
				if d.keep {
					return nil
				}
				return leftover.Undefine(d.dir, def)
			},
		},
	}
	list = append(list, steps.Step{
		Name: "open the control socket",
		Do: func(context.Context) (err error) {
			d.server, err = control.Listen(d.dir.SocketPath(def.Name), d.log, d.answer)
			if err == nil {
				guard.Go("control", d.server.Serve)
			}
			return err
		},
		Undo: func() error { return d.server.Listener.Close() },
	})
	list = append(list, d.engine.Opens()...)
	list = append(list, steps.Step{Name: "write the device's cookie", Do: func(context.Context) error { return d.writeCookie() }})
	list = append(list, d.engine.Steps()...)
	list = append(list, steps.Step{
		Name: "complete the definition",
		Do: func(context.Context) error {
			whole := *def
			d.engine.FillIn(&whole)
			whole.Unit = d.manager.name()
			err := d.storeAgain(&whole)
			d.life.show(func() { *def = whole })
			return err
		},
	})
	list = append(list, d.engine.LayerSteps()...)
	return append(list,
		steps.Step{
			Name: "serve control requests",
			Do:   func(context.Context) error { d.life.enter(phaseUp); return nil },
			Undo: func() error { d.life.enter(phaseStopping); return nil },
		})
}

// writeCookie leaves a definition as it is that has a block device: in a recovery the metadata may
// turn out not to be those of the clone, and the device must still be found.
func (d *daemon) writeCookie() error {
	whole := d.start.Definition
	if d.start.Recover || whole.Cookie == d.engine.Cookie() {
		return nil
	}
	whole.Cookie = d.engine.Cookie()
	err := d.storeAgain(&whole)
	d.life.show(func() { d.start.Definition = whole })
	return err
}

// storeAgain writes the definition. A recovery finds one that is nearly the same, and is not kept
// from serving by a full directory.
func (d *daemon) storeAgain(def *definition.Definition) error {
	err := d.dir.Store(def)
	if err != nil && d.start.Recover {
		d.engine.Warn("the definition stays as it was: %v", err)
		err = nil
	}
	return err
}

// clearUp holds the name's lock: whoever wrote a definition that is there is dead.
func (d *daemon) clearUp(name string) error {
	if d.start.Recover {
		return d.stillDefined()
	}
	old, err := d.dir.Load(name)
	if exit.Code(err) == exit.NoClone {
		return nil
	}
	if err != nil {
		return err
	}
	if err := leftover.RemoveDevice(old, leftover.Force); err != nil {
		return err
	}
	if err := leftover.RemoveBegun(old); err != nil { // which perhaps nobody makes any more
		d.engine.Warn("what a dead daemon has left stays: %v", err)
	}
	return nil
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
	ready(d.engine.Device(), err)
	if err != nil {
		return err
	}
	d.log.Info().Str("device", d.engine.Device()).Msg("clone is up")
	d.keepDevice(false)
	d.named.found = false
	if d.manager != nil {
		close(up)
		guard.Go("watchdog", func() { d.manager.feed(d.engine.Answers, ended) })
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
	return d.done.Run(ctx, d.list())
}

// answer serves one control request, on the connection's goroutine.
func (d *daemon) answer(ctx context.Context, req control.Request) control.Answer {
	switch req.Verb {
	case control.VerbStop, control.VerbLeave, control.VerbStay, control.VerbFinish, control.VerbFinishable:
		return d.answerStop(ctx, req)
	case control.VerbEvents:
		return d.engine.Events().Answer(ctx, req.After, time.Duration(req.WaitMS)*time.Millisecond)
	case control.VerbStatus:
		return control.Answer{Status: d.currentStatus()}
	}
	return control.Answer{Error: control.ToWire(d.life.change(ctx, func(ctx context.Context) error { return d.carryOut(ctx, req) }))}
}

// carryOut is a change, while the clone is up.
func (d *daemon) carryOut(ctx context.Context, req control.Request) error {
	if err := control.Still(ctx); err != nil {
		return err
	}
	switch req.Verb {
	case control.VerbPause:
		return d.engine.Configure(ctx, definition.Hydration(false))
	case control.VerbResume:
		err := d.engine.Repair(ctx)
		if err == nil {
			err = d.engine.Retry(ctx)
		}
		if err != nil {
			return err
		}
		return d.engine.Configure(ctx, definition.Hydration(true)) // last: what had failed is not to be tried as that
	case control.VerbMessage:
		return d.engine.Configure(ctx, req.Message.Change())
	case control.VerbSet:
		return d.engine.Configure(ctx, *req.Change)
	}
	return &exit.Error{Code: exit.Usage, Doing: "serve control request", Object: fmt.Sprintf("%q", req.Verb), Cause: errors.New("unknown verb"),
		Next: "The daemon may be older than this program."}
}

// currentStatus is what the commands print, of now.
func (d *daemon) currentStatus() *control.Status {
	var st control.Status
	d.life.during(func(now phase) { st = d.status(now) })
	return &st
}

func (d *daemon) status(now phase) control.Status {
	def := &d.start.Definition
	st := control.Status{
		Identity: control.Identity{Name: def.Name, PID: os.Getpid(), Device: def.Device, DMName: def.DM, DMDevice: def.LayerPath()},
		Devices:  control.Devices{Source: def.Source, Dest: def.Dest, Metadata: def.Metadata},
		Progress: control.Progress{BadRanges: []control.BadRange{}},
		Queues:   []control.QueueStatus{},
	}
	if now == phaseUp {
		d.engine.Status(&st)
		d.byItself.show(&st)
	} else {
		st.RegionSize, st.Size = def.RegionSize, def.Size
		st.State, st.Reason, st.Action = d.explainPhase(now)
	}
	return st
}

// explainPhase is the state of a clone that is not up.
func (d *daemon) explainPhase(now phase) (state, reason, action string) {
	switch now {
	case phaseStopping:
		return control.StateStopping, "Its daemon is about to end.", ""
	case phaseFinishing:
		return control.StateFinishing, "It is being handed over to its destination.", ""
	}
	state, reason = control.StateStarting, "It is being started"
	if d.start.Recover {
		state, reason = control.StateRecovering, "A new daemon is taking the device over; its users wait, and see no error"
	}
	reason += fmt.Sprintf(". It is at: %s.", d.done.Current())
	if err := d.engine.Waits(); err != nil {
		reason = strings.TrimSuffix(reason, ".") + fmt.Sprintf(", and waits for the last requests of the dead daemon: %v.", err)
		action = "Do nothing if these are requests in flight. Otherwise end whoever holds it."
	}
	return state, reason, action
}

// readiness is the one line that a daemon sends to the command that started it.
type readiness struct {
	Device string             `json:"device,omitempty"`
	Error  *control.WireError `json:"error,omitempty"`
	DryRun *control.DryRun    `json:"dry_run,omitempty"` // of a dry run, in a device's place
}

// report sends the outcome of the start through the pipe, and closes it.
func (r readiness) report(pipe *os.File) error {
	b, err := json.Marshal(r)
	if err == nil {
		_, err = pipe.Write(append(b, '\n'))
	}
	return errors.Join(err, pipe.Close())
}
