package ublk

import (
	"context"
	"fmt"
	"time"
)

// Leave ends this process's service of a device that was made with Options.Recoverable, and leaves
// the block device to its users, who wait until the next server takes it over with Recover:
//
//  1. QUIESCE_DEV, if the device has it (from 6.16 on): the driver keeps new requests back
//  2. the queues answer what their targets have at work
//  3. with QUIESCE_DEV, the queues leave, and ublkcN is closed; the device can be recovered from
//     now on
//
// When Leave has returned nil, each request that a target was given has been answered, with the
// target's own result; no backend I/O of the queues is under way, and targets get no new requests.
// Every other request, whether the driver has kept it back or has sent it to a queue that was
// leaving already, was not begun and is not answered: it comes to the next server. No request fails
// by it. So the caller can commit and end the process; without QUIESCE_DEV the device can be
// recovered only when the process has ended, however that comes about. (It must not be closed by a
// process that lives: 6.12.107 with requests coming drops one reference to ublkcN too many, and has
// a BUG in filp_flush.)
//
// After timeout it returns an error that is a deadline's, with targets that have requests at work
// yet and get no new ones; it may be called again. The process may also end there: what was not
// answered is sent to the next server, as after a death. A device left cannot be stopped or deleted
// by its Device: ErrState.
func (d *Device) Leave(timeout time.Duration) error {
	if d.phase != phaseLive && d.phase != phaseLeaving {
		return d.wrong("leave")
	}
	if !d.info.Features.UserRecoveryReissue {
		return fmt.Errorf("leave device %d: %w: its users' requests would fail", d.info.ID, ErrUnrecoverable)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if d.phase == phaseLive && d.info.Features.Quiesce {
		limit := timeout
		if d.orders.hold.Load() != nil {
			limit = min(timeout, heldQuiesceTime)
		}
		// A failure changes nothing: the queues leave without, and closing ublkcN ends a quiesce
		// left half-way.
		_ = d.ctl.Quiesce(ctx, d.info.ID, limit)
	}
	d.phase = phaseLeaving
	return d.quit(ctx)
}

// quit ends the queues, which answer what they have at work, and closes ublkcN. Where the driver
// may be sending requests and cannot have its server close on it, both stay as they are.
func (d *Device) quit(ctx context.Context) error {
	if !d.orders.leaving.Load() {
		d.orders.parks = d.online && !d.info.Features.Quiesce
	}
	d.dismiss()
	if err := d.awaitQueues(ctx, "leave"); err != nil {
		return err
	}
	d.phase = phaseLeft
	return d.closeChar()
}
