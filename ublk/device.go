package ublk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/guard"
)

// Options of a device.
type Options struct {
	ID     int    // AnyID, or the number to have
	Queues int    // 1 to 4096; the driver makes no more than there are CPUs
	Depth  int    // requests of a queue at a time, 1 to 4096
	Params Params // where requests are copied, Params.MaxIO times Depth is the memory of each queue
	// Private is kept by the driver for the server (ublksrv_flags): a cookie to know the device by.
	Private uint64
	// Recoverable makes a device that outlives its server: requests wait until a new one takes over
	// with Recover, and those that the dead one had are given to the new one again. A driver that
	// cannot is a FeatureError.
	Recoverable bool
	// RecoverTime is how long Recover, and the Start after it, wait for the dead server's last
	// traces to go; 0 = a minute.
	RecoverTime time.Duration

	// Copy has the bytes of requests copied also by a driver that can register them.
	Copy bool

	Tokens  int // backend I/Os of a queue's target: tokens are below it
	Streams int // streams of a queue's target, at a time
	// Pin keeps each queue's thread on the CPUs whose requests it gets.
	Pin bool

	// Fatal is called when a queue cannot go on, by a panic of its target or a failure of its ring;
	// nil = the function Fatal of internal/guard, which ends the process. If it returns, the
	// queue's requests fail from then on.
	Fatal func(error)

	// In tests: fail makes a step fail; bounce takes no request for registered; table, if not 0, is
	// how many places the ring's table has, so that the driver cannot register the requests of
	// other tags.
	fail   func(step string) error
	bounce bool
	table  int
}

// Limits of what a device waits for.
const (
	openTime  = time.Second // for ublkcN to appear and for udev to let go of it
	openPause = 10 * time.Millisecond
	startTime = 30 * time.Second // for START_DEV and END_USER_RECOVERY
	undoTime  = 10 * time.Second // for what a failed step takes back
)

// Device is a device of this process. Its methods are called from one goroutine at a time.
type Device struct {
	kernelDevice
	orders   orders
	failures failures
	queues   []*Queue // set up
	phase    phase
	fetching bool // the queues were told to fetch
	online   bool // START_DEV or END_USER_RECOVERY was sent
}

// kernelDevice is the device as the driver has it: what it is like, its commands, and its node
// ublkcN.
type kernelDevice struct {
	ctl      *Control
	opts     Options
	info     Info
	char     *os.File
	charFD   int
	affinity []unix.CPUSet // by queue, with Options.Pin
}

// orders are what a device tells its queues, which look once a round.
type orders struct {
	hold    atomic.Pointer[hold] // nil: none. The queues give no new requests to their targets
	leaving atomic.Bool          // the same, for good
	parks   bool                 // set before: they do not end then
}

// keepBack says that targets get no new requests.
func (o *orders) keepBack() bool { return o.leaving.Load() || o.hold.Load() != nil }

// phase of a device's life.
type phase int

const (
	phaseAdded phase = iota
	phaseFound       // by Recover; nothing was changed yet
	phaseLive
	phaseLeaving // Leave has begun
	phaseLeft
	phaseStopped
	phaseDeleted
)

func (p phase) String() string {
	return [...]string{"added", "found", "live", "leaving", "left", "stopped", "deleted"}[p]
}

// wrong is the error of a method that does not fit the phase.
func (d *Device) wrong(verb string) error {
	return fmt.Errorf("%s device %d: %w (%v)", verb, d.info.ID, ErrState, d.phase)
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
		o.Fatal = guard.Fatal
	}
	d := &Device{kernelDevice: kernelDevice{ctl: ctl, opts: o}}
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

// Try says what a device made with these options would have, without making it, or why Create would
// refuse them.
func Try(ctl *Control, o Options) (Features, error) {
	o.Params = o.Params.withDefaults()
	if err := o.validate(); err != nil {
		return Features{}, err
	}
	flags, err := ctl.chooseFlags(context.Background(), &o)
	return decodeFeatures(flags), err
}

// chooseFlags is what the driver is asked for, of what it offers.
func (c *Control) chooseFlags(ctx context.Context, o *Options) (uint64, error) {
	offered, err := c.Features(ctx)
	if err != nil {
		return 0, err
	}
	return requestFlags(offered, o)
}

// step fails where a test wants it to.
func (d *kernelDevice) step(name string) error {
	if d.opts.fail == nil {
		return nil
	}
	return d.opts.fail(name)
}

