package ublk

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
	"golang.org/x/sys/unix"
)

// Target serves one queue. It is called on the queue's thread only, and each of its requests is
// answered with one Queue.Commit, from within any of these methods. None of them may block.
type Target interface {
	// Request is a new request on tag. Its operation is one of the five Op constants.
	Request(tag uint16, d Desc)
	// EndIO ends a backend I/O of the queue's loop, as uring.Handler says.
	EndIO(token uint32, err error)
	// Drain is called once a round and after a wake-up, as uring.Handler says.
	Drain()
}

// Desc is a request as the driver describes it.
type Desc struct {
	Op        uint8
	Flags     uint32 // the Flag constants; the operation's byte is in it too
	Sector    uint64 // of 512 bytes
	NrSectors uint32
}

// Offset is where the request begins, in bytes. Not for FLUSH, which has none (its sector is
// 2^64-1).
func (d Desc) Offset() int64 { return int64(d.Sector) << sectorShift }

// Length is the request's size in bytes; 0 for FLUSH. For DISCARD and WRITE_ZEROES it may be larger
// than any buffer.
func (d Desc) Length() int64 { return int64(d.NrSectors) << sectorShift }

// FUA says that the request is to be durable when it is answered.
func (d Desc) FUA() bool { return d.Flags&FlagFUA != 0 }

// hasData: the request's bytes pass through the tag's buffer.
func (d Desc) hasData() bool { return d.Op == OpRead || d.Op == OpWrite }

// known says whether a target has to do with the request. The driver sends no others to a device
// without zones.
func (d Desc) known(maxIO int) bool {
	switch d.Op {
	case OpRead, OpWrite:
		return d.Length() <= int64(maxIO)
	case OpFlush, OpDiscard, OpWriteZeroes:
		return true
	}
	return false
}

// result is what the driver is told: the full length of a READ or WRITE (0 for what carries no
// data), or an errno. Nothing in between: some kernels take a part for the whole (7.3,
// __ublk_complete_rq), others send a WRITE answered with 0 again for ever. EAGAIN would be taken
// for "try without waiting" and is EIO.
func (d Desc) result(err error) int32 {
	if err == nil {
		if d.hasData() {
			return int32(d.Length())
		}
		return 0
	}
	var errno unix.Errno
	if errors.As(err, &errno) && errno != 0 && errno != unix.EAGAIN {
		return -int32(errno)
	}
	return -int32(unix.EIO)
}

// owner of a tag.
type owner uint8

const (
	withDriver owner = iota
	withTarget
	kept // a request that came when the queue was held or leaving: served after Release, or by the next server
	gone // the driver has given the tag up
)

// rest of a queue that is to leave.
type rest uint8

const (
	atWork   rest = iota
	answered      // nothing is at work; the last answers go with the next round
	atRest
)

// Queue is one of a device's queues. Its methods are called on its thread, but for Index, Depth and
// those that its Loop allows.
type Queue struct {
	dev      *kernelDevice
	orders   *orders
	failures *failures
	index    int
	loop     *uring.Loop
	target   Target

	descriptors
	buffers
	owners []owner // by tag
	live   int     // tags fetched that are not gone
	nrKept int     // tags whose owner is kept
	held   *hold   // the one that the queue has obeyed
	rest   rest    // when the device is left
	stages
}

// stages are how a queue's thread and its device tell each other how far they are.
type stages struct {
	fetch   chan bool     // true: fetch and serve; false: leave
	fetched chan struct{} // closed when the driver has been given all tags, or as many as the queue can
	others  chan struct{} // closed when all queues of the device have come so far
	parked  chan struct{} // closed when the queue is left as it is, until the process ends
	left    chan struct{} // closed when the thread has given everything back
}

func newStages() stages {
	return stages{fetch: make(chan bool, 1), fetched: make(chan struct{}), others: make(chan struct{}), parked: make(chan struct{}), left: make(chan struct{})}
}

// Index is the queue's number.
func (q *Queue) Index() int { return q.index }

