package clonetest

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
)

// client is one tag of a lane: it has one request at a time.
type client struct {
	lane  *lane
	req   clone.Request
	data  []byte
	doing *operation
	// ended: the core has ended the request with err; the answer is still on its way.
	ended bool
	err   error
	// marked: all regions that the operation touches were hydrated when it was issued.
	marked bool
}

func (l *lane) addClients(n int) {
	for tag := range n {
		c := &client{lane: l, data: make([]byte, l.sim.cfg.MaxIO)}
		c.req.Tag = tag
		c.req.End = func(_ *clone.Request, err error) { c.end(err) }
		l.clients = append(l.clients, c)
	}
}

// submit issues an operation.
func (c *client) submit(p *operation) {
	s := c.lane.sim
	s.inFlight++
	s.oracle.issue(p)
	c.send(p, "issue ")
}

// send makes a request of an operation that has been issued.
func (c *client) send(p *operation, what string) {
	s := c.lane.sim
	c.doing = p
	first, end := s.geo.Touched(p.off, p.length)
	c.marked = p.op != clone.OpFlush && s.core.Regions().AllHydrated(first, end)
	switch p.op {
	case clone.OpRead:
		spoil(c.data[:p.length])
	case clone.OpWrite:
		fill(c.data[:p.length], p.off/sectorBytes, p.id)
	}
	s.log(what+p.op.String(), c.lane, p.id, p.off, p.length, nil)
	r := &c.req
	r.Op, r.FUA, r.Off, r.Len = p.op, p.fua, p.off, p.length
	r.NoUnmap = p.noUnmap
	c.lane.Submit(r)
}

// working says that the core has operation id and has not ended it.
func (c *client) working(id value) bool { return c.doing != nil && !c.ended && c.doing.id == id }

// end is the core's: the answer is on its way, which the daemon's death takes along.
func (c *client) end(err error) {
	s, p := c.lane.sim, c.doing
	if p == nil || c.ended {
		s.fail(errors.New("a request was answered twice"))
		return
	}
	s.log("end "+p.op.String(), c.lane, p.id, p.off, p.length, err)
	if err != nil {
		if why := c.unexplained(p, err); why != "" {
			s.fail(fmt.Errorf("%v: %v: %s", p, err, why))
		}
	}
	c.ended, c.err = true, err
}

// answer brings the answer to whoever asked.
func (c *client) answer() {
	s, p, err := c.lane.sim, c.doing, c.err
	s.log("answer "+p.op.String(), c.lane, p.id, p.off, p.length, err)
	c.doing, c.ended, c.err = nil, false, nil
	s.inFlight--
	if p.op == clone.OpRead && err == nil {
		err = s.oracle.endRead(p, c.data)
	} else {
		s.oracle.end(p, err)
		err = nil
	}
	if err != nil {
		s.fail(err)
	}
}

// unexplained says why an operation must not have failed with err, or nothing.
func (c *client) unexplained(p *operation, err error) string {
	s := c.lane.sim
	commits := p.fua || p.op == clone.OpFlush
	e := asDiskError(err)
	switch {
	case errors.Is(err, clone.ErrFlushLost):
		if !commits || !s.core.FlushLost() {
			return "no flush was lost"
		}
	case errors.Is(err, clone.ErrReadOnly):
		if s.core.Mode() == clone.ReadWrite && s.repaired < p.issued {
			return "the mode is rw"
		}
		if p.op == clone.OpRead || c.marked && !commits {
			return "no new mark is needed (I10)"
		}
	case e == nil:
		return "no error was injected"
	case e.kind == flushDest || e.kind == writeMeta || e.kind == flushMeta:
		if !commits {
			return "it needs no commit"
		}
	case e.kind == touchMap:
		if p.op == clone.OpRead || p.op == clone.OpFlush || p.op == clone.OpWrite && c.marked {
			return "it needs no new mark"
		}
	case e.kind == readSource && !e.away && e.tries < sourceTries:
		return "the source was not tried again"
	case e.stale && p.op == clone.OpRead:
		return "it may be in the destination by now (I11)"
	case !c.needs(p, e):
		return "the sector is none that it needs (I11)"
	}
	return ""
}

// sourceTries is how often a read of the source fails before it fails a request.
const sourceTries = 3

