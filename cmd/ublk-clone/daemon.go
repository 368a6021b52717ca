package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/ublk"
)

// engine is the clone that a daemon runs, as the rest of the daemon sees it.
type engine interface {
	// steps bring the clone up, from opening its devices to a usable block
	// device, and take it down.
	steps() []step
	// device is the path of the block device, once the steps are done.
	device() string
	// note adds to the definition what the daemon knows by then.
	note(*definition)
	// tryStop makes the device go away unless somebody has it open: then it fails
	// with exit code 5. On a driver that cannot tell it stops the device; holders
	// have been looked for before.
	tryStop(context.Context) error
	// status fills in all but name, process and definition.
	status(*cloneStatus)
	// configure changes settings, all or none, and makes them last.
	configure(change) error
	// events are what has happened to the clone.
	events() *eventLog
	// retry forgets what failed and tries again.
	retry()
	// keepDevice says whether taking down leaves the block device, its users waiting.
	keepDevice(bool)
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
	keep   bool // taking down leaves the block device, and the definition for who recovers it
}

// stopRequest asks run to stop. The reply comes when everything is taken back,
// or at once if the device is in use; sent is closed when it is on its way.
type stopRequest struct {
	wait  time.Duration
	reply chan error
	sent  chan struct{}
}

func newDaemon(dir runDir, st start, e engine, log zerolog.Logger) *daemon {
	return &daemon{dir: dir, start: st, engine: e, log: log, stops: make(chan stopRequest), keep: st.Recover}
}

// list is the start-up in order:
//
//	1    lock the name: one daemon for each
//	2    remove the block device that a dead daemon of that name has left, unless it is to be recovered
//	3    write the definition
//	4..  the engine's: devices, region map, core, block device
//	     complete the definition, for whoever finds the daemon dead
//	last control socket
//
// A stop takes them back in reverse.
func (d *daemon) list() []step {
	def := &d.start.Definition
	list := []step{
		{
			name: "lock the name",
			do:   func(context.Context) (err error) { d.lock, err = d.dir.acquire(def.Name); return err },
			undo: func() error { return d.lock.release() },
		},
		{name: "clear up after a dead daemon", do: func(context.Context) error { return d.clearUp(def.Name) }},
		{
			name: "write the definition",
			do:   func(context.Context) error { return d.dir.store(def) },
			undo: func() error {
				if d.keep {
					return nil
				}
				return removeIfThere(d.dir.definition(def.Name))
			},
		},
	}
	list = append(list, d.engine.steps()...)
	list = append(list, step{
		name: "complete the definition",
		do: func(context.Context) error {
			d.engine.note(def)
			return d.dir.store(def)
		},
	})
	return append(list, step{
		name: "open the control socket",
		do: func(context.Context) (err error) {
			d.server, err = listen(d.dir.socket(def.Name), d.log, d.answer)
			if err == nil {
				go d.serve()
			}
			return err
		},
		undo: func() error { return d.server.listener.Close() },
	})
}

// clearUp holds the name's lock: whoever wrote a definition that is there is dead.
func (d *daemon) clearUp(name string) error {
	old, err := d.dir.load(name)
	if d.start.Recover || exit.Code(err) == exit.NoClone {
		return nil
	}
	if err != nil {
		return err
	}
	return removeDead(old)
}

func (d *daemon) serve() {
	defer ublk.Guard("control", ublk.Fatal)
	d.server.serve()
}

// run is the daemon's life. ready is told of the outcome of the start.
func (d *daemon) run(ready func(device string, err error)) error {
	defer ublk.Guard("daemon", ublk.Fatal)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)

	err := d.bringUp(signals)
	ready(d.engine.device(), err)
	if err != nil {
		return err
	}
	d.log.Info().Str("device", d.engine.device()).Msg("clone is up")
	d.keepDevice(false)
	return d.live(signals)
}