// Depth is the number of tags.
func (q *Queue) Depth() int { return q.dev.info.Depth }

// Loop is the queue's event loop, for backend I/O and wake-ups.
func (q *Queue) Loop() *uring.Loop { return q.loop }

// Commit answers tag's request: with nil as done whole, otherwise with the errno in err, or EIO if
// there is none. The tag may be called with its next request from the next round on. It is sent
// with the next submission.
func (q *Queue) Commit(tag uint16, err error) {
	if q.owners[tag] != withTarget {
		panic(fmt.Sprintf("commit of tag %d, which the target does not have", tag))
	}
	err = q.leaveBounce(tag, err)
	q.issue(ioCommitAndFetchReq, tag, q.desc(tag).result(err))
}

// issue gives tag to the driver.
func (q *Queue) issue(op uint32, tag uint16, result int32) {
	q.owners[tag] = withDriver
	inEntry, inCommand := q.place(tag)
	cmd := ioCmd{qID: uint16(q.index), tag: tag, result: result, addr: inCommand}
	q.loop.Command(uint32(tag), q.dev.charFD, op, inEntry, bytesOf(&cmd))
}

func addressOf(b []byte) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}

// events is the queue as its loop sees it.
type events Queue

func (e *events) EndIO(token uint32, err error) { e.target.EndIO(token, err) }

// Drain also serves the requests that wait for the bounce buffer: all that can have it in turn, as
// nobody asks for another round when one of them is answered at once. After each the target drains
// again, as after any new request. What was kept while the device was held comes before that. Then
// it looks whether a queue that is to leave, or to be held, can.
func (e *events) Drain() {
	(*Queue)(e).serveKept()
	e.target.Drain()
	for (*Queue)(e).nextBounce() {
		e.target.Drain()
	}
	if e.orders.leaving.Load() {
		(*Queue)(e).leave()
		return
	}
	(*Queue)(e).rests()
}

// Command is the driver's answer to issue: the tag's next request, or the end.
func (e *events) Command(id uint32, res int32) {
	q, tag := (*Queue)(e), uint16(id)
	switch {
	case res == 0:
		q.request(tag)
	case res == -int32(unix.ENODEV):
		q.abandoned(tag)
	default: // the command was refused: a mistake here, which no repetition mends
		q.loop.Fail(fmt.Errorf("queue %d tag %d: fetch: %w", q.index, tag, unix.Errno(max(0, -res))))
	}
}

// request hands tag's request to the target.
func (q *Queue) request(tag uint16) {
	if q.orders.keepBack() {
		q.owners[tag] = kept
		q.nrKept++
		return
	}
	q.owners[tag] = withTarget
	q.serveTag(tag)
}

// serveTag hands it over, with its bytes where the target can have them.
func (q *Queue) serveTag(tag uint16) {
	d := q.desc(tag)
	if !d.known(q.dev.info.MaxIO) {
		q.Commit(tag, unix.EOPNOTSUPP)
		return
	}
	switch {
	case !q.needsBounce(d):
		q.target.Request(tag, d)
	case q.bounceIsFree():
		q.serveBounced(tag, d)
	default:
		q.buffers.waiting = append(q.buffers.waiting, tag)
	}
}

// abandoned: the driver has no more requests for tag. After the last tag the queue leaves.
func (q *Queue) abandoned(tag uint16) {
	q.owners[tag] = gone
	q.live--
	if q.live == 0 {
		q.loop.Stop()
	}
}

// busy says that the target has requests at work, or that backend I/O is under way.
func (q *Queue) busy() bool { return slices.Contains(q.owners, withTarget) || !q.loop.Idle() }

// leave looks whether the queue, which gives no more requests to its target, can rest.
func (q *Queue) leave() {
	switch {
	case q.busy():
	case q.rest == atWork:
		q.rest = answered
		q.loop.Wake()
	case q.rest == answered:
		q.rest = atRest
		if q.orders.parks {
			close(q.parked)
		} else {
			q.loop.Stop()
		}
	}
}

