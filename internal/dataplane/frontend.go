package dataplane

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
	"github.com/ublk-clone/ublk-clone/internal/faults"
	"github.com/ublk-clone/ublk-clone/ublk"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
)

// This file is where the driver's side (package ublk) and the core (package clone) meet: neither
// knows the other.

// Backend gives a lane's I/O to its thread's loop. It is the clone.Backend of queues and of the
// hydrator.
type Backend struct {
	loop   *uring.Loop // set on the lane's thread before its first request, by attach
	Users  userData    // nil: the hydrator's, which has no requests
	source *Source
	from   *uring.Port // to the source that was read last
	Dest   *File
	to     *uring.Port // to the destination
	lanes  int         // that share source and destination
	gate   gate
	// Reading is what a read of the source has taken, by token.
	Reading  []SourceRead
	Answered atomic.Int64 // when the last of them has ended, see clock
	givingUp bool         // those in line
	// looked is the source that was looked at in this round, and what was found.
	looked  *OpenSource
	verdict error
}

// File is a file that the loops of all lanes use, and how many requests each of its queues takes at
// a time; 0: any number.
type File struct {
	*uring.File
	Depth, Queues int
	// Unit is what the file gives up space in, in bytes, if zeros that are written take some; else
	// 0.
	Unit int64
}

// NewFile is of an open source or destination.
func NewFile(d *blockdev.Device) (*File, error) {
	f, err := uring.NewFile(d.File())
	depth, queues := d.Depth()
	return &File{File: f, Depth: depth, Queues: queues}, err
}

// share is how many I/Os each of a number of lanes gives to the file at a time: together twice what
// it takes, so that it always has the next one (uring.Port has the figures). A lane is one thread,
// which reaches one queue at a time.
func (f *File) share(lanes int) int {
	if f.Depth == 0 {
		return 0
	}
	return max(1, 2*f.Depth*min(f.Queues, lanes)/lanes)
}

// NewBackend is for one of a number of lanes.
func NewBackend(source *Source, dest *File, tokens, lanes int) *Backend {
	return &Backend{source: source, Dest: dest, Reading: make([]SourceRead, tokens), lanes: lanes}
}

// userData are the bytes of requests, by tag: a ublk.Queue.
type userData interface {
	Data(tag uint16) uring.Data
	Fetch(tag uint16, at int64, dst []byte) error
	Store(tag uint16, at int64, src []byte) error
	Clear(tag uint16, at, n int64) error
}

// Attach joins the backend to its thread's loop.
func (b *Backend) Attach(loop *uring.Loop) {
	b.loop = loop
	b.to = loop.OpenFixed(b.Dest.File, b.Dest.share(b.lanes))
}

// Wake has the lane's loop go round. Its thread must be there.
func (b *Backend) Wake() { b.loop.Wake() }

func (b *Backend) bytes(d clone.Data) uring.Data {
	if d.Request == nil {
		return uring.Memory(d.Buf)
	}
	return b.Users.Data(uint16(d.Request.Tag)).Slice(d.At, d.Len)
}

// port is the way to a source.
func (b *Backend) port(s *OpenSource) *uring.Port {
	if b.from == nil || b.from.File() != s.File.File {
		b.from = b.loop.Open(s.File.File, b.Most(s.File.share(b.lanes)))
	}
	return b.from
}

func (b *Backend) ReadSource(token uint32, off int64, data clone.Data, alone bool) {
	s := b.source.Take()
	r := &b.Reading[token]
	r.From.Store(s)
	if s.Refusal(b.Users == nil) != nil {
		b.loop.Refuse(token, unix.ENODEV) // ended tells why
		return
	}
	r.Since.Store(Clock())
	switch {
	case alone:
		b.port(s).ReadAlone(token, off, b.bytes(data))
	default:
		b.port(s).Read(token, off, b.bytes(data))
	}
}

// Ended is called first with the end of an I/O. It gives an error its side. Of a read of the source
// it says whether the bytes count, and lets the source go.
func (b *Backend) Ended(token uint32, err error) error {
	r := &b.Reading[token]
	s := r.From.Load()
	if s == nil {
		if err != nil {
			err = &SideError{blockdev.Dest, err}
		}
		return err
	}
	r.From.Store(nil)
	if r.Since.Swap(0) != 0 && !b.givingUp {
		b.Answered.Store(Clock())
	}
	if why := s.Refusal(b.Users == nil); err != nil && why != nil {
		err = why
	} else if s.Device != nil {
		err = cmp.Or(b.look(s), err)
	}
	s.Done()
	if err != nil {
		err = &SideError{blockdev.Source, err}
	}
	return err
}

// look says whether what was read from s counts. One look is enough for all reads that end in one
// round, as all have ended before it.
func (b *Backend) look(s *OpenSource) error {
	if b.looked != s || !b.loop.Batched() {
		b.looked, b.verdict = s, s.Look()
	}
	return b.verdict
}

// NewRound is called once a round, after the completions.
func (b *Backend) NewRound() {
	b.looked = nil
	b.giveUp()
}

func (b *Backend) ReadDest(token uint32, off int64, data clone.Data) {
	b.to.Read(token, off, b.bytes(data))
}

func (b *Backend) WriteDest(token uint32, off int64, data clone.Data, durable bool) {
	b.to.Write(token, off, b.bytes(data), durable)
}

func (b *Backend) ZeroDest(token uint32, off, length int64, unmap bool) {
	b.to.Zero(token, off, length, unmap)
}

func (b *Backend) DiscardDest(token uint32, off, length int64) {
	b.to.Discard(token, off, length)
}

func (b *Backend) FlushDest(token uint32) { b.to.Flush(token) }

