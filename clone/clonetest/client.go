package clonetest

import (
	"errors"
	"fmt"

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
	s.note(what+p.op.String(), c.lane, p.id, p.off, p.length, nil)
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
	s.note("end "+p.op.String(), c.lane, p.id, p.off, p.length, err)
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
	s.note("answer "+p.op.String(), c.lane, p.id, p.off, p.length, err)
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

// needs says whether an operation needs the I/O that failed at a sector: a READ what it asks for; the
// others what they change, rounded outward to regions, and the source only beside the bytes that they
// bring themselves.
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

// next gives the next operation: of the script, or drawn.
func (s *sim) next() *operation {
	s.left--
	s.lastID++
	if s.cfg.Script == nil {
		return s.draw()
	}
	n := s.cfg.Script[len(s.cfg.Script)-s.left-1]
	return &operation{id: s.lastID, op: n.Op, fua: n.FUA, noUnmap: n.NoUnmap, off: n.First * sectorBytes, length: (n.End - n.First) * sectorBytes}
}

// draw makes up an operation.
func (s *sim) draw() *operation {
	p := &operation{id: s.lastID, op: s.drawOp()}
	if p.op == clone.OpFlush {
		return p
	}
	if s.cfg.Large && (p.op == clone.OpDiscard || p.op == clone.OpWriteZeroes) && s.rng.IntN(3) == 0 {
		s.drawWide(p)
		return p
	}
	w := s.area[s.rng.IntN(len(s.area))]
	region := s.cfg.RegionSize / sectorBytes
	maxLen := s.cfg.MaxIO / sectorBytes
	if p.op == clone.OpDiscard || p.op == clone.OpWriteZeroes {
		maxLen = 4 * maxLen
	}
	first := w.first + s.rng.Int64N(w.end-w.first)
	length := 1 + s.rng.Int64N(maxLen)
	switch s.rng.IntN(5) {
	case 0: // a piece of a region
		length = 1 + s.rng.Int64N(region)
	case 1: // regions, whole
		first = max(w.first, first/region*region)
		length = (length + region - 1) / region * region
	case 2: // from anywhere to a region's end
		length = (first+length+region-1)/region*region - first
	case 3: // 4 KiB
		first, length = max(w.first, first/8*8), 8
	}
	length = min(length, maxLen, w.end-first)
	p.off, p.length = first*sectorBytes, length*sectorBytes
	p.noUnmap = p.op == clone.OpWriteZeroes && s.rng.IntN(2) == 0
	p.fua = p.op != clone.OpRead && p.op != clone.OpDiscard && s.rng.IntN(5) == 0
	return p
}

// drawWide makes an operation cover whole pages of the region map, from somewhere to somewhere behind it.
func (s *sim) drawWide(p *operation) {
	n := s.rng.IntN(len(s.area))
	from, to := s.area[n], s.area[n+s.rng.IntN(len(s.area)-n)]
	first := from.first + s.rng.Int64N(2)*s.rng.Int64N(from.end-from.first)
	end := to.end - s.rng.Int64N(2)*s.rng.Int64N(to.end-to.first)
	p.off = first * sectorBytes
	p.length = min(max(1, end-first)*sectorBytes, clone.MaxSpan, s.cfg.Size-p.off)
	if half := int64(s.cfg.DeltaPages / 2); half > 0 { // no request may touch more pages (clone.Config)
		p.length = min(p.length, (half-1)*bitmap.RegionsPerPage*s.cfg.RegionSize)
	}
	p.fua = p.op != clone.OpDiscard && s.rng.IntN(5) == 0
}

func (s *sim) drawOp() clone.Op {
	total := 0
	for _, w := range s.cfg.OpWeight {
		total += w
	}
	n := s.rng.IntN(total)
	for op, w := range s.cfg.OpWeight {
		if n < w {
			return clone.Op(op)
		}
		n -= w
	}
	panic("unreachable")
}
