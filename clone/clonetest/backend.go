package clonetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
)

// io is one queued backend I/O. It takes effect piece by piece and is then done, which its lane
// does not know before it is completed.
type io struct {
	kind     kind
	token    uint32
	off      int64 // bytes
	length   int64
	data     clone.Data
	id       value // of the operation that data belongs to, 0: none
	durable  bool
	position uint64 // flush: what it covers
	alone    bool   // read of the source: no other joins it

	at   int64 // bytes that have taken effect
	done bool
	err  error
}

// lane is a clone.Lane with its backend and clients.
type lane struct {
	*clone.Lane
	sim     *sim
	nr      int
	due     bool // a round is
	ios     []*io
	failed  map[uint32]int // by token, reads of the source that failed in a row
	clients []*client
}

func (s *sim) newLane(nr, ops int) *lane {
	l := &lane{sim: s, nr: nr, failed: map[uint32]int{}}
	l.Lane = s.core.NewLane(clone.LaneConfig{
		Backend: l,
		Wake:    func() { l.due = true },
		Ops:     ops,
		Buffers: s.stocked.forLane(&s.cfg),
	})
	return l
}

// queue takes an I/O in.
func (l *lane) queue(q *io) {
	if r := q.data.Request; r != nil {
		q.id = l.clients[r.Tag].doing.id
	}
	if q.kind != flushDest && (q.length <= 0 || q.off < 0 || q.off+q.length > l.sim.cfg.Size) {
		l.sim.fail(fmt.Errorf("%v of bytes [%d, %d): empty or outside of the device", q.kind, q.off, q.off+q.length))
		return
	}
	if q.kind == flushDest || q.durable {
		l.sim.alone(q.durable)
	}
	l.ios = append(l.ios, q)
	l.sim.log("queue "+short[q.kind], l, q.id, q.off, q.length, nil)
}

// alone: a flush of the destination begins while no other is in flight, nor a durable write, which
// has one in it. Of two the kernel reports lost bytes to one only (H24). Durable writes may be
// beside each other.
func (s *sim) alone(durable bool) {
	busy := s.committer.flushing
	for _, l := range s.lanes {
		busy = busy || slices.ContainsFunc(l.ios, func(q *io) bool { return q.kind == flushDest || q.durable && !durable })
	}
	if busy {
		s.fail(errors.New("a flush of the destination begins while another is in flight, or a durable write"))
	}
}

var short = [...]string{"rs", "rd", "wd", "zd", "dd", "flush", "wm", "flush meta", "touch"}

func (l *lane) ReadSource(token uint32, off int64, data clone.Data, alone bool) {
	l.queue(&io{kind: readSource, token: token, off: off, length: data.Size(), data: data, alone: alone})
}

func (l *lane) ReadDest(token uint32, off int64, data clone.Data) {
	l.queue(&io{kind: readDest, token: token, off: off, length: data.Size(), data: data})
}

func (l *lane) WriteDest(token uint32, off int64, data clone.Data, durable bool) {
	l.queue(&io{kind: writeDest, token: token, off: off, length: data.Size(), data: data, durable: durable})
}

func (l *lane) ZeroDest(token uint32, off, length int64, unmap bool) {
	if unmap && !l.mayUnmap(off, length) {
		l.sim.fail(fmt.Errorf("zeroing of hydrated sectors [%d, %d) may give up space that is to be kept", off/sectorBytes, (off+length)/sectorBytes))
	}
	l.queue(&io{kind: zeroDest, token: token, off: off, length: length})
}

// mayUnmap says whether bytes of the destination may lose their space: what is not hydrated has
// none to keep, and of the rest those that a request at work covers which allows it. The background
// zeroes nothing that is hydrated.
func (l *lane) mayUnmap(off, length int64) bool {
	if first, _ := l.sim.geo.Touched(off, length); l.sim.core.Regions().State(first) != bitmap.Hydrated {
		return true
	}
	return slices.ContainsFunc(l.clients, func(c *client) bool {
		p := c.doing
		return p != nil && !c.ended && p.off <= off && off+length <= p.off+p.length &&
			(p.op == clone.OpDiscard || p.op == clone.OpWriteZeroes && !p.noUnmap)
	})
}