// needs says whether an operation needs the I/O that failed at a sector: a READ what it asks for;
// the others what they change, rounded outward to regions, and the source only beside the bytes
// that they bring themselves.
func (c *client) needs(p *operation, e *diskError) bool {
	geo, off := c.lane.sim.geo, e.sector*sectorBytes
	inside := p.off <= off && off < p.off+p.length
	first, end := geo.Touched(p.off, p.length)
	touched := geo.Start(first) <= off && off < geo.Start(end)
	switch e.kind {
	case readSource:
		return p.op == clone.OpRead && inside || p.op != clone.OpRead && p.op != clone.OpDiscard && touched && !inside
	case readDest:
		return p.op == clone.OpRead && inside
	}
	return p.op != clone.OpRead && touched
}

// workload is the requests: it draws them, and knows which are still to be answered.
type workload struct {
	cfg  *Config
	rng  *rand.Rand
	area area

	left     int          // still to be issued
	inFlight int          // issued and not answered
	reissue  []*operation // of inFlight, those that the daemon's death took along
	lastID   value
}

// next gives the next operation: of the script, or drawn.
func (w *workload) next() *operation {
	w.left--
	w.lastID++
	if w.cfg.Script == nil {
		return w.draw()
	}
	n := w.cfg.Script[len(w.cfg.Script)-w.left-1]
	return &operation{id: w.lastID, op: n.Op, fua: n.FUA, noUnmap: n.NoUnmap, off: n.First * sectorBytes, length: (n.End - n.First) * sectorBytes}
}

// draw makes up an operation.
func (w *workload) draw() *operation {
	p := &operation{id: w.lastID, op: w.drawOp()}
	if p.op == clone.OpFlush {
		return p
	}
	if w.cfg.Large && (p.op == clone.OpDiscard || p.op == clone.OpWriteZeroes) && w.rng.IntN(3) == 0 {
		w.drawWide(p)
		return p
	}
	at := w.area[w.rng.IntN(len(w.area))]
	region := w.cfg.RegionSize / sectorBytes
	maxLen := w.cfg.MaxIO / sectorBytes
	if p.op == clone.OpDiscard || p.op == clone.OpWriteZeroes {
		maxLen = 4 * maxLen
	}
	first := at.first + w.rng.Int64N(at.end-at.first)
	length := 1 + w.rng.Int64N(maxLen)
	switch w.rng.IntN(5) {
	case 0: // a piece of a region
		length = 1 + w.rng.Int64N(region)
	case 1: // regions, whole
		first = max(at.first, first/region*region)
		length = (length + region - 1) / region * region
	case 2: // from anywhere to a region's end
		length = (first+length+region-1)/region*region - first
	case 3: // 4 KiB
		first, length = max(at.first, first/8*8), 8
	}
	length = min(length, maxLen, at.end-first)
	p.off, p.length = first*sectorBytes, length*sectorBytes
	p.noUnmap = p.op == clone.OpWriteZeroes && w.rng.IntN(2) == 0
	p.fua = p.op != clone.OpRead && p.op != clone.OpDiscard && w.rng.IntN(5) == 0
	return p
}

// drawWide makes an operation cover whole pages of the region map, from somewhere to somewhere
// behind it.
func (w *workload) drawWide(p *operation) {
	n := w.rng.IntN(len(w.area))
	from, to := w.area[n], w.area[n+w.rng.IntN(len(w.area)-n)]
	first := from.first + w.rng.Int64N(2)*w.rng.Int64N(from.end-from.first)
	end := to.end - w.rng.Int64N(2)*w.rng.Int64N(to.end-to.first)
	p.off = first * sectorBytes
	p.length = min(max(1, end-first)*sectorBytes, clone.MaxSpan, w.cfg.Size-p.off)
	if half := int64(w.cfg.DeltaPages / 2); half > 0 { // no request may touch more pages (clone.Config)
		p.length = min(p.length, (half-1)*bitmap.RegionsPerPage*w.cfg.RegionSize)
	}
	p.fua = p.op != clone.OpDiscard && w.rng.IntN(5) == 0
}

func (w *workload) drawOp() clone.Op {
	total := 0
	for _, weight := range w.cfg.OpWeight {
		total += weight
	}
	n := w.rng.IntN(total)
	for op, weight := range w.cfg.OpWeight {
		if n < weight {
			return clone.Op(op)
		}
		n -= weight
	}
	panic("unreachable")
}
