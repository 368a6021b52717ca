package main

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/ublk"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
)

// This file is where the driver's side (package ublk) and the core (package clone) meet: neither knows
// the other.

// backend gives a lane's I/O to its thread's loop. It is the clone.Backend of queues and of the hydrator.
type backend struct {
	loop   *uring.Loop // set on the lane's thread before its first request, by attach
	users  userData    // nil: the hydrator's, which has no requests
	source *source
	from   *uring.Port // to the source that was read last
	dest   *sharedFile
	to     *uring.Port // to the destination
	lanes  int         // that share source and destination
	gate   gate
	// reading is what a read of the source has taken, by token.
	reading  []sourceRead
	answered atomic.Int64 // when the last of them has ended, see clock
	givingUp bool         // those in line
	// looked is the source that was looked at in this round, and what was found.
	looked  *openSource
	verdict error
}

// sharedFile is a file that the loops of all lanes use, and how many requests each of its queues takes at a time; 0: any
// number.
type sharedFile struct {
	*uring.File
	depth, queues int
	// unit is what the file gives up space in, in bytes, if zeros that are written take some; else 0.
	unit int64
}

// newSharedFile is of an open source or destination.
func newSharedFile(d *blockdev.Device) (*sharedFile, error) {
	f, err := uring.NewFile(d.File())
	depth, queues := d.Depth()
	return &sharedFile{File: f, depth: depth, queues: queues}, err
}

// share is how many I/Os each of a number of lanes gives to the file at a time: together twice what it takes, so that
// it always has the next one (uring.Port has the figures). A lane is one thread, which reaches one queue at a time.
func (f *sharedFile) share(lanes int) int {
	if f.depth == 0 {
		return 0
	}
	return max(1, 2*f.depth*min(f.queues, lanes)/lanes)
}

// newBackend is for one of a number of lanes.
func newBackend(source *source, dest *sharedFile, tokens, lanes int) *backend {
	return &backend{source: source, dest: dest, reading: make([]sourceRead, tokens), lanes: lanes}
}

// userData are the bytes of requests, by tag: a ublk.Queue.
type userData interface {
	Data(tag uint16) uring.Data
	Fetch(tag uint16, at int64, dst []byte) error
	Store(tag uint16, at int64, src []byte) error
	Clear(tag uint16, at, n int64) error
}

// attach joins the backend to its thread's loop.
func (b *backend) attach(loop *uring.Loop) {
	b.loop = loop
	b.to = loop.OpenFixed(b.dest.File, b.dest.share(b.lanes))
}

// wake has the lane's loop go round.
func (b *backend) wake() { b.loop.Wake() }

func (b *backend) bytes(d clone.Data) uring.Data {
	if d.Request == nil {
		return uring.Memory(d.Buf)
	}
	return b.users.Data(uint16(d.Request.Tag)).Slice(d.At, d.Len)
}

// port is the way to a source.
func (b *backend) port(s *openSource) *uring.Port {
	if b.from == nil || b.from.File() != s.file.File {
		b.from = b.loop.Open(s.file.File, b.most(s.file.share(b.lanes)))
	}
	return b.from
}

func (b *backend) ReadSource(token uint32, off int64, data clone.Data, alone bool) {
	s := b.source.take()
	r := &b.reading[token]
	r.from.Store(s)
	if s.refusal(b.users == nil) != nil {
		b.loop.Refuse(token, unix.ENODEV) // ended tells why
		return
	}
	r.since.Store(clock())
	switch {
	case alone:
		b.port(s).ReadAlone(token, off, b.bytes(data))
	default:
		b.port(s).Read(token, off, b.bytes(data))
	}
}