// bringUp does the steps; a signal ends it between two of them.
func (d *daemon) bringUp(signals <-chan os.Signal) error {
	if err := sys.DieQuickly(); err != nil {
		return &exit.Error{Code: exit.Other, Doing: "prepare the process", Cause: err}
	}
	if err := sys.SetIOFlusher(); err != nil {
		d.log.Warn().Err(err).Msg("the kernel may wait for this daemon while it frees memory for it")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	return d.done.run(ctx, d.list())
}

// keepDevice says whether taking down leaves the block device to the next daemon.
func (d *daemon) keepDevice(keep bool) {
	d.keep = keep
	d.engine.keepDevice(keep)
}

// live waits for whoever ends the clone: `del`, or an interrupt from the keyboard, which both are refused while
// somebody has the device open, or SIGTERM, which ends the daemon only.
func (d *daemon) live(signals <-chan os.Signal) error {
	for {
		select {
		case sig := <-signals:
			if sig == syscall.SIGTERM {
				d.keepDevice(true)
				return d.takeDown()
			}
			if err := d.free(0); err != nil {
				d.log.Warn().Err(err).Str("signal", sig.String()).Msg("not stopped")
				continue
			}
			return d.takeDown()
		case r := <-d.stops:
			if err := d.free(r.wait); err != nil {
				r.reply <- err
				continue
			}
			err := d.takeDown()
			r.reply <- err
			select {
			case <-r.sent:
			case <-time.After(lineLimit):
			}
			return err
		}
	}
}

// holderPause is between two looks at who holds the device.
const holderPause = 50 * time.Millisecond

// free makes the block device go away once nobody has it open, and waits for
// that at most wait. Exit code 5 names the holders.
func (d *daemon) free(wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for {
		err := d.unheld()
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
			err = d.engine.tryStop(ctx)
			cancel()
		}
		if exit.Code(err) != exit.Busy || !time.Now().Before(deadline) {
			return err
		}
		time.Sleep(holderPause)
	}
}

// unheld fails with exit code 5 if somebody has the block device open.
func (d *daemon) unheld() error {
	holders, err := blockdev.Holders(d.engine.device())
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "look for users of", Object: d.engine.device(), Cause: err}
	}
	if len(holders) == 0 {
		return nil
	}
	return heldError(d.engine.device(), holders)
}

// heldError names who keeps a device from being deleted.
func heldError(device string, holders []blockdev.Holder) error {
	var cause error
	for _, h := range holders {
		if cause == nil {
			cause = errors.New(h.String())
		} else {
			cause = fmt.Errorf("%w; %s", cause, h)
		}
	}
	return &exit.Error{Code: exit.Busy, Doing: "delete", Object: device, Cause: cause, Next: "Unmount it or end whoever uses it, then try again."}
}

// takeDown takes every step back. Whatever goes wrong now, the clone ends.
func (d *daemon) takeDown() error {
	err := d.done.stop()
	if err != nil {
		d.log.Error().Err(err).Msg("clone stopped with errors")
		return err
	}
	d.log.Info().Msg("clone stopped")
	return nil
}

// answer serves one control request, on the connection's goroutine.
func (d *daemon) answer(_ context.Context, req request) answer {
	var err error
	switch req.Verb {
	case verbStatus:
		st := d.status()
		return answer{Status: &st}
	case verbPause:
		err = d.engine.configure(hydration(false))
	case verbResume:
		d.engine.retry() // before it is on: what had failed is not to be tried as that
		err = d.engine.configure(hydration(true))
	case verbMessage, verbSet:
		err = d.change(req)
	case verbEvents:
		return d.engine.events().answer(req.After, time.Duration(req.WaitMS)*time.Millisecond)
	case verbStop:
		r := stopRequest{wait: time.Duration(req.WaitMS) * time.Millisecond, reply: make(chan error, 1), sent: make(chan struct{})}
		d.stops <- r
		err = <-r.reply
		return answer{Error: toWire(err), sent: r.sent}
	default:
		err = &exit.Error{Code: exit.Usage, Doing: "serve control request", Object: fmt.Sprintf("%q", req.Verb), Cause: errors.New("unknown verb"),
			Next: "The daemon may be older than this program."}
	}
	return answer{Error: toWire(err)}
}

// change makes the change that a request asks for.
func (d *daemon) change(req request) error {
	switch {
	case req.Message != nil:
		return d.engine.configure(req.Message.change())
	case req.Change != nil:
		return d.engine.configure(*req.Change)
	}
	return usage("what is to be changed is missing")
}

// status is what the commands print.
func (d *daemon) status() cloneStatus {
	def := &d.start.Definition
	st := cloneStatus{
		Name: def.Name, PID: os.Getpid(), Device: d.engine.device(),
		Source: def.Source, Dest: def.Dest, Metadata: def.Metadata, BadRanges: []badRange{},
	}
	d.engine.status(&st)
	return st
}

// readiness is the one line that a daemon sends to the command that started it.
type readiness struct {
	Device string     `json:"device,omitempty"`
	Error  *wireError `json:"error,omitempty"`
}

// report sends the outcome of the start through the pipe, and closes it.
func (r readiness) report(pipe *os.File) error {
	b, err := json.Marshal(r)
	if err == nil {
		_, err = pipe.Write(append(b, '\n'))
	}
	return errors.Join(err, pipe.Close())
}
