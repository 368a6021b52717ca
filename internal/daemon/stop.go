package daemon

import (
	"cmp"
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/holders"
	"github.com/ublk-clone/ublk-clone/internal/steps"
)

// This file is how a daemon ends: with its clone, or for the next one.

// stopRequest asks run to stop. The reply comes when everything is taken back,
// or at once if the device is in use; sent is closed when it is on its way. With
// keep the device stays for the next daemon, in use or not.
type stopRequest struct {
	ctx  context.Context // of the request: what is not wanted any more is not begun
	verb string
	// keepMetadata is of control.VerbFinish: these stay.
	keepMetadata bool
	force        bool // of control.VerbStop: from under its users
	former       bool // a client of the previous release asks
	wait         time.Duration
	reply        chan error
	sent         chan struct{}
}

// live waits for whoever ends the clone: `del`, or an interrupt from the keyboard, which both are
// refused while somebody has the device open, or SIGTERM and `restart`, which end the daemon only.
func (d *daemon) live(signals chan os.Signal) error {
	d.byItself.soon()
	for {
		select {
		case <-d.engine.FinishDue():
			d.byItself.soon()
		case <-d.byItself.timer.C:
			if d.byItself.finish() {
				return d.byItself.end()
			}
		case sig := <-signals:
			if sig == syscall.SIGTERM && d.stay {
				d.log.Warn().Msg("the machine goes down while the clone is in use: it is served until the end")
				continue
			}
			if sig == syscall.SIGTERM {
				if err := d.leave(context.Background(), terminateLimit, false); err != nil {
					d.log.Error().Err(err).Msg("SIGTERM is not obeyed")
					continue
				}
				return d.takeDown()
			}
			if err := d.free(&stopRequest{ctx: context.Background()}, signals); err != nil {
				d.log.Warn().Err(err).Str("signal", sig.String()).Msg("not stopped")
				continue
			}
			return d.takeDown()
		case r := <-d.stops:
			if err := control.Still(r.ctx); err != nil {
				r.reply <- err
				continue
			}
			if r.verb == control.VerbFinishable {
				r.reply <- d.engine.Finishable()
				continue
			}
			err := d.ready(&r, signals)
			if err != nil && r.verb == control.VerbStay { // whoever has it open, known to us or not
				d.stay, err = true, nil
				r.reply <- nil
				continue
			}
			if err != nil {
				r.reply <- err
				continue
			}
			err = d.takeDown()
			r.reply <- err
			select {
			case <-r.sent:
			case <-time.After(control.LineLimit):
			}
			return err
		}
	}
}

// ready does what comes before taking down. With an error the clone goes on.
func (d *daemon) ready(r *stopRequest, signals chan os.Signal) error {
	switch r.verb {
	case control.VerbLeave:
		return d.leave(r.ctx, cmp.Or(r.wait, control.LeaveLimit), r.former)
	case control.VerbFinish:
		return d.finish(r, signals)
	}
	return d.free(r, signals)
}

// terminateLimit is how long a SIGTERM may take to come to the point, within the unit's
// TimeoutStopSec=.
const terminateLimit = 30 * time.Second

// leave prepares for leaving the device to the next daemon. With an error the clone goes on, and
// nobody has to wait for a daemon that cannot end (I13).
func (d *daemon) leave(ctx context.Context, limit time.Duration, former bool) error {
	if err := d.engine.Drain(limit, former); err != nil {
		return err
	}
	if err := control.Still(ctx); err != nil { // no successor waits any more
		d.engine.GoOn()
		return err
	}
	d.keepDevice(true)
	return nil
}

