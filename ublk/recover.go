package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

const (
	defaultRecoverTime = time.Minute
	recoverPause       = 10 * time.Millisecond
	quietTime          = 100 * time.Millisecond // see awaitQuiet
	// graceTime is how long a server must be seen alive beside its device before that is believed:
	// between the moment when a killed process learns of it and the one when it is marked as
	// ending, it looks alive.
	graceTime = time.Second
)

// Recover finds device id, whose server is dead and which was made with Options.Recoverable, and
// waits until the driver knows of the death. Nothing of the device is changed; Start takes it over.
// Its users notice nothing but a delay: what they sent since waits in the driver, and what the dead
// server had and did not answer is sent again, though it may have been done. The caller must know
// that none of the dead server's backend I/O is still under way.
//
// The number of queues, their depth, the sizes and the features are the device's own, as Info and
// Params tell; those in o are not looked at. o.Private must be the device's, which else is
// ErrForeign. ErrServed is a device with a living server, ErrUnrecoverable one that cannot be taken
// over, ENODEV one that does not exist, and a TimeoutError after o.RecoverTime says what was waited
// for.
func Recover(ctl *Control, id int, o Options) (*Device, error) {
	if o.RecoverTime == 0 {
		o.RecoverTime = defaultRecoverTime
	}
	if o.Fatal == nil {
		o.Fatal = guard.Fatal
	}
	d := &Device{kernelDevice: kernelDevice{ctl: ctl, opts: o, info: Info{ID: id}}, phase: phaseFound}
	if err := d.find(); err != nil {
		return nil, fmt.Errorf("recover device %d: %w", id, err)
	}
	return d, nil
}

// Recoverable says what device id is, and why a server of this program could not take it over from
// the one that it has: with ErrForeign, ErrUnrecoverable or the driver's error. It changes nothing.
func Recoverable(ctx context.Context, ctl *Control, id int, private uint64) (info Info, params Params, err error) {
	if info, err = ctl.GetDevInfo(ctx, id); err == nil {
		err = info.refusal(private)
	}
	if err == nil {
		params, err = ctl.GetParams(ctx, id)
	}
	if err != nil {
		err = fmt.Errorf("look at device %d: %w", id, err)
	}
	return info, params, err
}

// find waits for a device without server and takes over what describes it.
func (d *kernelDevice) find() error {
	id := d.info.ID
	err := d.untilFree("GET_DEV_INFO2", func(info Info) error {
		if info.recoverable() {
			return nil
		}
		return unix.EBUSY
	})
	if err != nil {
		return err
	}
	d.opts.Params, err = d.ctl.GetParams(context.Background(), id)
	return err
}

// takeOver is step 6. EINVAL of a device that can be recovered comes from drivers before 6.15
// (nr_queues_ready in ublk_ctrl_start_recovery, ublk_drv.c, 6.12): a recovery has begun before, and
// died before it fetched. The driver is ready for FETCH then.
func (d *kernelDevice) takeOver(ctx context.Context) error {
	if err := d.step("recover"); err != nil {
		return err
	}
	if err := d.awaitQuiet(); err != nil {
		return err
	}
	err := d.untilFree("START_USER_RECOVERY", func(Info) error {
		err := d.ctl.StartRecovery(ctx, d.info.ID)
		if errors.Is(err, unix.EINVAL) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return d.openChar()
}

// awaitQuiet waits, with drivers before 6.15, until ublkcN is closed and then a little longer. When
// the last command of a dead server is gone those still have work to do, which begins at once,
// takes no lock and cancels whatever commands it finds: the next server's, if that was as fast, and
// the kernel dies of it (ublk_cancel_dev in ublk_quiesce_work_fn, ublk_drv.c, 6.12). Nothing tells
// when it is done.
func (d *kernelDevice) awaitQuiet() error {
	if d.info.Features.Quiesce {
		return nil
	}
	err := d.untilFree("START_USER_RECOVERY", func(Info) error {
		f, err := os.OpenFile(CharPath(d.info.ID), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	})
	time.Sleep(quietTime)
	return err
}

// untilFree does try again and again as long as it is EBUSY because of a server that is on its way
// out, and no longer than Options.RecoverTime. A device that must not or cannot be recovered ends
// it.
func (d *kernelDevice) untilFree(command string, try func(Info) error) error {
	begin := time.Now()
	for alone := begin; ; time.Sleep(recoverPause) {
		info, err := d.ctl.GetDevInfo(context.Background(), d.info.ID)
		if err == nil {
			err = info.refusal(d.opts.Private)
		}
		if err != nil {
			return err
		}
		d.info = info
		now := time.Now()
		switch {
		case !info.Served():
			alone = now
		case now.Sub(alone) > graceTime:
			return fmt.Errorf("%w: process %d", ErrServed, info.ServerPID)
		}
		if err = try(info); !errors.Is(err, unix.EBUSY) {
			return err
		}
		if now.Sub(begin) > d.opts.RecoverTime {
			return &TimeoutError{Command: command, Device: d.info.ID, After: now.Sub(begin), Waited: info.obstacle(), cause: err}
		}
	}
}

// refusal says why a device is not to be recovered by whoever expects it to bear private.
func (i Info) refusal(private uint64) error {
	switch {
	case i.Private != private:
		return fmt.Errorf("%w: its cookie is %#x, not %#x", ErrForeign, i.Private, private)
	case !i.Features.UserRecovery:
		return fmt.Errorf("%w: it was made without user recovery", ErrUnrecoverable)
	case i.Features.AutoBufReg != i.Features.UserCopy: // served with both or neither
		return fmt.Errorf("%w: how its data come is not served here, flags %#x", ErrUnrecoverable, i.Features.Bits)
	case i.Features.Bits&^servedFlags != 0:
		return fmt.Errorf("%w: its flags %#x are not served here", ErrUnrecoverable, i.Features.Bits&^servedFlags)
	case i.State == StateDead:
		return fmt.Errorf("%w: it was stopped, or never started", ErrUnrecoverable)
	}
	return nil
}

// obstacle is what keeps a device from being recovered.
func (i Info) obstacle() string {
	if i.State == StateLive {
		return fmt.Sprintf("the driver to notice that process %d is dead", i.ServerPID)
	}
	return fmt.Sprintf("%s to be closed, which process %d or somebody else has open", CharPath(i.ID), i.ServerPID)
}
