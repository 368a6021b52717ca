package ublk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a device.
type Options struct {
	ID     int    // AnyID, or the number to have
	Queues int    // 1 to 4096; the driver makes no more than there are CPUs
	Depth  int    // requests of a queue at a time, 1 to 4096
	Params Params // Params.MaxIO times Depth is mapped for each queue, and taken when touched
	// Private is kept by the driver for the server (ublksrv_flags): a mark to know the device by.
	Private uint64

	Tokens      int // backend I/Os of a queue's target: tokens are below it
	MaxInFlight int // of these, given to the kernel at a time; 0 = all
	// Pin keeps each queue's thread on the CPUs whose requests it gets.
	Pin bool

	// Fatal is called when a queue cannot go on, by a panic of its target or a failure of its ring; nil = the
	// function Fatal, which ends the process. If it returns, the queue's requests fail from then on.
	Fatal func(error)

	// fail makes a step fail, in tests.
	fail func(step string) error
}

// Limits of what a device waits for.
const (
	openTime  = time.Second // for ublkcN to appear and for udev to let go of it
	openPause = 10 * time.Millisecond
	startTime = 30 * time.Second // for START_DEV
	undoTime  = 10 * time.Second // for what a failed step takes back
)

// Device is a device of this process. Its methods are called from one goroutine at a time.
type Device struct {
	ctl      *Control
	opts     Options
	info     Info
	char     *os.File
	charFD   int
	affinity []unix.CPUSet // by queue, with Options.Pin
	queues   []*Queue      // started
	phase    phase

	mu struct {
		sync.Mutex
		live   bool // Start has returned: from here on a queue that fails is fatal
		failed error
		cancel context.CancelCauseFunc // ends START_DEV
		errs   []error                 // of giving back
	}
}

// phase of a device's life.
type phase int

const (
	phaseAdded phase = iota
	phaseLive
	phaseStopped
	phaseDeleted
)

func (p phase) String() string {
	return [...]string{"added", "live", "stopped", "deleted"}[p]
}

func (o *Options) validate() error {
	if o.Queues < 1 || o.Queues > maxQueues {
		return fmt.Errorf("%w: %d queues, not 1 to %d", ErrParams, o.Queues, maxQueues)
	}
	if o.Depth < 1 || o.Depth > maxDepth {
		return fmt.Errorf("%w: queue depth %d, not 1 to %d", ErrParams, o.Depth, maxDepth)
	}
	return o.Params.Validate()
}

// Create adds a device and gives it its parameters:
//
//  1. ask what the driver offers; add the device
//  2. compare what came back
//  3. open ublkcN
//  4. set the parameters
//
// If a step fails nothing is left. The device serves after Start.
func Create(ctl *Control, o Options) (*Device, error) {
	o.Params = o.Params.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	if o.Fatal == nil {
		o.Fatal = Fatal
	}
	d := &Device{ctl: ctl, opts: o}
	if err := d.add(); err != nil {
		return nil, err
	}
	for _, step := range []func() error{d.compare, d.openChar, d.setParams} {
		if err := step(); err != nil {
			return nil, errors.Join(err, d.undo())
		}
	}
	return d, nil
}

// step fails where a test wants it to.
func (d *Device) step(name string) error {
	if d.opts.fail == nil {
		return nil
	}
	return d.opts.fail(name)
}

// add is step 1.
func (d *Device) add() error {
	if err := d.step("add"); err != nil {
		return err
	}
	ctx := context.Background()
	offered, err := d.ctl.Features(ctx)
	if err != nil {
		return err
	}
	flags, err := requestFlags(offered)
	if err != nil {
		return err
	}
	d.info, err = d.ctl.AddDev(ctx, Info{
		ID: d.opts.ID, Queues: d.opts.Queues, Depth: d.opts.Depth, MaxIO: d.opts.Params.MaxIO,
		Features: Features{Bits: flags}, Private: d.opts.Private,
	})
	if err != nil {
		return err
	}
	d.opts.Params.MaxIO = d.info.MaxIO
	return nil
}

// compare is step 2. An old driver drops flags that it does not know and says nothing.
func (d *Device) compare() error {
	if err := d.step("compare"); err != nil {
		return err
	}
	flags, err := requestFlags(d.info.Features)
	if err != nil {
		return err
	}
	return missing(flags, d.info.Features.Bits)
}

// openChar is step 3. The node appears a little later than the device, and udev may be the other opener that
// it does not allow.
func (d *Device) openChar() error {
	if err := d.step("open"); err != nil {
		return err
	}
	path := CharPath(d.info.ID)
	for limit := time.Now().Add(openTime); ; time.Sleep(openPause) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			d.char, d.charFD = f, int(f.Fd())
			return nil
		}
		passing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EBUSY) || errors.Is(err, fs.ErrPermission)
		if passing && time.Now().Before(limit) {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("open device %d: %w (is devtmpfs mounted on /dev?)", d.info.ID, err)
		}
		return fmt.Errorf("open device %d: %w", d.info.ID, err)
	}
}