func (b *Backend) Fetch(r *clone.Request, at int64, dst []byte) error {
	return b.Users.Fetch(uint16(r.Tag), at, dst)
}

func (b *Backend) Store(r *clone.Request, at int64, src []byte) error {
	return b.Users.Store(uint16(r.Tag), at, src)
}

func (b *Backend) Clear(r *clone.Request, at, n int64) error {
	return b.Users.Clear(uint16(r.Tag), at, n)
}

// Frontend is the ublk.Target of one queue: it turns the driver's requests into the lane's, and the
// lane's answers into commits. All of it runs on the queue's thread.
type Frontend struct {
	queue    *ublk.Queue
	lane     *clone.Lane
	Backend  *Backend
	requests []clone.Request // by tag
	log      zerolog.Logger  // of failed requests; never blocks
	failed   func(*clone.Request, error)
	pulse    pulse

	// After deaths in a row, see caution. Set before the first request; the rest is the queue's
	// thread's.
	Caution *Caution
	held    []*clone.Request // wait for their turn, in order
	careful *clone.Request   // has it
	refused func(*clone.Request)
}

// failureBurst bounds the failed requests that a queue logs in a second.
const failureBurst = 10

// NewFrontend makes the target of a queue of the given depth and its lane; failed is told of
// requests that fail. attach follows on the queue's thread.
func NewFrontend(core *clone.Core, source *Source, dest *File, lanes, depth int, buffers copybuffers.Config, log zerolog.Logger,
	failed func(*clone.Request, error), refused func(*clone.Request)) *Frontend {
	f := &Frontend{
		Backend:  NewBackend(source, dest, QueueOps(depth), lanes),
		requests: make([]clone.Request, depth),
		log:      log.Sample(&zerolog.BurstSampler{Burst: failureBurst, Period: time.Second}),
		failed:   failed,
		held:     make([]*clone.Request, 0, depth),
		refused:  refused,
	}
	f.Backend.gate.numbers = make([]uint64, depth)
	for tag := range f.requests {
		f.requests[tag].Tag = tag
		f.requests[tag].End = f.end
	}
	f.lane = core.NewLane(clone.LaneConfig{
		Backend: f.Backend,
		Wake:    func() { f.Backend.loop.Wake() },
		Ops:     QueueOps(depth),
		Buffers: buffers,
	})
	return f
}

// QueueOps is how many backend I/Os a queue may have: one for each request, and as many again for
// READs that fall into parts.
func QueueOps(depth int) int { return 2 * depth }

// Attach joins the frontend to its queue.
func (f *Frontend) Attach(q *ublk.Queue) ublk.Target {
	f.queue, f.Backend.Users = q, q
	f.Backend.Attach(q.Loop())
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
func (f *Frontend) Request(tag uint16, d ublk.Desc) {
	r := &f.requests[tag]
	r.Op, r.FUA, r.NoUnmap = operations[d.Op], d.FUA(), d.Flags&ublk.FlagNoUnmap != 0
	r.Off, r.Len = 0, 0
	if r.Op != clone.OpFlush {
		r.Off, r.Len = d.Offset(), d.Length()
	}
	if f.Caution != nil || f.Backend.gate.shut || f.Backend.gate.refuse != nil {
		f.held = append(f.held, r)
		return // Drain is next
	}
	f.serve(r)
}

func (f *Frontend) serve(r *clone.Request) {
	f.Backend.gate.begin(r.Tag)
	faults.Request(r.Off, r.Len)
	f.lane.Submit(r)
}

// serveHeld serves what waits, as far as caution allows.
func (f *Frontend) serveHeld() {
	for len(f.held) > 0 {
		r := f.held[0]
		may := f.Caution.ask(r)
		if may == later {
			return
		}
		f.held = slices.Delete(f.held, 0, 1)
		if may == refusal {
			f.refused(r)
			f.answer(r, errCondemned)
			continue
		}
		if !f.Caution.over.Load() {
			f.careful = r
		}
		f.serve(r)
	}
	if f.careful == nil && f.Caution.done() {
		f.Caution = nil
	}
}

// serveGate serves what was held while the gate was shut, or refuses it.
func (f *Frontend) serveGate() {
	refuse := f.Backend.gate.refuse
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
func (f *Frontend) end(r *clone.Request, err error) {
	f.Backend.gate.end(r.Tag)
	f.answer(r, err)
}

// answer answers the driver.
func (f *Frontend) answer(r *clone.Request, err error) {
	if err != nil {
		f.log.Warn().Err(err).Stringer("op", r.Op).Int64("offset", r.Off).Int64("length", r.Len).Msg("request failed")
		f.failed(r, err)
	}
	if f.careful == r && f.careful != nil {
		f.careful = nil
		f.Caution.answered(r)
	}
	f.queue.Commit(uint16(r.Tag), ForUser(err))
}

// Wake has the queue's loop go round.
func (f *Frontend) Wake() { f.Backend.Wake() }

// Alive says whether the queue's loop has gone round since it was called last.
func (f *Frontend) Alive() bool { return f.pulse.ask(f.Wake) }

// Served is how many requests were served.
func (f *Frontend) Served() int64 { return f.lane.Requests() }

// EndIO is the end of a backend I/O.
func (f *Frontend) EndIO(token uint32, err error) {
	f.lane.EndIO(token, f.Backend.Ended(token, err))
}

// Drain is called once a round.
func (f *Frontend) Drain() {
	f.pulse.answer()
	f.Backend.NewRound()
	f.lane.Drain()
	open := f.Backend.obey(f.Backend.gate.atWork)
	switch {
	case f.Backend.gate.shut:
	case f.Caution != nil && f.Backend.gate.refuse == nil:
		f.serveHeld()
	case open || f.Backend.gate.refuse != nil:
		f.serveGate()
	}
}