// finish hands the clone over to its destination: through what lies over the block device, or when
// nobody has it open.
func (d *daemon) finish(r *stopRequest, signals chan os.Signal) error {
	if err := d.engine.Finishable(); err != nil {
		return err
	}
	d.life.enter(phaseFinishing)
	def := &d.start.Definition
	def.KeepMetadata = r.keepMetadata // for whoever finds the daemon dead
	err := d.dir.Store(def)
	switch {
	case err != nil:
	case def.DM != "":
		err = d.engine.HandOver(r.ctx, r.wait)
	default:
		err = d.free(r, signals)
	}
	if err != nil {
		d.life.enter(phaseUp)
		return err
	}
	def.Finished = true
	if err := d.dir.Store(def); err != nil && def.DM == "" {
		// The metadata is then all that keeps an add from beginning anew over the destination, if
		// this daemon is killed now.
		d.log.Warn().Err(err).Msg("the metadata is kept: the definition could not say that the clone is finished")
		r.keepMetadata = true
	}
	d.engine.Finish(r.keepMetadata)
	d.log.Info().Str("destination", def.Dest).Msg("it stands alone: the clone is finished")
	return nil
}

// free makes the block device go away once nobody has it open, and waits for that as long as the
// request says, or until there is a signal, which it leaves to live. When the request's context has
// ended the device stays. Exit code 5 names the holders.
func (d *daemon) free(r *stopRequest, signals chan os.Signal) error {
	deadline := time.Now().Add(r.wait)
	for {
		var err error
		if !r.force {
			err = unheld(d.engine.Device(), d.start.Definition.Cookie)
		}
		if err == nil {
			err = control.Still(r.ctx)
		}
		if err == nil {
			err = d.tryStop(r.force)
		}
		if exit.Code(err) != exit.Busy || !time.Now().Before(deadline) || len(signals) > 0 {
			return err
		}
		if err := control.PauseWith(r.ctx, control.HolderPause); err != nil {
			return err
		}
	}
}

// tryStop makes the block device go away, and does not look at the request any more.
func (d *daemon) tryStop(force bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), steps.UndoLimit)
	defer cancel()
	return d.engine.TryStop(ctx, force)
}

// unheld fails with exit code 5 if somebody has the block device open.
func unheld(device string, cookie uint64) error {
	open, err := holders.Of(device, cookie)
	if err != nil {
		return &exit.Error{Code: exit.Other, Doing: "look for users of", Object: device, Cause: err}
	}
	if len(open) == 0 {
		return nil
	}
	return holders.Busy(device, open)
}

// takeDown takes every step back. Whatever goes wrong now, the clone ends.
func (d *daemon) takeDown() error {
	if d.manager != nil {
		d.manager.tell("STOPPING=1")
	}
	err := d.done.Stop()
	if err != nil {
		d.log.Error().Err(err).Msg("clone stopped with errors")
		return err
	}
	d.log.Info().Bool("device_left", d.keep).Msg("clone stopped")
	return nil
}

// keepDevice says whether taking down leaves the block device to the next daemon.
func (d *daemon) keepDevice(keep bool) {
	d.keep = keep
	d.engine.KeepDevice(keep)
}

// answerStop asks run to stop. One request at a time may wait for the device to be closed, so that
// the others leave connections to other commands.
func (d *daemon) answerStop(ctx context.Context, req control.Request) control.Answer {
	wait := time.Duration(req.WaitMS) * time.Millisecond
	if err := d.life.awaitUp(ctx, wait); err != nil { // for a finish that is under way, too
		return control.Answer{Error: control.ToWire(err)}
	}
	select {
	case d.stopping <- struct{}{}:
		defer func() { <-d.stopping }()
	default:
		return control.Answer{Error: control.ToWire(&exit.Error{Code: exit.Busy, Doing: "end the daemon of", Object: d.start.Definition.Name,
			Cause: errors.New("another command is ending it already"), Next: "Wait for that command."})}
	}
	r := stopRequest{ctx: ctx, verb: req.Verb, keepMetadata: req.Keep, force: req.Force, former: req.LimitMS == 0, wait: wait, reply: make(chan error, 1), sent: make(chan struct{})}
	select {
	case d.stops <- r:
	case <-ctx.Done():
		return control.Answer{Error: control.ToWire(control.Still(ctx))}
	}
	if err := <-r.reply; err != nil { // run looks at the context
		return control.Answer{Error: control.ToWire(err), Sent: r.sent}
	}
	return control.Answer{Warnings: d.engine.Farewell(), Sent: r.sent}
}
