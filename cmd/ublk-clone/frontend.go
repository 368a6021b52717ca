package main

import (
	"slices"
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
	loop   *uring.Loop // set on the lane's thread before its first request
	source *source
	dest   *uring.File
	// reading is what a read of the source has taken, by token.
	reading []*openSource
	// data is the memory of a request's bytes. The hydrator has no requests.
	data func(r *clone.Request) []byte
}

func (b *backend) bytes(d clone.Data) []byte {
	if d.Request == nil {
		return d.Buf
	}
	return b.data(d.Request)[d.At : d.At+d.Len]
}

func newBackend(source *source, dest *uring.File, tokens int) *backend {
	return &backend{source: source, dest: dest, reading: make([]*openSource, tokens)}
}

func (b *backend) ReadSource(token uint32, off int64, data clone.Data, alone bool) {
	s := b.source.take()
	b.reading[token] = s
	switch {
	case s.file == nil:
		b.loop.Refuse(token, unix.ENODEV)
	case alone:
		b.loop.ReadAlone(token, s.file, off, b.bytes(data))
	default:
		b.loop.Read(token, s.file, off, b.bytes(data))
	}
}

// ended is called first with the end of an I/O. It lets the source go, and gives an error its side.
func (b *backend) ended(token uint32, err error) error {
	s := b.reading[token]
	if s != nil {
		b.reading[token] = nil
		s.done()
	}
	switch {
	case err == nil:
		return nil
	case s != nil:
		return &sideError{blockdev.Source, err}
	}
	return &sideError{blockdev.Dest, err}
}

func (b *backend) ReadDest(token uint32, off int64, data clone.Data) {
	b.loop.Read(token, b.dest, off, b.bytes(data))
}

func (b *backend) WriteDest(token uint32, off int64, data clone.Data, durable bool) {
	b.loop.Write(token, b.dest, off, b.bytes(data), durable)
}

func (b *backend) ZeroDest(token uint32, off, length int64, unmap bool) {
	b.loop.Zero(token, b.dest, off, length, unmap)
}

func (b *backend) DiscardDest(token uint32, off, length int64) {
	b.loop.Discard(token, b.dest, off, length)
}

func (b *backend) FlushDest(token uint32) { b.loop.Flush(token, b.dest) }

func (b *backend) Fetch(r *clone.Request, at int64, dst []byte) error {
	copy(dst, b.data(r)[at:])
	return nil
}

func (b *backend) Clear(r *clone.Request, at, n int64) error {
	clear(b.data(r)[at : at+n])
	return nil
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
func newFrontend(core *clone.Core, source *source, dest *uring.File, depth int, buffers [][]byte, log zerolog.Logger,
	failed func(*clone.Request, error), refused func(*clone.Request)) *frontend {
	f := &frontend{
		backend:  newBackend(source, dest, queueOps(depth)),
		requests: make([]clone.Request, depth),
		log:      log.Sample(&zerolog.BurstSampler{Burst: failureBurst, Period: time.Second}),
		failed:   failed,
		held:     make([]*clone.Request, 0, depth),
		refused:  refused,
	}
	for tag := range f.requests {
		f.requests[tag].Tag = tag
		f.requests[tag].End = f.end
	}
	f.backend.data = func(r *clone.Request) []byte { return f.queue.Data(uint16(r.Tag)) }
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
	f.queue, f.backend.loop = q, q.Loop()
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
	if f.caution != nil {
		f.held = append(f.held, r)
		return // Drain is next
	}
	f.serve(r)
}

func (f *frontend) serve(r *clone.Request) {
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
			f.end(r, errCondemned)
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

// end answers the driver.
func (f *frontend) end(r *clone.Request, err error) {
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

// Complete is the end of a backend I/O.
func (f *frontend) Complete(token uint32, err error) {
	f.lane.Complete(token, f.backend.ended(token, err))
}

// Drain is called once a round.
func (f *frontend) Drain() {
	f.lane.Drain()
	if f.caution != nil {
		f.serveHeld()
	}
}
