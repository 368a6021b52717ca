package daemon

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/leftover"
)

// byItself has a clone with the setting finish=auto finish without a command, when all of it is
// durable in the destination. It does what `ublk-clone finish` does, in the same order: the
// definition in /etc goes, the layer is led to the destination (the list in
// internal/engine/finish.go), the clone is taken down, and then its unit is disabled and udev told.
// A daemon that dies within that is recovered as one that dies within `finish`; the next one tries
// again, as the setting is kept.
//
// What cannot be done now is tried again later, with longer and longer pauses. Only the daemon's
// goroutine uses it, but for failed.
type byItself struct {
	daemon  *daemon
	defined etc.Dir
	timer   *time.Timer   // the next try
	pause   time.Duration // after it, if it fails
	hold    time.Duration // how long users wait in it, at most, for their requests to end
	failed  atomic.Pointer[failedTry]
}

// failedTry is why the last try has failed, and what can be done about it.
type failedTry struct{ why, next string }

const (
	// itselfSoon is before the first try: whoever asked for it, or waits for the clone to be up or
	// hydrated, is to see that first.
	itselfSoon = time.Second
	// itselfPauses at most are between two tries.
	itselfPauses = time.Minute
	// Users may wait as for an exchange of direct extents at first. If their requests take longer
	// they may wait longer, and no longer than they notice.
	firstHold, longestHold = 50 * time.Millisecond, time.Second
)

func newByItself(d *daemon, defined etc.Dir) *byItself {
	b := &byItself{daemon: d, defined: defined, timer: time.NewTimer(time.Hour)}
	b.timer.Stop()
	return b
}

// soon begins anew: something has changed.
func (b *byItself) soon() {
	b.pause, b.hold = itselfSoon, firstHold
	b.failed.Store(nil)
	b.timer.Reset(itselfSoon)
}

// later is after a try that has failed. It says whether the reason is news.
func (b *byItself) later(err error) (news bool) {
	if exit.Code(err) == exit.Timeout {
		b.hold = min(2*b.hold, longestHold)
	}
	b.timer.Reset(b.pause)
	b.pause = min(2*b.pause, itselfPauses)
	now := failedTry{err.Error(), exit.Next(err)}
	was := b.failed.Swap(&now)
	return was == nil || was.why != now.why
}

// finish tries to finish the clone. If it says so, the clone is to be taken down.
func (b *byItself) finish() bool {
	d := b.daemon
	var st control.Status
	d.engine.Status(&st)
	switch {
	case !st.Settings.FinishAuto || b.lacks(&st) != "": // the engine says when that has changed
		return false
	case d.life.changing() > 0: // they would be cut off
		b.timer.Reset(itselfSoon)
		return false
	}
	err := b.try()
	if err == nil {
		return true
	}
	if b.later(err) {
		d.engine.Events().Add(control.EventFinishWaits, "the clone cannot finish by itself yet: "+err.Error())
	}
	return false
}

// show says in the status what a clone waits for that is to finish by itself.
func (b *byItself) show(st *control.Status) {
	if !st.Settings.FinishAuto {
		return
	}
	if st.FinishWaits = b.lacks(st); st.FinishWaits != "" {
		return
	}
	next := ""
	st.FinishWaits = "a second, in which others see that it is complete"
	if failed := b.failed.Load(); failed != nil {
		st.FinishWaits, next = "a better moment: "+failed.why, failed.next
	}
	if st.State == control.StateHydrated { // else there is more to do about it
		st.Action = next
	}
}

// lacks says what a clone needs before it can try to finish by itself, "" for nothing.
func (b *byItself) lacks(st *control.Status) string {
	switch {
	case b.daemon.start.Definition.DM == "":
		return "`ublk-clone finish`: it has no device-mapper device (--dm)"
	case st.Regions.Hydrated < st.Regions.Total:
		return "everything to be hydrated"
	}
	return ""
}

// try is what the command does, up to the point where the destination stands alone.
func (b *byItself) try() error {
	d := b.daemon
	if err := d.engine.Finishable(); err != nil {
		return err
	}
	back, err := b.defined.Retire(d.start.Definition.Name)
	if err != nil {
		return err
	}
	err = d.finish(&stopRequest{ctx: context.Background(), verb: control.VerbFinish, wait: b.hold}, nil)
	if err != nil {
		return errors.Join(err, back())
	}
	return nil
}

// end takes a clone down that has finished by itself, and does what the command does last.
func (b *byItself) end() error {
	err := b.daemon.takeDown()
	if errLast := leftover.Released(&b.daemon.start.Definition); errLast != nil {
		b.daemon.log.Warn().Err(errLast).Msg("the clone is finished")
	}
	return err
}
