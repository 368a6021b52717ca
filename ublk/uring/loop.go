package uring

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Handler is what a loop calls, always on the loop's thread and never from within one of the loop's
// own methods.
type Handler interface {
	// EndIO ends the backend I/O with this token; from here on the token may be used again. err
	// is nil, a unix.Errno, io.ErrUnexpectedEOF or io.ErrShortWrite; of a Stream, it may be ErrLost.
	EndIO(token uint32, err error)
	// Drain is called once a round, after the completions: work that other threads posted before
	// Wake, and whatever the handler put off.
	Drain()
}

// CommandHandler is a Handler that also issues commands of a driver.
type CommandHandler interface {
	Handler
	// Command ends the command with this id; res is the kernel's result, negative for -errno.
	Command(id uint32, res int32)
}

// LoopOptions size a loop. Everything is allocated at the start.
type LoopOptions struct {
	// Tokens is the number of backend I/Os that the handler may have: tokens are below it.
	Tokens int
	// Slots is the number of places for buffers that a driver registers with the ring, see
	// Registered.
	Slots int
	// Streams is the most streams at a time.
	Streams int
	// Commands is the most commands outstanding. Without a CommandHandler it is 0.
	Commands int
	// BigSQE makes room for payloads of up to 80 bytes in a command, instead of 16.
	BigSQE bool
}

// bestEffort is the class of I/O priorities that anybody may use, IOPRIO_CLASS_BE
// (include/uapi/linux/ioprio.h), which has eight levels. What has no priority set counts as another
// one.
const bestEffort = 2 << 13

// loops counts those that were made, so that they differ in the level.
var loops atomic.Uint32

// Loop serves one locked thread. See the package comment.
type Loop struct {
	backend
	waker    *waker
	commands CommandHandler // handler, if it is one
	stopped  bool
	// abandoned: Run does not wait for what is outstanding.
	abandoned bool
}

// NewLoop makes a loop for the calling goroutine, which is locked to its thread and stays so until
// Close. If h is a CommandHandler, it gets the ends of commands.
func NewLoop(h Handler, o LoopOptions) (*Loop, error) {
	if o.Tokens < 0 || o.Commands < 0 || o.Slots < 0 || o.Streams < 0 {
		return nil, fmt.Errorf("make loop: negative size in %+v", o)
	}
	l := &Loop{backend: backend{handler: h, ops: make([]operation, o.Tokens), streams: make([]*Stream, o.Streams)}}
	l.alonePriority = bestEffort | uint16(loops.Add(1)%8)
	l.commands, _ = h.(CommandHandler)
	if _, err := zeros(); err != nil {
		return nil, err
	}
	if err := touchSignalStack(); err != nil {
		return nil, err
	}
	// An entry for each thing that can be outstanding, twice for commands because each may be
	// cancelled, one of each kind for streams, and the wake-up: the submission queue can then never be
	// full, and the completion queue never overflow.
	entries := o.Tokens + 2*o.Commands + streamKinds*o.Streams + 1
	ring, err := NewRing(Options{Entries: uint32(entries), BigSQE: o.BigSQE, Slots: uint32(o.Slots)})
	if err != nil {
		return nil, err
	}
	l.ring = ring
	if l.waker, err = newWaker(); err != nil {
		return nil, errors.Join(err, ring.Close())
	}
	l.keep(l.waker.arm(ring))
	return l, nil
}

// Run is the loop: it returns nil after Stop, when no backend I/O is left, and an error when the
// ring has failed. Then requests are lost that nobody can answer any more, and the process should
// end.
//
// One system call a round. While backend I/O is in flight the wait is short and the thread keeps
// its processor; see Ring.Enter. Rounds fill by themselves when the CPU is what is short: on one of
// 1 GIPS a request of 4 KiB at depth 32 takes 0.26 system calls (1.3 to 1.7 on one that mostly
// waits), and 23.6 us for a read and 24.3 for a write of all that the machine does, the user's
// program included, where dm-clone's take 16.2 and 16.8. 14.8 us of them are this thread's, mostly
// the kernel's second pass through the block layer and io_uring; Go code is 2.3 (6.18,
// TestBenchCounts and a profile in the guest; built with that profile it would be 0.2 less).
func (l *Loop) Run() error {
	for !l.finished() {
		l.round()
	}
	if l.err != nil {
		return fmt.Errorf("run event loop: %w", l.err)
	}
	return nil
}

// round is one turn of the loop.
func (l *Loop) round() {
	l.submitAndWait()
	l.completions()
	l.handler.Drain()
}

func (l *Loop) finished() bool { return l.err != nil || l.stopped && (l.abandoned || l.Idle()) }

// Batched says that completions come only from the call with which a round begins: all that
// Handler.EndIO is called with in a round had ended before the first of them.
func (l *Loop) Batched() bool { return l.ring.flags&setupDeferTaskrun != 0 }

// submitAndWait submits what the last round prepared and waits for something to do.
func (l *Loop) submitAndWait() {
	l.sendAll()
	wait := uint32(1)
	if !l.done.empty() {
		wait = 0
	}
	err := l.ring.Enter(wait, l.outstanding > 0)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EBUSY) {
		return // short of memory or of completion places: what is ready is taken, then it is tried again
	}
	l.keep(err)
}