func (l *lane) DiscardDest(token uint32, off, length int64) {
	l.queue(&io{kind: discardDest, token: token, off: off, length: length})
}

func (l *lane) FlushDest(token uint32) {
	l.queue(&io{kind: flushDest, token: token, position: l.sim.disks.dest.Position()})
}

func (l *lane) Fetch(r *clone.Request, at int64, dst []byte) error {
	if r.Op != clone.OpWrite {
		l.sim.fail(fmt.Errorf("bytes fetched from a %v", r.Op))
	}
	copy(dst, l.clients[r.Tag].data[at:r.Len])
	return nil
}

func (l *lane) Store(r *clone.Request, at int64, src []byte) error {
	if r.Op != clone.OpRead {
		l.sim.fail(fmt.Errorf("bytes stored into a %v", r.Op))
	}
	copy(l.clients[r.Tag].data[at:r.Len], src)
	return nil
}

func (l *lane) Clear(r *clone.Request, at, n int64) error {
	clear(l.clients[r.Tag].data[at : at+n])
	return nil
}

// bytes gives the bytes [lo, hi) of the I/O's data.
func (l *lane) bytes(q *io, lo, hi int64) []byte {
	if r := q.data.Request; r != nil {
		return l.clients[r.Tag].data[q.data.At+lo : q.data.At+hi]
	}
	return q.data.Buf[lo:hi]
}

// execute makes the next piece of an I/O take effect, or fail.
func (l *lane) execute(q *io) {
	s := l.sim
	if r := q.data.Request; r != nil && !l.clients[r.Tag].working(q.id) {
		s.fail(fmt.Errorf("%v for request #%d, which has been answered", q.kind, q.id))
		return
	}
	if q.kind == flushDest {
		q.done, q.err = true, s.disks.flush(s.disks.dest, q.position, s.fails(flushDest, 0, 0))
		s.log("did flush", l, 0, 0, 0, q.err)
		return
	}
	lo := q.at
	hi := lo + s.piece(q.length-lo)
	if err := s.fails(q.kind, q.off+lo, q.off+hi); err != nil {
		q.done, q.err = true, err
		hi = err.sector*sectorBytes - q.off
		l.spread(q, err)
	}
	if hi > lo {
		l.effect(q, lo, hi)
	}
	q.at = hi
	q.done = q.done || hi == q.length
	s.log("did "+short[q.kind], l, q.id, q.off+lo, hi-lo, q.err)
}

// spread is what else an error does. The kernel had made one request of reads of the source that
// touch: it fails whole. A durable write may have failed in its flush: then that has lost what it
// should have made durable.
func (l *lane) spread(q *io, err *diskError) {
	s := l.sim
	switch {
	case q.kind == writeDest && q.durable && !err.full && s.rng.IntN(2) == 0:
		_ = s.disks.flush(s.disks.dest, s.disks.dest.Position(), err) // it fails, as the write does already
	case q.kind == readSource && !q.alone && !err.away && s.rng.IntN(2) == 0:
		for _, other := range l.ios {
			touch := other.off == q.off+q.length || q.off == other.off+other.length
			if other.kind == readSource && touch && !other.alone && !other.done && other.at == 0 {
				other.done, other.err = true, new(*err)
				s.log("failed with its neighbour: rs", l, other.id, other.off, other.length, err)
			}
		}
	}
}

// effect is that of the bytes [lo, hi) of an I/O.
func (l *lane) effect(q *io, lo, hi int64) {
	d := l.sim.disks
	off := q.off + lo
	var err error
	switch q.kind {
	case readSource:
		err = d.source.ReadAt(l.bytes(q, lo, hi), off)
	case readDest:
		err = d.dest.ReadAt(l.bytes(q, lo, hi), off)
	case writeDest:
		err = d.dest.WriteAt(l.bytes(q, lo, hi), off)
		if q.durable {
			d.dest.Persist(off, hi-lo)
		}
	case zeroDest:
		err = l.inArea(off, q.off+hi, d.dest.ZeroRange)
	case discardDest:
		err = l.inArea(off, q.off+hi, d.dest.Discard)
	}
	if err != nil {
		l.sim.fail(err)
	}
}

