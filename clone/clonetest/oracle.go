package clonetest

import (
	"fmt"
	"math"
	"slices"

	"github.com/ublk-clone/ublk-clone/clone"
)

// never is later than everything.
const never = math.MaxInt

// operation is what the oracle knows of one request.
type operation struct {
	id      value // and, of a WRITE, what it writes
	op      clone.Op
	fua     bool
	noUnmap bool  // WRITE_ZEROES: keep the space
	off     int64 // bytes
	length  int64
	issued  int // time of the oracle
	ended   int // never while in flight
	err     error
	crashed bool // in flight when the power went
}

func (p *operation) String() string {
	fua, end := "", "in flight"
	if p.fua {
		fua = " FUA"
	}
	switch {
	case p.crashed:
		end = "in flight at the power loss"
	case p.ended != never && p.err != nil:
		end = fmt.Sprintf("ended %d: %v", p.ended, p.err)
	case p.ended != never:
		end = fmt.Sprintf("ended %d", p.ended)
	}
	return fmt.Sprintf("#%d %v%s sectors [%d, %d) issued %d, %s", p.id, p.op, fua,
		p.off/sectorBytes, (p.off+p.length)/sectorBytes, p.issued, end)
}

// content is what the operation leaves in a sector.
func (p *operation) content() value {
	if p.op == clone.OpWrite {
		return p.id
	}
	return valueZeros
}

// candidate is an operation that may have written a sector last.
//
// Operation u is superseded when one that was issued after u's end has ended well: from then on no
// read that is issued may see u. It is also ruled out when a read that was issued after u's end
// sees another: then u was overwritten or, if it failed, never happened.
type candidate struct {
	by *operation
	// ruledOut: no read issued at or after this time sees it.
	ruledOut int
	// superseded is when an acknowledged operation took its place: a FLUSH issued later makes it
	// impossible after power loss.
	superseded int
	// gone: an acknowledged FUA took its place, or power loss did.
	gone bool
}

// oracle is the model: per sector, the operations that may have written it last. Time is a counter
// of issues and ends, so that any two are ordered.
type oracle struct {
	geo     clone.Geometry
	area    area
	sectors [][]candidate
	now     int
	flushed int // issue of the newest FLUSH that ended well
	reading []*operation
	history []*operation
}

func newOracle(geo clone.Geometry, a area, initial func(sector int64) value) *oracle {
	o := &oracle{geo: geo, area: a, sectors: make([][]candidate, a.sectors())}
	source := &operation{id: valueSource, op: clone.OpWrite}
	hole := &operation{id: valueSource, op: clone.OpWriteZeroes}
	a.each(func(sector int64, i int) {
		by := source
		if initial(sector) == valueZeros {
			by = hole
		}
		o.sectors[i] = append(make([]candidate, 0, 4), candidate{by: by, ruledOut: never, superseded: never})
	})
	o.flushed = -1
	return o
}

// reach gives the sectors of an operation that changes some: whole regions of a DISCARD.
func (o *oracle) reach(p *operation) (first, end int64) {
	off, stop := p.off, p.off+p.length
	if p.op == clone.OpDiscard {
		f, e := o.geo.Covered(p.off, p.length)
		off, stop = o.geo.Start(f), o.geo.Start(e)
	}
	return off / sectorBytes, stop / sectorBytes
}

// issue begins an operation.
func (o *oracle) issue(p *operation) {
	o.now++
	p.issued, p.ended = o.now, never
	o.history = append(o.history, p)
	switch p.op {
	case clone.OpRead:
		o.reading = append(o.reading, p)
	case clone.OpFlush:
	default:
		first, end := o.reach(p)
		o.area.within(first, end, func(_ int64, i int) {
			o.sectors[i] = append(o.trim(o.sectors[i]), candidate{by: p, ruledOut: never, superseded: never})
		})
	}
}

// end ends any operation but a READ that went well.
func (o *oracle) end(p *operation, err error) {
	o.now++
	p.ended, p.err = o.now, err
	switch {
	case p.op == clone.OpRead:
		o.reading = slices.DeleteFunc(o.reading, func(r *operation) bool { return r == p })
	case err != nil:
	case p.op == clone.OpFlush:
		o.flushed = max(o.flushed, p.issued)
	default:
		o.acknowledge(p)
	}
}

