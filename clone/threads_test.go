package clone_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
)

// TestThreads runs several lanes, the hydrator and the committer on goroutines of their own, for
// the race detector. Source and destination are plain bytes without a lock, so two writers of one
// byte at a time, or a read that is not ordered behind the write that it must see, is a data race
// by itself. Each client has sectors of its own, spread over all regions: the clients meet in
// claims, never in bytes, and each knows what it must read.
func TestThreads(t *testing.T) {
	const (
		lanes, depth = 3, 4
		regionSize   = 4096
		nrRegions    = 4096
		size         = nrRegions*regionSize - 512
		length       = 1500 * time.Millisecond
	)
	geo, err := clone.NewGeometry(size, regionSize)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, start: time.Now(), length: length, source: make([]byte, size), dest: make([]byte, size)}
	for i := range w.source {
		w.source[i] = 's'
	}
	kick, event := make(chan struct{}, 1), make(chan struct{}, 1)
	w.core = clone.New(clone.Config{
		Geometry: geo,
		Map:      bitmap.New(nrRegions, make([]bitmap.Page, bitmap.PagesFor(nrRegions))),
		Kick:     func() { signal(kick) },
		Event:    func() { signal(event) },
		Release:  zeroPage,
	})
	var users, others sync.WaitGroup
	stop := make(chan struct{})
	all := make([]*threadLane, lanes)
	for nr := range all {
		all[nr] = w.newLane(nr)
		for tag := range depth {
			all[nr].addClient(tag, nr*depth+tag, lanes*depth)
		}
	}
	background := w.newLane(lanes)
	for _, l := range all {
		users.Go(l.serve)
	}
	others.Go(func() { background.hydrate(stop) })
	others.Go(func() { commits(w.core, kick, stop) })
	users.Wait()
	select {
	case <-event:
	case <-time.After(time.Minute):
	}
	close(stop)
	others.Wait()
	if !w.core.Complete() {
		t.Fatalf("hydration does not complete: %d regions, %d durable", w.core.Regions().NrHydrated(), w.core.DurableHydrated())
	}
	w.check()
}

// world is what the threads share.
type world struct {
	t            *testing.T
	start        time.Time
	length       time.Duration
	core         *clone.Core
	source, dest []byte
	clients      []*threadClient
}

// threadLane is a lane with its loop's state.
type threadLane struct {
	*clone.Lane
	world   *world
	wake    chan struct{}
	ios     []threadIO
	clients []*threadClient
	busy    int
}

type threadIO struct {
	token uint32
	do    func()
}

// zeroPage is what becomes of a released page.
func zeroPage(_ uint64, p *bitmap.Page) {
	for w := range p {
		atomic.StoreUint64(&p[w], 0)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (w *world) newLane(nr int) *threadLane {
	l := &threadLane{world: w, wake: make(chan struct{}, 1)}
	buffers := make([][]byte, 3)
	for i := range buffers {
		buffers[i] = make([]byte, 4096<<(nr%2))
	}
	l.Lane = w.core.NewLane(clone.LaneConfig{
		Backend: l,
		Wake:    func() { signal(l.wake) },
		Ops:     5,
		Buffers: copybuffers.Config{Own: buffers},
	})
	return l
}

func (l *threadLane) queue(token uint32, do func()) { l.ios = append(l.ios, threadIO{token, do}) }

func (l *threadLane) bytes(d clone.Data) []byte {
	if d.Request != nil {
		return l.clients[d.Request.Tag].data[d.At : d.At+d.Len]
	}
	return d.Buf
}

func (l *threadLane) ReadSource(token uint32, off int64, data clone.Data, _ bool) {
	l.queue(token, func() { copy(l.bytes(data), l.world.source[off:]) })
}

func (l *threadLane) ReadDest(token uint32, off int64, data clone.Data) {
	l.queue(token, func() { copy(l.bytes(data), l.world.dest[off:]) })
}

func (l *threadLane) WriteDest(token uint32, off int64, data clone.Data, _ bool) {
	l.queue(token, func() { copy(l.world.dest[off:], l.bytes(data)) })
}

func (l *threadLane) ZeroDest(token uint32, off, length int64, _ bool) {
	l.queue(token, func() { clear(l.world.dest[off : off+length]) })
}

func (l *threadLane) DiscardDest(token uint32, off, length int64) {
	l.queue(token, func() { // anything
		for i := off; i < off+length; i += 3 {
			l.world.dest[i] = 0xd1
		}
	})
}

func (l *threadLane) FlushDest(token uint32) { l.queue(token, func() {}) }

func (l *threadLane) Fetch(r *clone.Request, at int64, dst []byte) error {
	copy(dst, l.clients[r.Tag].data[at:r.Len])
	return nil
}

func (l *threadLane) Store(r *clone.Request, at int64, src []byte) error {
	copy(l.clients[r.Tag].data[at:r.Len], src)
	return nil
}

func (l *threadLane) Clear(r *clone.Request, at, n int64) error {
	clear(l.clients[r.Tag].data[at : at+n])
	return nil
}

// round ends what was queued before it and drains. What that queues is the next round's, so that
// other lanes meet the claims.
func (l *threadLane) round() {
	ios := l.ios
	l.ios = nil
	for _, q := range ios { // all before the first Complete, whose locks order things and hide races
		q.do()
	}
	for _, q := range ios {
		l.EndIO(q.token, nil)
	}
	l.Drain()
}

// serve is the loop of a lane of users, until their time is over.
func (l *threadLane) serve() {
	for {
		for _, c := range l.clients {
			c.next()
		}
		if l.busy == 0 {
			return
		}
		if len(l.ios) == 0 {
			<-l.wake
		}
		l.round()
	}
}

// hydrate is the loop of the hydrator's lane.
func (l *threadLane) hydrate(stop chan struct{}) {
	var timer <-chan time.Time
	h := hydrate.New(hydrate.Config{
		Core:     l.world.core,
		Lane:     l.Lane,
		Batches:  3,
		Now:      time.Now,
		After:    func(d time.Duration) { timer = time.After(d) },
		Wake:     func() { signal(l.wake) },
		Settings: hydrate.Settings{Enabled: true, Threshold: 3, Batch: 2},
	})
	for {
		h.Pump()
		if len(l.ios) == 0 {
			select {
			case <-stop:
				return
			case <-l.wake:
			case <-timer:
			}
		}
		l.round()
	}
}

// nowhere is metadata that need not be kept.
type nowhere struct{}

func (nowhere) Flush() error                         { return nil }
func (nowhere) WritePage(uint64, *bitmap.Page) error { return nil }

// commits is the committer: when it is kicked, and every few milliseconds.
func commits(core *clone.Core, kick, stop chan struct{}) {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-kick:
		case <-ticker.C:
		}
		if err := core.Commit(nowhere{}, nowhere{}); err != nil && !errors.Is(err, clone.ErrCommitPutOff) {
			panic(err)
		}
	}
}

