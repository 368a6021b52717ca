package clone

import (
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// hotRegions is how many regions the hot path's device has: each run of an unhydrated path takes a
// new one.
const hotRegions = 1 << 22

// quiet is a backend that keeps only the token of the I/O that was queued last.
type quiet struct {
	lane  *Lane
	token uint32
	busy  bool
}

func (q *quiet) queue(token uint32)                               { q.token, q.busy = token, true }
func (q *quiet) ReadSource(token uint32, _ int64, _ Data, _ bool) { q.queue(token) }
func (q *quiet) ReadDest(token uint32, _ int64, _ Data)           { q.queue(token) }
func (q *quiet) WriteDest(token uint32, _ int64, _ Data, _ bool)  { q.queue(token) }
func (q *quiet) ZeroDest(token uint32, _, _ int64, _ bool)        { q.queue(token) }
func (q *quiet) DiscardDest(token uint32, _, _ int64)             { q.queue(token) }
func (q *quiet) FlushDest(token uint32)                           { q.queue(token) }
func (q *quiet) Fetch(*Request, int64, []byte) error              { return nil }
func (q *quiet) Store(*Request, int64, []byte) error              { return nil }
func (q *quiet) Clear(*Request, int64, int64) error               { return nil }
func (q *quiet) Flush() error                                     { return nil }
func (q *quiet) WritePage(uint64, *bitmap.Page) error             { return nil }

// hotPath is one kind of request, over and over.
type hotPath struct {
	name     string
	op       Op
	fua      bool
	length   int64
	hydrated bool
}

var hotPaths = []hotPath{
	{"read hydrated", OpRead, false, 512, true},
	{"read source", OpRead, false, 512, false},
	{"read source, kept", OpRead, false, testRegion, false},
	{"write hydrated", OpWrite, false, 512, true},
	{"write hydrated FUA", OpWrite, true, 512, true},
	{"write whole region", OpWrite, false, testRegion, false},
	{"write partly", OpWrite, false, 512, false},
	{"discard", OpDiscard, false, testRegion, false},
	{"discard hydrated", OpDiscard, false, testRegion, true},
	{"write zeroes partly", OpWriteZeroes, false, 512, false},
	{"flush", OpFlush, false, 0, true},
}

// start gives a function that carries out one request from Submit to End.
func (h hotPath) start(tb testing.TB) func() {
	geo, err := NewGeometry(hotRegions*testRegion, testRegion)
	if err != nil {
		tb.Fatal(err)
	}
	core := New(Config{
		Geometry: geo,
		Map:      bitmap.New(hotRegions, make([]bitmap.Page, bitmap.PagesFor(hotRegions))),
		Kick:     func() {},
	})
	q := &quiet{}
	q.lane = core.NewLane(LaneConfig{Backend: q, Wake: func() {}, Ops: 4, Buffers: copybuffers.Config{Own: [][]byte{make([]byte, 4*testRegion)}}})
	core.SetReadThrough(true)
	core.SetDiscardPassdown(true)
	ended := false
	r := &Request{End: func(_ *Request, err error) {
		if err != nil {
			tb.Fatal(err)
		}
		ended = true
	}}
	run := func() {
		ended = false
		q.lane.Submit(r)
		for !ended || q.busy { // what a READ got is written after its end
			if !q.busy {
				tb.Fatal("request waits with nothing queued")
			}
			q.busy = false
			q.lane.EndIO(q.token, nil)
			q.lane.Drain()
		}
	}
	*r = Request{Op: OpWrite, Off: 0, Len: testRegion, End: r.End}
	run()
	if err := core.Commit(q, q); err != nil {
		tb.Fatal(err)
	}
	region := int64(0)
	return func() {
		if !h.hydrated {
			region = (region + 1) % hotRegions
		}
		r.Op, r.FUA, r.Off, r.Len = h.op, h.fua, region*testRegion, h.length
		run()
	}
}

// TestHotPathAllocatesNothing (I9).
func TestHotPathAllocatesNothing(t *testing.T) {
	for _, h := range hotPaths {
		if n := testing.AllocsPerRun(1000, h.start(t)); n != 0 {
			t.Errorf("%s: %v allocations a request", h.name, n)
		}
	}
}

// BenchmarkRequest is the core's own time for one request on one thread, no I/O done.
func BenchmarkRequest(b *testing.B) {
	for _, h := range hotPaths {
		b.Run(h.name, func(b *testing.B) {
			run := h.start(b)
			b.ReportAllocs()
			for b.Loop() {
				run()
			}
		})
	}
}