func (o *oracle) acknowledge(p *operation) {
	first, end := o.reach(p)
	o.area.within(first, end, func(_ int64, i int) {
		list := o.sectors[i]
		for i := range list {
			if c := &list[i]; c.by.ended < p.issued {
				c.ruledOut = min(c.ruledOut, o.now)
				c.superseded = min(c.superseded, o.now)
				c.gone = c.gone || p.fua
			}
		}
	})
}

// endRead ends a READ that went well with what it returned.
func (o *oracle) endRead(p *operation, data []byte) error {
	o.end(p, nil)
	for at := int64(0); at < p.length; at += sectorBytes {
		sector := (p.off + at) / sectorBytes
		v, err := decode(data[at:], sector)
		if err == nil {
			err = o.saw(sector, v, p.issued)
		}
		if err != nil {
			return o.wrong(sector, fmt.Sprintf("READ #%d returned", p.id), v, err)
		}
	}
	return nil
}

// saw takes a read of v, issued at a time and ending now.
func (o *oracle) saw(sector int64, v value, issued int) error {
	list := o.at(sector)
	if list == nil {
		return nil
	}
	matches, firstIssue := 0, never
	for i := range *list {
		if c := &(*list)[i]; c.by.content() == v && c.ruledOut > issued {
			matches++
			firstIssue = min(firstIssue, c.by.issued)
		}
	}
	if matches == 0 {
		return errNotAllowed
	}
	for i := range *list {
		c := &(*list)[i]
		if c.by.content() != v && (c.by.ended < issued || c.by.ended < firstIssue) {
			c.ruledOut = min(c.ruledOut, o.now)
		}
	}
	return nil
}

// crash is power loss: found tells what each sector holds afterwards.
func (o *oracle) crash(found func(sector int64) (value, error)) error {
	o.now++
	for _, p := range o.history {
		if p.ended == never {
			p.ended, p.crashed = o.now, true
		}
	}
	o.reading = o.reading[:0]
	var first error
	o.area.each(func(sector int64, i int) {
		v, err := found(sector)
		if err == nil {
			err = o.survived(i, v)
		}
		if err != nil && first == nil {
			first = o.wrong(sector, "after power loss the clone holds", v, err)
		}
	})
	return first
}

// died is the daemon's death, or its end in order: what the clone holds afterwards is the newest
// acknowledged write or a later issued one, flushed or not. Operations in flight stay so, as they
// are issued again.
func (o *oracle) died(found func(sector int64) (value, error)) error {
	o.now++
	var first error
	o.area.each(func(sector int64, _ int) {
		v, err := found(sector)
		if err == nil {
			err = o.saw(sector, v, o.now)
		}
		if err != nil && first == nil {
			first = o.wrong(sector, "after the daemon's end the clone holds", v, err)
		}
	})
	return first
}

// mayHold says whether a sector may hold v if the power went now.
func (o *oracle) mayHold(i int, v value) bool {
	return slices.ContainsFunc(o.sectors[i], func(c candidate) bool { return o.survives(&c, v) })
}

func (o *oracle) survives(c *candidate, v value) bool {
	return c.by.content() == v && !c.gone && c.superseded > o.flushed
}

// survived keeps of a sector's candidates those that left v, of which one is there now and durable.
func (o *oracle) survived(i int, v value) error {
	list := o.sectors[i][:0]
	for _, c := range o.sectors[i] {
		if o.survives(&c, v) {
			c.ruledOut, c.superseded = never, never
			list = append(list, c)
		}
	}
	if len(list) == 0 {
		return errNotAllowed
	}
	o.sectors[i] = list[:1]
	return nil
}

// holds checks what a sector holds when nothing is in flight.
func (o *oracle) holds(sector int64, v value, err error) error {
	if err == nil {
		err = o.saw(sector, v, o.now)
	}
	if err != nil {
		return o.wrong(sector, "at the end the destination holds", v, err)
	}
	return nil
}

// trim forgets candidates that neither a read in flight nor power loss can bring up again.
func (o *oracle) trim(list []candidate) []candidate {
	if len(list) < 8 {
		return list
	}
	oldest := o.now
	for _, r := range o.reading {
		oldest = min(oldest, r.issued)
	}
	return slices.DeleteFunc(list, func(c candidate) bool {
		return c.ruledOut <= oldest && (c.gone || c.superseded <= o.flushed)
	})
}

// at gives a sector's candidates, nil outside of the area.
func (o *oracle) at(sector int64) *[]candidate {
	if i := o.area.index(sector); i >= 0 {
		return &o.sectors[i]
	}
	return nil
}