// threadClient writes, zeroes and reads sectors of its own: those that are its number modulo
// stride.
type threadClient struct {
	lane   *threadLane
	req    clone.Request
	data   []byte
	nr     int64
	stride int64
	busy   bool
	rng    *rand.Rand
	holds  map[int64]byte // sector: what it wrote
	sum    byte
}

func (l *threadLane) addClient(tag, nr, stride int) {
	c := &threadClient{lane: l, nr: int64(nr), stride: int64(stride), data: make([]byte, 512),
		rng: rand.New(rand.NewPCG(uint64(nr), 0)), holds: map[int64]byte{}}
	c.req = clone.Request{Tag: tag, End: func(_ *clone.Request, err error) { c.end(err) }}
	l.clients = append(l.clients, c)
	l.world.clients = append(l.world.clients, c)
}

// next submits a request, unless one is in flight or time is over.
func (c *threadClient) next() {
	w := c.lane.world
	progress := float64(time.Since(w.start)) / float64(w.length)
	if c.busy || progress >= 1 {
		return
	}
	c.busy = true
	c.lane.busy++
	sector := c.pick(progress)*c.stride + c.nr
	r := &c.req
	r.Op, r.FUA, r.Off, r.Len = clone.OpWrite, false, sector*512, 512
	switch n := c.rng.IntN(10); {
	case n < 4:
		r.Op = clone.OpRead
		clear(c.data)
	case n == 4:
		r.Op = clone.OpWriteZeroes
	case n == 5:
		r.Op = clone.OpFlush
	default:
		r.FUA = n == 6
		c.sum++
		for i := range c.data {
			c.data[i] = c.sum
		}
	}
	c.lane.Submit(r)
}

// pick gives one of the client's sectors. All clients go through the device together, so that they
// meet where regions are being hydrated; by the clock, as a counter that they share would order
// their accesses and hide races.
func (c *threadClient) pick(progress float64) int64 {
	mine := int64(len(c.lane.world.source)) / 512 / c.stride
	if c.rng.IntN(8) == 0 {
		return c.rng.Int64N(mine)
	}
	return (int64(progress*float64(mine)) + c.rng.Int64N(4)) % mine
}

func (c *threadClient) end(err error) {
	c.busy = false
	c.lane.busy--
	sector := c.req.Off / 512
	switch {
	case err != nil:
		c.lane.world.t.Errorf("client %d: %v of sector %d: %v", c.nr, c.req.Op, sector, err)
	case c.req.Op == clone.OpWrite:
		c.holds[sector] = c.sum
	case c.req.Op == clone.OpWriteZeroes:
		c.holds[sector] = 0
	case c.req.Op == clone.OpRead:
		c.compare(sector, c.data, "reads")
	}
}

func (c *threadClient) compare(sector int64, data []byte, what string) {
	want, written := c.holds[sector]
	if !written {
		want = 's'
	}
	for i, b := range data {
		if b != want {
			c.lane.world.t.Errorf("client %d: %s byte %d of sector %d: %s, expected %s", c.nr, what, i, sector,
				fmt.Sprintf("%#x", b), fmt.Sprintf("%#x", want))
			return
		}
	}
}

// check compares the destination alone with what the clients wrote.
func (w *world) check() {
	for _, c := range w.clients {
		for s := c.nr; s < int64(len(w.dest))/512; s += c.stride {
			c.compare(s, w.dest[s*512:(s+1)*512], "destination holds")
		}
	}
}
