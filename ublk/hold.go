package ublk

import (
	"context"
	"fmt"
	"time"
)

// hold is an order to the queues of a device to keep new requests from their targets.
type hold struct {
	rests chan struct{} // gets one from each queue whose target has nothing at work
}

// heldQuiesceTime is how long a device that is held waits for the driver to keep requests back. The
// driver wants a tag without a request in each queue for that (ublk_wait_for_idle_io, ublk_drv.c,
// 6.18), and every tag may have one that is kept. It need not succeed.
const heldQuiesceTime = 100 * time.Millisecond

// Hold keeps new requests from the targets and waits until these have answered all that they have,
// at most timeout. The device's users wait meanwhile. After nil nothing is at work, and no backend
// I/O of the queues is under way: Leave takes no time, and Release has the device go on. With an
// error, a deadline's, the device has gone on already.
func (d *Device) Hold(timeout time.Duration) error {
	if d.phase != phaseLive {
		return d.wrong("hold")
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	h := &hold{rests: make(chan struct{}, len(d.queues))}
	d.orders.hold.Store(h)
	d.wake()
	for range d.queues {
		select {
		case <-h.rests:
		case <-ctx.Done():
			d.Release()
			return fmt.Errorf("hold device %d: requests at work have not ended: %w", d.info.ID, ctx.Err())
		}
	}
	return nil
}

// Release ends a Hold: the targets get the requests that were kept, and new ones.
func (d *Device) Release() {
	d.orders.hold.Store(nil)
	d.wake()
}

// wake has the queues go round.
func (d *Device) wake() {
	for _, q := range d.queues {
		if q.loop != nil {
			q.loop.Wake()
		}
	}
}

// rests looks, once a round, whether nothing is at work any more in a queue that is held.
func (q *Queue) rests() {
	h := q.orders.hold.Load()
	if h == nil || h == q.held || q.busy() {
		return
	}
	q.held = h
	h.rests <- struct{}{}
}

// serveKept hands over what was kept, when the hold has ended.
func (q *Queue) serveKept() {
	if q.nrKept == 0 || q.orders.keepBack() {
		return
	}
	q.nrKept = 0
	for tag, owner := range q.owners {
		if owner == kept {
			q.owners[tag] = withTarget
			q.serveTag(uint16(tag))
		}
	}
}