// add is step 1.
func (d *kernelDevice) add() error {
	if err := d.step("add"); err != nil {
		return err
	}
	ctx := context.Background()
	flags, err := d.ctl.chooseFlags(ctx, &d.opts)
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
func (d *kernelDevice) compare() error {
	if err := d.step("compare"); err != nil {
		return err
	}
	flags, err := requestFlags(d.info.Features, &d.opts)
	if err != nil {
		return err
	}
	return missing(flags, d.info.Features.Bits)
}

// openChar is step 3. The node appears a little later than the device, and udev may be the other
// opener that it does not allow.
func (d *kernelDevice) openChar() error {
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
func (d *kernelDevice) setParams() error {
	if err := d.step("params"); err != nil {
		return err
	}
	return d.ctl.SetParams(context.Background(), d.info.ID, d.opts.Params)
}

// Info is the device as the driver made it.
func (d *kernelDevice) Info() Info { return d.info }

// Params are the device's parameters, with defaults in place of zeros.
func (d *kernelDevice) Params() Params { return d.opts.Params }

// BlockPath is the block device, there after Start.
func (d *kernelDevice) BlockPath() string { return BlockPath(d.info.ID) }

// Stop removes the block device, answering what is outstanding, and gives back what served it:
//
//  1. STOP_DEV, while the queues serve: the driver waits for every request
//  2. the queues leave, each when the driver has given up all its tags and no backend I/O is left
//  3. close ublkcN
//
// It takes as long as requests take to be answered; after timeout it returns a TimeoutError, with
// the queues still serving, and may be called again. Without a Start it only closes. Then the
// device can be deleted. A device that was left, or found by Recover and not started, is not this
// process's to stop: ErrState.
//
// Of a recoverable device the driver answers only what the queues have got, and fails the rest,
// also what the kernel writes because of the stop: pages that users have written and not synced are
// lost (force_abort in ublk_drv.c, 6.12 and 6.18). Sync it before.
func (d *Device) Stop(timeout time.Duration) error {
	switch d.phase {
	case phaseStopped, phaseDeleted:
		return nil
	case phaseFound, phaseLeaving, phaseLeft:
		return d.wrong("stop")
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if d.fetching {
		if err := d.ctl.StopDev(ctx, d.info.ID); err != nil {
			return err
		}
	}
	if d.phase == phaseAdded { // a queue that has not come so far hears nothing of STOP_DEV
		d.dismiss()
	}
	if err := d.awaitQueues(ctx, "stop"); err != nil {
		return err
	}
	d.phase = phaseStopped
	return d.closeChar()
}

// dismiss makes the queues leave without the driver's doing.
func (d *Device) dismiss() {
	d.orders.leaving.Store(true)
	d.wake()
}

// awaitQueues waits until all queues have left or are parked.
func (d *Device) awaitQueues(ctx context.Context, verb string) error {
	for _, q := range d.queues {
		select {
		case <-q.left:
		case <-q.parked:
		case <-ctx.Done():
			return fmt.Errorf("%s device %d: queue %d has not left: %w", verb, d.info.ID, q.index, ctx.Err())
		}
	}
	return nil
}

// closeChar closes ublkcN after the queues have left, if they do not park, and returns what went
// wrong in giving back.
func (d *Device) closeChar() error {
	if d.char != nil && !d.orders.parks {
		d.failures.keep(d.char.Close())
	}
	return d.failures.ofGivingBack()
}

// Delete deletes a device that was stopped or never started. It waits until everybody has closed
// ublkbN; after timeout it returns a TimeoutError, and the device goes when they have. After
// Delete, or a Start that failed, it does nothing. A device that was left is not deleted: ErrState.
func (d *Device) Delete(timeout time.Duration) error {
	return d.deleteBy(d.ctl.DelDev, timeout)
}

// DeleteLater is Delete that does not wait for whoever has ublkbN open: the device's number is free
// when they have closed it.
func (d *Device) DeleteLater(timeout time.Duration) error {
	return d.deleteBy(d.ctl.DelDevAsync, timeout)
}

func (d *Device) deleteBy(command func(context.Context, int) error, timeout time.Duration) error {
	switch d.phase {
	case phaseDeleted:
		return nil
	case phaseLive:
		return d.wrong("delete")
	}
	if err := d.Stop(timeout); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := command(ctx, d.info.ID); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	d.phase = phaseDeleted
	return nil
}

// undo takes back what was done before a step that failed. A device that was found, with users
// whose requests wait in it, is left as it was.
func (d *Device) undo() error {
	if !d.fetching {
		for _, q := range d.queues {
			q.fetch <- false
		}
	}
	if d.phase == phaseFound {
		ctx, cancel := context.WithTimeout(context.Background(), undoTime)
		defer cancel()
		return d.quit(ctx)
	}
	return d.Delete(undoTime)
}