// ended is called first with the end of an I/O. It gives an error its side. Of a read of the source it says whether the bytes
// count, and lets the source go.
func (b *backend) ended(token uint32, err error) error {
	r := &b.reading[token]
	s := r.from.Load()
	if s == nil {
		if err != nil {
			err = &sideError{blockdev.Dest, err}
		}
		return err
	}
	r.from.Store(nil)
	if r.since.Swap(0) != 0 && !b.givingUp {
		b.answered.Store(clock())
	}
	if why := s.refusal(b.users == nil); err != nil && why != nil {
		err = why
	} else if s.device != nil {
		err = cmp.Or(b.look(s), err)
	}
	s.done()
	if err != nil {
		err = &sideError{blockdev.Source, err}
	}
	return err
}

// look says whether what was read from s counts. One look is enough for all reads that end in one round, as all have ended
// before it.
func (b *backend) look(s *openSource) error {
	if b.looked != s || !b.loop.Batched() {
		b.looked, b.verdict = s, s.look()
	}
	return b.verdict
}

// newRound is called once a round, after the completions.
func (b *backend) newRound() {
	b.looked = nil
	b.giveUp()
}

func (b *backend) ReadDest(token uint32, off int64, data clone.Data) {
	b.to.Read(token, off, b.bytes(data))
}

func (b *backend) WriteDest(token uint32, off int64, data clone.Data, durable bool) {
	b.to.Write(token, off, b.bytes(data), durable)
}

func (b *backend) ZeroDest(token uint32, off, length int64, unmap bool) {
	b.to.Zero(token, off, length, unmap)
}

func (b *backend) DiscardDest(token uint32, off, length int64) {
	b.to.Discard(token, off, length)
}

func (b *backend) FlushDest(token uint32) { b.to.Flush(token) }

func (b *backend) Fetch(r *clone.Request, at int64, dst []byte) error {
	return b.users.Fetch(uint16(r.Tag), at, dst)
}

func (b *backend) Store(r *clone.Request, at int64, src []byte) error {
	return b.users.Store(uint16(r.Tag), at, src)
}

func (b *backend) Clear(r *clone.Request, at, n int64) error {
	return b.users.Clear(uint16(r.Tag), at, n)
}

// frontend is the ublk.Target of one queue: it turns the driver's requests into the lane's, and the lane's
// answers into commits. All of it runs on the queue's thread.
type frontend struct {
	queue    *ublk.Queue
	lane     *clone.Lane
	backend  *backend
	requests []clone.Request // by tag
	log      zerolog.Logger  // of failed requests; never blocks
	failed   func(*clone.Request, error)
	pulse    pulse

	// After deaths in a row, see caution. Set before the first request; the rest is the queue's thread's.
	caution *caution
	held    []*clone.Request // wait for their turn, in order
	careful *clone.Request   // has it
	refused func(*clone.Request)
}

// failureBurst bounds the failed requests that a queue logs in a second.
const failureBurst = 10

// newFrontend makes the target of a queue of the given depth and its lane; failed is told of requests that
// fail. attach follows on the queue's thread.
func newFrontend(core *clone.Core, source *source, dest *sharedFile, lanes, depth int, buffers [][]byte, log zerolog.Logger,
	failed func(*clone.Request, error), refused func(*clone.Request)) *frontend {
	f := &frontend{
		backend:  newBackend(source, dest, queueOps(depth), lanes),
		requests: make([]clone.Request, depth),
		log:      log.Sample(&zerolog.BurstSampler{Burst: failureBurst, Period: time.Second}),
		failed:   failed,
		held:     make([]*clone.Request, 0, depth),
		refused:  refused,
	}
	f.backend.gate.numbers = make([]uint64, depth)
	for tag := range f.requests {
		f.requests[tag].Tag = tag
		f.requests[tag].End = f.end
	}
	f.lane = core.NewLane(clone.LaneConfig{
		Backend: f.backend,
		Wake:    func() { f.backend.loop.Wake() },
		Ops:     queueOps(depth),
		Buffers: buffers,
	})
	return f
}

// queueOps is how many backend I/Os a queue may have: one for each request, and as many again for READs
// that fall into parts.
func queueOps(depth int) int { return 2 * depth }

