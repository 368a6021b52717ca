package ublk

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Start starts the queues and makes the block device appear, or, of a device found by Recover, go
// on:
//
//  5. for each queue a thread with its ring and buffers, then its target
//  6. a device found: START_USER_RECOVERY, as soon as the dead server's ublkcN is closed; open
//     ublkcN
//  7. each queue fetches all its tags and maps its descriptors
//  8. START_DEV or END_USER_RECOVERY
//
// newTarget makes a queue's target, on the queue's thread, one queue after the other; its queue has
// a loop already, whose methods it may call. Requests may come before Start returns: some kernels
// look for partitions meanwhile, and from 6.15 on a device being recovered sends its requests from
// the last FETCH on. If a step fails, the device is deleted; one that was found is left as
// recoverable as it was, with its users waiting, for another Recover.
//
// Step 6 comes so late because drivers before 6.15 forget nothing of a recovery that died half-way.
// Those cases are known (ublk_drv.c, 6.12):
//
//   - dead before the first FETCH: see takeOver;
//   - dead between the FETCH of one queue and that of another, a moment: the next
//     START_USER_RECOVERY follows a NULL pointer in the kernel (ublk_queue_reinit), and nothing can
//     be done here against it;
//   - dead between the last FETCH and END_USER_RECOVERY: see awaitQuiet.
func (d *Device) Start(newTarget func(q *Queue) Target) error {
	if d.phase != phaseAdded && d.phase != phaseFound {
		return d.wrong("start")
	}
	if err := d.start(newTarget); err != nil {
		return errors.Join(fmt.Errorf("start device %d: %w", d.info.ID, err), d.undo())
	}
	d.phase = phaseLive
	return nil
}

func (d *Device) start(newTarget func(q *Queue) Target) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	d.failures.begin(cancel)
	if err := d.queryAffinity(ctx); err != nil {
		return err
	}
	for i := range d.info.Queues {
		if err := d.startQueue(i, newTarget); err != nil {
			return err
		}
	}
	online := d.startDev
	if d.phase == phaseFound {
		online = d.endRecovery
		if err := d.takeOver(ctx); err != nil {
			return err
		}
	}
	if err := d.fetch(); err != nil {
		return err
	}
	if err := d.inTime(ctx, online); err != nil {
		return err
	}
	d.spareTag()
	return d.failures.goLive()
}

// queryAffinity asks for the CPUs of each queue, if its thread is to stay there.
func (d *kernelDevice) queryAffinity(ctx context.Context) error {
	if !d.opts.Pin {
		return nil
	}
	d.affinity = make([]unix.CPUSet, d.info.Queues)
	for i := range d.affinity {
		var err error
		if d.affinity[i], err = d.ctl.QueueAffinity(ctx, d.info.ID, i); err != nil {
			return err
		}
	}
	return nil
}

// startQueue is step 5 for one queue.
func (d *Device) startQueue(index int, newTarget func(q *Queue) Target) error {
	if err := d.step(fmt.Sprintf("queue %d", index)); err != nil {
		return err
	}
	q := &Queue{dev: &d.kernelDevice, orders: &d.orders, failures: &d.failures, index: index, stages: newStages()}
	d.queues = append(d.queues, q)
	ready := make(chan error, 1)
	go q.run(newTarget, ready)
	select {
	case err := <-ready:
		return err
	case <-q.left:
	}
	select {
	case err := <-ready: // it has said why
		return err
	default: // it panicked, and Options.Fatal returned
		return fmt.Errorf("queue %d ended", index)
	}
}

// fetch is step 7, which the queues do. It waits for them: a FETCH beside a STOP_DEV or DEL_DEV is
// answered twice by some drivers, which the kernel does not survive (ublk_cancel_dev, ublk_drv.c;
// seen on 6.18), and a queue that has failed keeps its ring as long (awaitOthers). Such a queue
// ends Start before START_DEV, which reads the partition table: before 6.18 it does so with the
// device's lock held, and waits for ever for a queue that nobody serves (seen on 6.12).
func (d *Device) fetch() error {
	if err := d.step("fetch"); err != nil {
		return err
	}
	d.fetching = true
	for _, q := range d.queues {
		q.fetch <- true
	}
	for _, q := range d.queues {
		<-q.fetched
	}
	for _, q := range d.queues {
		close(q.others)
	}
	return d.failures.first()
}

// inTime is step 8. A queue that fails meanwhile ends it.
func (d *Device) inTime(ctx context.Context, online func(context.Context) error) error {
	if err := d.step("start"); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	d.online = true
	err := online(limited)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (d *kernelDevice) startDev(ctx context.Context) error { return d.ctl.StartDev(ctx, d.info.ID) }

func (d *kernelDevice) endRecovery(ctx context.Context) error {
	return d.ctl.EndRecovery(ctx, d.info.ID)
}