// run is the queue's goroutine. It sends the outcome of the set-up on ready, then waits for the
// word to fetch, and serves until the driver has given up all tags or the device is left. It stays
// locked, so that the thread ends with it.
func (q *Queue) run(newTarget func(*Queue) Target, ready chan<- error) {
	runtime.LockOSThread()
	nameThread(fmt.Sprintf("queue %d", q.index))
	defer close(q.left)
	defer q.tearDown()
	defer guard.Guard(fmt.Sprintf("queue %d", q.index), q.panicked)
	err := q.setUp(newTarget)
	ready <- err
	if err != nil || !<-q.fetch {
		return
	}
	if err := q.serve(); err != nil {
		err = fmt.Errorf("queue %d: %w", q.index, err)
		if q.failures.add(err) {
			q.dev.opts.Fatal(err)
		}
	}
}

// panicked is told of a panic on the queue's thread.
func (q *Queue) panicked(err error) {
	q.failures.add(err)
	q.dev.opts.Fatal(err)
}

// serve fetches all tags and runs the loop. The descriptors are mapped after the tags were fetched
// and before the first request is looked at: the driver lets only one process map them, and one
// before 6.15 that saw START_USER_RECOVERY and a mapping, but no FETCH, never lets another (ub->mm,
// ublk_drv.c, 6.12).
func (q *Queue) serve() error {
	q.live = len(q.owners)
	for tag := range q.owners {
		q.issue(ioFetchReq, uint16(tag), 0)
	}
	q.loop.Submit()
	if err := q.loop.Err(); err != nil {
		return err
	}
	q.hasFetched()
	if err := q.descriptors.mmap(q.dev, q.index); err != nil {
		return err
	}
	return q.loop.Run()
}

// hasFetched says that the queue issues no FETCH any more.
func (q *Queue) hasFetched() {
	select {
	case <-q.fetched:
	default:
		close(q.fetched)
	}
}

// awaitOthers waits, in a queue whose tags the driver has, until no queue of the device fetches any
// more. The last FETCH of a device has the driver forget which commands were cancelled
// (ublk_reset_io_flags, ublk_drv.c, 6.18). Those of a ring that was closed before are freed, and
// STOP_DEV or the first request uses them: a kernel before 7.1 does not survive that.
func (q *Queue) awaitOthers() {
	if q.live > 0 {
		q.hasFetched()
		<-q.others
	}
}

// setUp makes what the queue needs, on its thread. tearDown takes back what there is.
func (q *Queue) setUp(newTarget func(*Queue) Target) error {
	info, opts := &q.dev.info, &q.dev.opts
	if err := q.pin(); err != nil {
		return err
	}
	q.owners = make([]owner, info.Depth)
	if err := q.buffers.make(q.dev, q.index); err != nil {
		return err
	}
	var err error
	q.loop, err = uring.NewLoop((*events)(q), uring.LoopOptions{
		Tokens: opts.Tokens, Streams: opts.Streams, Commands: info.Depth, Slots: q.slots(),
	})
	if err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	if q.target = newTarget(q); q.target == nil {
		return fmt.Errorf("queue %d: no target", q.index)
	}
	return nil
}

// pin keeps the thread on the CPUs that the queue serves, if that is wanted.
func (q *Queue) pin() error {
	if !q.dev.opts.Pin {
		return nil
	}
	set := q.dev.affinity[q.index]
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("queue %d: set affinity: %w", q.index, err)
	}
	return nil
}

// tearDown gives back descriptors, ring and buffers, in this order, when that is safe: nothing
// refers to ublkcN afterwards. The buffers stay if the driver has tags yet, because the loop has
// failed or the device is left: it may copy into them until the thread has ended.
func (q *Queue) tearDown() {
	q.awaitOthers()
	q.failures.keep(q.descriptors.munmap())
	if q.loop != nil {
		q.failures.keep(q.loop.Close())
	}
	if q.live == 0 {
		q.failures.keep(q.buffers.free())
	}
}
