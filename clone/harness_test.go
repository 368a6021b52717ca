package clone

import (
	"bytes"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// mostBytes is up to which size of the device a rig has the bytes of source and destination.
const mostBytes = 100 << 20

// A rig is a core with one lane whose backend does nothing by itself: a test looks at what was
// queued and ends it. Source bytes are 's', the destination's old ones 'd', what a WRITE brings
// 'w'.
type rig struct {
	t            testing.TB
	core         *Core
	lane         *Lane
	source, dest []byte
	ios          []queued
	kicks        int
	classify     func(error) ErrorClass
	now          time.Time
	flushErr     error  // of the committer's flush
	onFlush      func() // during it
	storeErr     error
	flushing     bool  // by the committer, just now
	frontendErr  error // of whatever is copied from or to a request
	pages        int   // written by commits
	flushes      int   // of the committer
	stored       int64 // bytes of READs that were copied to them
}

// queued is one I/O as the backend got it.
type queued struct {
	what    string
	token   uint32
	off     int64
	length  int64
	data    Data
	durable bool
	unmap   bool
	alone   bool
}

const testRegion = 4096

var errInjected = errors.New("injected")

func newRig(t testing.TB, regions uint64, buffers int) *rig {
	return newRigOf(t, int64(regions)*testRegion, testRegion, buffers)
}

// newRigOf is newRig of another region size; both in bytes.
func newRigOf(t testing.TB, size, regionSize int64, buffers int) *rig {
	geo, err := NewGeometry(size, regionSize)
	if err != nil {
		t.Fatal(err)
	}
	regions := geo.Regions()
	r := &rig{t: t}
	if size <= mostBytes {
		r.source = bytes.Repeat([]byte{'s'}, int(geo.Size()))
		r.dest = bytes.Repeat([]byte{'d'}, int(geo.Size()))
	}
	r.core = New(Config{
		Geometry: geo,
		Map:      bitmap.New(regions, make([]bitmap.Page, bitmap.PagesFor(regions))),
		Kick:     func() { r.kicks++ },
		Classify: func(err error) ErrorClass {
			if r.classify == nil {
				return Local
			}
			return r.classify(err)
		},
		Now: func() time.Time { return r.now },
	})
	bufs := make([][]byte, buffers)
	for i := range bufs {
		bufs[i] = make([]byte, 4*testRegion)
	}
	r.lane = r.core.NewLane(LaneConfig{Backend: r, Wake: func() {}, Ops: 16, Buffers: copybuffers.Config{Own: bufs}})
	r.ios = make([]queued, 0, 16)
	return r
}

func (r *rig) ReadSource(token uint32, off int64, data Data, alone bool) {
	r.ios = append(r.ios, queued{what: "read source", token: token, off: off, length: data.Size(), data: data, alone: alone})
}

func (r *rig) ReadDest(token uint32, off int64, data Data) {
	r.ios = append(r.ios, queued{what: "read dest", token: token, off: off, length: data.Size(), data: data})
}

func (r *rig) WriteDest(token uint32, off int64, data Data, durable bool) {
	if durable {
		r.wantNoFlush(false)
	}
	r.ios = append(r.ios, queued{what: "write dest", token: token, off: off, length: data.Size(), data: data, durable: durable})
}

func (r *rig) ZeroDest(token uint32, off, length int64, unmap bool) {
	r.ios = append(r.ios, queued{what: "zero dest", token: token, off: off, length: length, unmap: unmap})
}

func (r *rig) DiscardDest(token uint32, off, length int64) {
	r.ios = append(r.ios, queued{what: "discard dest", token: token, off: off, length: length})
}

// wantNoFlush: of two flushes at once the kernel reports lost bytes to one only (H24). A durable
// write has a flush in it, which must not be beside another, but for those of other durable writes.
func (r *rig) wantNoFlush(durable bool) {
	r.t.Helper()
	busy := r.flushing
	for _, q := range r.ios {
		busy = busy || q.what == "flush dest" || durable && q.durable
	}
	if busy {
		r.t.Errorf("a flush or durable write begins while another flush is in flight: %v, the committer's: %t", r.ios, r.flushing)
	}
}

func (r *rig) FlushDest(token uint32) {
	r.wantNoFlush(true)
	r.ios = append(r.ios, queued{what: "flush dest", token: token})
}

// All WRITEs bring the same bytes, so that a test needs no data.
func (r *rig) Fetch(_ *Request, _ int64, dst []byte) error {
	for i := range dst {
		dst[i] = 'w'
	}
	return r.frontendErr
}

func (r *rig) Store(_ *Request, _ int64, src []byte) error {
	r.stored += int64(len(src))
	return r.frontendErr
}

func (r *rig) Clear(*Request, int64, int64) error { return r.frontendErr }

// Flush and WritePage are the committer's; so is the flush of the metadata, after pages.
func (r *rig) Flush() error {
	r.wantNoFlush(true)
	r.flushes++
	r.flushing = true
	if r.onFlush != nil {
		r.onFlush()
	}
	r.flushing = false
	return r.flushErr
}

func (r *rig) WritePage(uint64, *bitmap.Page) error {
	r.pages++
	return r.storeErr
}

func (r *rig) commit() error { return r.core.Commit(r, r) }

// answered is a request and what became of it.
type answered struct {
	Request
	times int
	err   error
}

func (r *rig) submit(op Op, off, length int64) *answered { return r.send(op, off, length, false) }

func (r *rig) send(op Op, off, length int64, fua bool) *answered {
	a := &answered{Request: Request{Op: op, Off: off, Len: length, FUA: fua}}
	a.End = func(_ *Request, err error) { a.times, a.err = a.times+1, err }
	r.lane.Submit(&a.Request)
	return a
}

// end ends the first queued I/O, well if err is nil, and runs the lane's loop once.
func (r *rig) end(err error) {
	q := r.ios[0]
	r.ios = append(r.ios[:0], r.ios[1:]...)
	if err == nil {
		r.effect(q)
	}
	r.lane.EndIO(q.token, err)
	r.lane.Drain()
}

// write writes a hydrated region, whatever else is in flight.
func (r *rig) write(region int64) {
	r.t.Helper()
	a := r.submit(OpWrite, region*testRegion, testRegion)
	last := len(r.ios) - 1
	r.ios = append([]queued{r.ios[last]}, r.ios[:last]...)
	r.end(nil)
	r.want(a, nil)
}

// failSource ends the first queued I/O, a read of the source, badly, and each try again.
func (r *rig) failSource(err error) {
	for range sourceTries + 1 {
		r.end(err)
	}
}

// endAll ends everything well.
func (r *rig) endAll() {
	for len(r.ios) > 0 {
		r.end(nil)
	}
}

func (r *rig) effect(q queued) {
	switch {
	case r.dest == nil:
	case q.what == "read source" && q.data.Buf != nil:
		copy(q.data.Buf, r.source[q.off:])
	case q.what == "write dest" && q.data.Buf != nil:
		copy(r.dest[q.off:], q.data.Buf)
	case q.what == "write dest":
		_ = r.Fetch(nil, 0, r.dest[q.off:q.off+q.length])
	case q.what == "zero dest":
		clear(r.dest[q.off : q.off+q.length])
	}
}

// wantQueued compares what is queued, in order.
func (r *rig) wantQueued(want ...queued) {
	r.t.Helper()
	ok := len(want) == len(r.ios)
	for i := 0; ok && i < len(want); i++ {
		g, w := r.ios[i], want[i]
		ok = g.what == w.what && g.off == w.off && g.length == w.length && g.durable == w.durable && g.unmap == w.unmap && g.alone == w.alone
	}
	if !ok {
		r.t.Fatalf("queued %v, expected %v", r.ios, want)
	}
}

func (q queued) String() string {
	s := q.what
	if q.durable {
		s += " durably"
	}
	if q.alone {
		s += " alone"
	}
	return s + " [" + strconv.FormatInt(q.off, 10) + ", " + strconv.FormatInt(q.off+q.length, 10) + ")"
}

func (r *rig) want(a *answered, err error) {
	r.t.Helper()
	if a.times != 1 || !errors.Is(a.err, err) {
		r.t.Fatalf("%v was answered %d times, last with %v; expected once with %v", a.Op, a.times, a.err, err)
	}
}

func (r *rig) wantNothingHeld() {
	r.t.Helper()
	if held := r.core.Held(); held != "" {
		r.t.Fatalf("nothing is in flight and something is held:\n%s", held)
	}
}

func (r *rig) wantWaiting(a *answered) {
	r.t.Helper()
	if a.times != 0 {
		r.t.Fatalf("%v was answered (%v), expected to wait", a.Op, a.err)
	}
}

// hydrate writes regions whole and commits.
func (r *rig) hydrate(first, end uint64) {
	r.t.Helper()
	a := r.submit(OpWrite, int64(first)*testRegion, int64(end-first)*testRegion)
	r.endAll()
	r.want(a, nil)
	if err := r.commit(); err != nil {
		r.t.Fatal(err)
	}
	r.pages = 0
}