// setParams is step 4.
func (d *Device) setParams() error {
	if err := d.step("params"); err != nil {
		return err
	}
	return d.ctl.SetParams(context.Background(), d.info.ID, d.opts.Params)
}

// Info is the device as the driver made it.
func (d *Device) Info() Info { return d.info }

// Params are the device's parameters, with defaults in place of zeros.
func (d *Device) Params() Params { return d.opts.Params }

// BlockPath is the block device, there after Start.
func (d *Device) BlockPath() string { return BlockPath(d.info.ID) }

// Start starts the queues and makes the block device appear:
//
//  5. for each queue a thread with its ring, descriptors and buffers, then its target; it fetches all its tags
//  6. START_DEV
//
// newTarget makes a queue's target, on the queue's thread, one queue after the other; its queue has a loop
// already, whose methods it may call. Requests may come before Start returns (some kernels look for
// partitions meanwhile). If a step fails, the device is deleted.
func (d *Device) Start(newTarget func(q *Queue) Target) error {
	if d.phase != phaseAdded {
		return fmt.Errorf("start device %d: %w (%v)", d.info.ID, ErrState, d.phase)
	}
	err := d.start(newTarget)
	if err != nil {
		return errors.Join(fmt.Errorf("start device %d: %w", d.info.ID, err), d.undo())
	}
	d.phase = phaseLive
	return nil
}

func (d *Device) start(newTarget func(q *Queue) Target) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	d.mu.Lock()
	d.mu.cancel = cancel
	d.mu.Unlock()
	if err := d.queryAffinity(ctx); err != nil {
		return err
	}
	for i := range d.info.Queues {
		if err := d.startQueue(i, newTarget); err != nil {
			return err
		}
	}
	if err := d.startDev(ctx); err != nil {
		return err
	}
	return d.goLive()
}

// queryAffinity asks for the CPUs of each queue, if its thread is to stay there.
func (d *Device) queryAffinity(ctx context.Context) error {
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
	q := &Queue{dev: d, index: index, left: make(chan struct{})}
	d.queues = append(d.queues, q)
	ready := make(chan error, 1)
	go q.run(newTarget, ready)
	select {
	case err := <-ready:
		return err
	case <-q.left: // it panicked, and Options.Fatal returned
		return fmt.Errorf("queue %d ended", index)
	}
}

// startDev is step 6. A queue that fails meanwhile ends it.
func (d *Device) startDev(ctx context.Context) error {
	if err := d.step("start"); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	err := d.ctl.StartDev(limited, d.info.ID)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// goLive makes the failure of a queue fatal from now on; one that came before is returned.
func (d *Device) goLive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.live = d.mu.failed == nil
	return d.mu.failed
}

// queueFailed is called by a queue whose ring has failed.
func (d *Device) queueFailed(err error) {
	d.mu.Lock()
	live := d.mu.live
	d.mu.failed = err
	d.mu.cancel(err)
	d.mu.Unlock()
	if live {
		d.opts.Fatal(err)
	}
}

// keep remembers an error of giving something back.
func (d *Device) keep(err error) {
	if err != nil {
		d.mu.Lock()
		d.mu.errs = append(d.mu.errs, err)
		d.mu.Unlock()
	}
}

// Stop removes the block device, answering what is outstanding, and gives back what served it:
//
//  1. STOP_DEV, while the queues serve: the driver waits for every request
//  2. the queues leave, each when the driver has given up all its tags and no backend I/O is left
//  3. close ublkcN
//
// It takes as long as requests take to be answered; after timeout it returns a TimeoutError, with the queues
// still serving, and may be called again. Without a Start it only closes. Then the device can be deleted.
func (d *Device) Stop(timeout time.Duration) error {
	if d.phase >= phaseStopped {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if len(d.queues) > 0 {
		if err := d.ctl.StopDev(ctx, d.info.ID); err != nil {
			return err
		}
	}
	for _, q := range d.queues {
		select {
		case <-q.left:
		case <-ctx.Done():
			return fmt.Errorf("stop device %d: queue %d has not left: %w", d.info.ID, q.index, ctx.Err())
		}
	}
	if d.char != nil {
		d.keep(d.char.Close())
	}
	d.phase = phaseStopped
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.mu.errs...)
}

// Delete deletes a device that was stopped or never started. It waits until everybody has closed ublkbN;
// after timeout it returns a TimeoutError, and the device goes when they have. After Delete, or a Start that
// failed, it does nothing.
func (d *Device) Delete(timeout time.Duration) error {
	switch d.phase {
	case phaseDeleted:
		return nil
	case phaseLive:
		return fmt.Errorf("delete device %d: %w (%v)", d.info.ID, ErrState, d.phase)
	}
	if err := d.Stop(timeout); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := d.ctl.DelDev(ctx, d.info.ID); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	d.phase = phaseDeleted
	return nil
}

// undo takes back what was done before a step that failed.
func (d *Device) undo() error {
	return d.Delete(undoTime)
}