// attach joins the frontend to its queue.
func (f *frontend) attach(q *ublk.Queue) ublk.Target {
	f.queue, f.backend.users = q, q
	f.backend.attach(q.Loop())
	return f
}

// operations of the driver as the core's.
var operations = [...]clone.Op{
	ublk.OpRead:        clone.OpRead,
	ublk.OpWrite:       clone.OpWrite,
	ublk.OpFlush:       clone.OpFlush,
	ublk.OpDiscard:     clone.OpDiscard,
	ublk.OpWriteZeroes: clone.OpWriteZeroes,
}

// Request is a new request on tag.
func (f *frontend) Request(tag uint16, d ublk.Desc) {
	r := &f.requests[tag]
	r.Op, r.FUA, r.NoUnmap = operations[d.Op], d.FUA(), d.Flags&ublk.FlagNoUnmap != 0
	r.Off, r.Len = 0, 0
	if r.Op != clone.OpFlush {
		r.Off, r.Len = d.Offset(), d.Length()
	}
	if f.caution != nil || f.backend.gate.shut || f.backend.gate.refuse != nil {
		f.held = append(f.held, r)
		return // Drain is next
	}
	f.serve(r)
}

func (f *frontend) serve(r *clone.Request) {
	f.backend.gate.begin(r.Tag)
	deadly(r.Off, r.Len)
	f.lane.Submit(r)
}

// serveHeld serves what waits, as far as caution allows.
func (f *frontend) serveHeld() {
	for len(f.held) > 0 {
		r := f.held[0]
		may := f.caution.ask(r)
		if may == later {
			return
		}
		f.held = slices.Delete(f.held, 0, 1)
		if may == refusal {
			f.refused(r)
			f.answer(r, errCondemned)
			continue
		}
		if !f.caution.over.Load() {
			f.careful = r
		}
		f.serve(r)
	}
	if f.careful == nil && f.caution.done() {
		f.caution = nil
	}
}

// serveGate serves what was held while the gate was shut, or refuses it.
func (f *frontend) serveGate() {
	refuse := f.backend.gate.refuse
	for _, r := range f.held {
		if refuse != nil {
			f.answer(r, refuse)
		} else {
			f.serve(r)
		}
	}
	clear(f.held)
	f.held = f.held[:0]
}

// end is the end of a request that was served.
func (f *frontend) end(r *clone.Request, err error) {
	f.backend.gate.end(r.Tag)
	f.answer(r, err)
}

// answer answers the driver.
func (f *frontend) answer(r *clone.Request, err error) {
	if err != nil {
		f.log.Warn().Err(err).Stringer("op", r.Op).Int64("offset", r.Off).Int64("length", r.Len).Msg("request failed")
		f.failed(r, err)
	}
	if f.careful == r && f.careful != nil {
		f.careful = nil
		f.caution.answered(r)
	}
	f.queue.Commit(uint16(r.Tag), forUser(err))
}

// wake has the queue's loop go round.
func (f *frontend) wake() { f.backend.wake() }

// alive says whether the queue's loop has gone round since it was called last.
func (f *frontend) alive() bool { return f.pulse.ask(f.wake) }

// served is how many requests were served.
func (f *frontend) served() int64 { return f.lane.Requests() }

// Complete is the end of a backend I/O.
func (f *frontend) Complete(token uint32, err error) {
	f.lane.Complete(token, f.backend.ended(token, err))
}

// Drain is called once a round.
func (f *frontend) Drain() {
	f.pulse.answer()
	f.backend.newRound()
	f.lane.Drain()
	open := f.backend.obey(f.backend.gate.atWork)
	switch {
	case f.backend.gate.shut:
	case f.caution != nil && f.backend.gate.refuse == nil:
		f.serveHeld()
	case open || f.backend.gate.refuse != nil:
		f.serveGate()
	}
}