// completions takes everything that is ready.
func (l *Loop) completions() {
	for c, ok := l.ring.Next(); ok; c, ok = l.ring.Next() {
		l.classify(c)
	}
	l.endDone()
}

// User data of an entry: what it is, and whose.
//
//	 63        56 55                              32 31                             0
//	+------------+----------------------------------+--------------------------------+
//	|   class    |                0                 |        token or id             |
//	+------------+----------------------------------+--------------------------------+
//	  1 backend I/O                                   token of the operation
//	  2 command of the driver                         id given by the handler
//	  3 wake-up                                       0
//	  4 cancellation of a command                     id of the command
//	  5 of a stream                                   the stream's id, and what it is for
const (
	userClass   = 56
	userBackend = 1 << userClass
	userCommand = 2 << userClass
	userWake    = 3 << userClass
	userCancel  = 4 << userClass
	userStream  = 5 << userClass
)

// classify hands a completion to whom it belongs. Nothing else looks at user data.
func (l *Loop) classify(c Completion) {
	id := uint32(c.UserData)
	switch c.UserData >> userClass << userClass {
	case userBackend:
		l.backendDone(id, c.Res)
	case userCommand:
		l.commands.Command(id, c.Res)
	case userWake:
		l.woken(c.Res)
	case userStream:
		l.streamDone(id, c.Res)
	case userCancel: // the command's own completion says how it ended
	default:
		l.keep(fmt.Errorf("unknown user data %#x", c.UserData))
	}
}

// woken arms the wake-up again. The flag is cleared before the round's Drain.
func (l *Loop) woken(res int32) {
	if res < 0 && res != -int32(unix.EINTR) && res != -int32(unix.EAGAIN) && res != -int32(unix.ECANCELED) {
		l.keep(fmt.Errorf("read eventfd: %w", unix.Errno(-res)))
		return
	}
	l.waker.rung.Store(false)
	l.keep(l.waker.arm(l.ring))
}

// GivenUp says that an entry with this result never began, that nobody has asked for that, and that
// it should be issued again; times counts how often it was. An entry that would block goes to a
// thread that the kernel makes for it. If the submitter has a signal pending just then, the thread
// cannot be made, and after three attempts the kernel cancels everything that waits for it
// (io_should_retry_thread, io-wq.c, 6.10 to 6.18); the Go runtime signals its threads all the time.
// Where threads are not to be had at all (a limit of a control group) it ends after a thousand
// times.
func GivenUp(res int32, times int) bool {
	return res == -int32(unix.ECANCELED) && times < givenLimit
}

// givenLimit is how often an entry that never began is issued again.
const givenLimit = 1000

// Wake makes the loop do a round soon, with its Drain. It may be called from any thread, does not
// block and does not allocate; many calls before the loop has woken are one. After Close it does
// nothing.
func (l *Loop) Wake() { l.waker.ring() }

// Submit hands the kernel what was prepared, without waiting for anything. Run does so by itself;
// this is for what has to come in between. Called on the loop's thread, outside of Run.
func (l *Loop) Submit() {
	l.sendAll()
	err := l.ring.Enter(0, false)
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EBUSY) { // Run tries again
		l.keep(err)
	}
}

// Abandon lets Run return though backend I/O is outstanding that may never end. Its memory is the
// kernel's for as long as it lasts: it must stay mapped until the process ends. A registered file
// is let go of: nothing of that is outstanding. Called on the loop's thread.
func (l *Loop) Abandon() {
	l.keep(l.ring.unfix())
	l.stopped, l.abandoned = true, true
}

// Stop lets Run return when all backend I/O has completed. Called on the loop's thread. Commands
// outstanding are not waited for.
func (l *Loop) Stop() { l.stopped = true }

// Fail ends Run with err, as a failure of the ring does. Called on the loop's thread.
func (l *Loop) Fail(err error) { l.keep(err) }

// Command issues a driver's command op on the descriptor fd; payload is copied, addr is the
// entry's. It ends with one call of CommandHandler.Command with id.
func (l *Loop) Command(id uint32, fd int, op uint32, addr uint64, payload []byte) {
	l.keep(l.ring.Command(fd, op, addr, payload, userCommand|uint64(id)))
}

// CancelCommand asks the kernel to give up the command with this id, which ends in any case with
// its own call of CommandHandler.Command. Once for each command.
func (l *Loop) CancelCommand(id uint32) {
	l.keep(l.ring.Cancel(userCommand|uint64(id), userCancel|uint64(id)))
}

// Close gives back the ring, the wake-up and the streams that are idle. Called on the loop's thread,
// after Run. A registered file is let go of here if no backend I/O is outstanding, and otherwise by
// the kernel in its own time.
func (l *Loop) Close() error {
	var err error
	if l.Idle() {
		err = l.ring.unfix()
	}
	err = errors.Join(err, l.ring.Close(), l.waker.close())
	for _, s := range l.streams {
		if s != nil && s.Idle() {
			err = errors.Join(err, s.Close())
		}
	}
	return err
}