// inArea does what changes [off, end) of the destination where the oracle looks: of a large device
// it may be gigabytes.
func (l *lane) inArea(off, end int64, change func(off, length int64) error) (err error) {
	if !l.sim.cfg.Large {
		return change(off, end-off)
	}
	for _, w := range l.sim.area {
		if from, to := max(off, w.first*sectorBytes), min(end, w.end*sectorBytes); from < to {
			err = errors.Join(err, change(from, to-from))
		}
	}
	return err
}

// ioDone reports the i-th I/O to the lane.
func (l *lane) ioDone(i int) {
	q := l.ios[i]
	last := len(l.ios) - 1
	l.ios[i] = l.ios[last]
	l.ios = l.ios[:last]
	l.due = true
	if e := asDiskError(q.err); e != nil && q.kind == readSource {
		st, end := l.sim.stateRun(q)
		e.stale = st != bitmap.Source || end < q.off+q.length
		l.failed[q.token]++
		e.tries = l.failed[q.token]
	} else {
		delete(l.failed, q.token)
	}
	l.sim.log("end "+short[q.kind], l, q.id, q.off, q.length, q.err)
	l.EndIO(q.token, q.err)
}

// stateRun gives the state of the region in which an I/O begins and where that state ends, in
// bytes.
func (s *sim) stateRun(q *io) (bitmap.State, int64) {
	first, end := s.geo.Touched(q.off, q.length)
	st, stop := s.core.Regions().Run(first, end)
	return st, min(q.off+q.length, s.geo.Start(stop))
}

// injector decides which pieces of I/O fail, and which take effect together.
type injector struct {
	cfg *Config
	rng *rand.Rand
	bad map[int64]bool // sectors of the source

	calls   int           // pieces of backend I/O that could have failed
	callsOf [nrKinds]int  // of these
	broken  [nrKinds]bool // kinds that fail for good
	healed  bool          // no further errors
}

// piece is how many of n bytes take effect together.
func (j *injector) piece(n int64) int64 {
	if n <= sectorBytes || j.rng.IntN(2) == 0 {
		return n
	}
	return sectorBytes * (1 + j.rng.Int64N(n/sectorBytes))
}

// fails says whether an I/O of the bytes [lo, hi) fails, and where. Sectors before that one have
// taken effect.
func (j *injector) fails(k kind, lo, hi int64) *diskError {
	if j.healed {
		return nil
	}
	j.calls++
	j.callsOf[k]++
	if k == readSource && len(j.bad) > 0 {
		for sector := lo / sectorBytes; sector < hi/sectorBytes; sector++ {
			if j.bad[sector] {
				return &diskError{kind: k, sector: sector}
			}
		}
	}
	if p := j.cfg.Failure[k]; !j.injected(k) && (p == 0 || j.rng.Float64() >= p) {
		return nil
	}
	if lo == hi {
		return &diskError{kind: k, sector: -1}
	}
	e := &diskError{kind: k, sector: lo/sectorBytes + j.rng.Int64N((hi-lo)/sectorBytes)}
	e.away = k == readSource && j.rng.IntN(4) == 0 && j.cfg.FailSpread != failOnce
	e.full = k == writeDest && j.rng.IntN(4) == 0
	return e
}

// injected says whether Config.FailAt makes this I/O fail.
func (j *injector) injected(k kind) bool {
	if j.calls == j.cfg.FailAt {
		for other := range nrKinds {
			j.broken[other] = j.cfg.FailSpread == failKind && other == k ||
				j.cfg.FailSpread == failDisk && other.disk() == k.disk()
		}
		return true
	}
	return j.broken[k]
}

// asDiskError gives the injected error behind err, or nil.
func asDiskError(err error) *diskError {
	var e *diskError
	errors.As(err, &e)
	return e
}
