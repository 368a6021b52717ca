package clonetest

import (
	"errors"
	"testing"

	"github.com/ublk-clone/ublk-clone/clone"
)

// model drives an oracle by hand: four regions of 8 sectors and a tail of 3. The source is a hole
// in region 2.
type model struct {
	*oracle
	lastID value
}

const (
	modelRegion  = 8 // sectors
	modelSectors = 4*modelRegion + 3
)

func newModel(t *testing.T) *model {
	t.Helper()
	geo, err := clone.NewGeometry(modelSectors*sectorBytes, modelRegion*sectorBytes)
	if err != nil {
		t.Fatal(err)
	}
	return &model{newOracle(geo, newArea([]Window{{0, modelSectors}}), modelSource), firstValue}
}

func modelSource(sector int64) value {
	if sector/modelRegion == 2 {
		return valueZeros
	}
	return valueSource
}

// begin issues an operation on the sectors [first, end).
func (m *model) begin(op clone.Op, first, end int64) *operation {
	m.lastID++
	p := &operation{id: m.lastID, op: op, off: first * sectorBytes, length: (end - first) * sectorBytes}
	m.issue(p)
	return p
}

// do is an operation that ends well before anything else begins.
func (m *model) do(op clone.Op, first, end int64) *operation {
	p := m.begin(op, first, end)
	m.end(p, nil)
	return p
}

// durably is a WRITE with FUA that ends well.
func (m *model) durably(first, end int64) *operation {
	m.lastID++
	p := &operation{id: m.lastID, op: clone.OpWrite, fua: true, off: first * sectorBytes, length: (end - first) * sectorBytes}
	m.issue(p)
	m.end(p, nil)
	return p
}

func (m *model) write(first, end int64) *operation { return m.do(clone.OpWrite, first, end) }
func (m *model) flush()                            { m.do(clone.OpFlush, 0, 0) }

// returns ends a READ with the same value in each of its sectors.
func (m *model) returns(p *operation, v value) error {
	data := make([]byte, p.length)
	fill(data, p.off/sectorBytes, v)
	return m.endRead(p, data)
}

// read is a READ of one sector by itself.
func (m *model) read(sector int64, v value) error {
	return m.returns(m.begin(clone.OpRead, sector, sector+1), v)
}

// reads are some, one after the other: the verdict on the last of them. Those before it must be
// right.
func (m *model) reads(sector int64, values ...value) error {
	for _, v := range values[:len(values)-1] {
		if err := m.read(sector, v); err != nil {
			panic(err)
		}
	}
	return m.read(sector, values[len(values)-1])
}

// cut is a power loss that leaves v in one sector and everywhere else what no operation has
// touched.
func (m *model) cut(sector int64, v value) error { return m.crash(m.finds(sector, v)) }

// die is the daemon's end.
func (m *model) die(sector int64, v value) error { return m.died(m.finds(sector, v)) }

func (m *model) finds(sector int64, v value) func(int64) (value, error) {
	return func(s int64) (value, error) {
		if s == sector {
			return v, nil
		}
		return modelSource(s), nil
	}
}

// TestOracle: of each kind of answer the oracle lets the right one pass and reports the wrong one.
// Without this a simulator whose oracle believes everything would pass all its tests.
func TestOracle(t *testing.T) {
	const (
		right = true
		wrong = false
	)
	for _, c := range []struct {
		name string
		want bool
		do   func(m *model) error
	}{
		{"the source's bytes", right, func(m *model) error { return m.read(3, valueSource) }},
		{"a hole of the source", right, func(m *model) error { return m.read(17, valueZeros) }},
		{"zeros where the source has data", wrong, func(m *model) error { return m.read(3, valueZeros) }},
		{"data in a hole of the source", wrong, func(m *model) error { return m.read(17, valueSource) }},
		{"the destination's old content", wrong, func(m *model) error { return m.read(3, valueOldDest) }},
		{"the destination's old content in a hole", wrong, func(m *model) error { return m.read(17, valueOldDest) }},
		{"another sector's content", wrong, func(m *model) error {
			data := make([]byte, sectorBytes)
			fill(data, 4, valueSource)
			return m.endRead(m.begin(clone.OpRead, 3, 4), data)
		}},
		{"half a sector", wrong, func(m *model) error {
			w := m.write(3, 4)
			data := make([]byte, sectorBytes)
			fill(data, 3, valueSource)
			fill(data, 3, w.id)
			clear(data[sectorBytes/2:])
			return m.endRead(m.begin(clone.OpRead, 3, 4), data)
		}},
		{"one sector of many", wrong, func(m *model) error {
			data := make([]byte, 16*sectorBytes)
			fill(data, 0, valueSource)
			fill(data[15*sectorBytes:], 15, valueOldDest)
			return m.endRead(m.begin(clone.OpRead, 0, 16), data)
		}},
		{"bytes that were left out", wrong, func(m *model) error {
			data := make([]byte, sectorBytes)
			spoil(data)
			return m.endRead(m.begin(clone.OpRead, 3, 4), data)
		}},

		{"a write", right, func(m *model) error { w := m.write(2, 5); return m.read(4, w.id) }},
		{"a stale read: the source's", wrong, func(m *model) error { m.write(2, 5); return m.read(4, valueSource) }},
		{"a stale read: an older write", wrong, func(m *model) error {
			w := m.write(2, 5)
			m.write(4, 6)
			return m.read(4, w.id)
		}},
		{"a write beside its range", wrong, func(m *model) error { w := m.write(2, 5); return m.read(5, w.id) }},
		{"a read that began before a write's end", right, func(m *model) error {
			w, r := m.begin(clone.OpWrite, 4, 5), m.begin(clone.OpRead, 4, 5)
			m.end(w, nil)
			return m.returns(r, valueSource)
		}},
		{"a write in flight, seen", right, func(m *model) error {
			w := m.begin(clone.OpWrite, 4, 5)
			return m.read(4, w.id)
		}},
		{"a write in flight, seen and gone again", wrong, func(m *model) error {
			w := m.begin(clone.OpWrite, 4, 5)
			return m.reads(4, valueSource, w.id, valueSource)
		}},
		{"a write before it is issued", wrong, func(m *model) error { return m.read(4, m.lastID+2) }},
		{"a write that was issued after the read's end", wrong, func(m *model) error {
			r := m.begin(clone.OpRead, 4, 5)
			err := m.returns(r, m.lastID+1)
			m.write(4, 5)
			return err
		}},
		{"either of two writes at once", right, func(m *model) error {
			a, b := m.begin(clone.OpWrite, 4, 5), m.begin(clone.OpWrite, 4, 5)
			m.end(b, nil)
			m.end(a, nil)
			return m.read(4, a.id)
		}},
		{"one of two writes at once, then the other", wrong, func(m *model) error {
			a, b := m.begin(clone.OpWrite, 4, 5), m.begin(clone.OpWrite, 4, 5)
			m.end(b, nil)
			m.end(a, nil)
			return m.reads(4, a.id, b.id)
		}},
		{"a failed write, seen", right, func(m *model) error {
			w := m.begin(clone.OpWrite, 4, 5)
			m.end(w, errors.New("failed"))
			return m.read(4, w.id)
		}},
		{"a failed write, seen after it was not", wrong, func(m *model) error {
			w := m.begin(clone.OpWrite, 4, 5)
			m.end(w, errors.New("failed"))
			return m.reads(4, valueSource, w.id)
		}},
		{"a write of long ago", wrong, func(m *model) error {
			w := m.write(4, 5)
			for range 20 {
				m.write(4, 5)
			}
			return m.read(4, w.id)
		}},
		{"a write of long ago, for a read as old", right, func(m *model) error {
			w, r := m.write(4, 5), m.begin(clone.OpRead, 4, 5)
			for range 20 {
				m.write(4, 5)
			}
			return m.returns(r, w.id)
		}},

		{"a discarded region", right, func(m *model) error { m.do(clone.OpDiscard, 5, 20); return m.read(8, valueZeros) }},
		{"a discarded region that still has its data", wrong, func(m *model) error {
			m.do(clone.OpDiscard, 5, 20)
			return m.read(8, valueSource)
		}},
		{"a discard's head outside of whole regions", wrong, func(m *model) error {
			m.do(clone.OpDiscard, 5, 20)
			return m.read(6, valueZeros)
		}},
		{"a discard's end outside of whole regions", wrong, func(m *model) error {
			m.do(clone.OpDiscard, 5, 30)
			return m.read(25, valueZeros)
		}},
		{"a discard to the device's end", right, func(m *model) error {
			m.do(clone.OpDiscard, 30, modelSectors)
			return m.read(modelSectors-1, valueZeros)
		}},
		{"zeroed bytes", right, func(m *model) error { m.do(clone.OpWriteZeroes, 5, 7); return m.read(6, valueZeros) }},
		{"zeroed bytes that still have their data", wrong, func(m *model) error {
			m.do(clone.OpWriteZeroes, 5, 7)
			return m.read(6, valueSource)
		}},
		{"zeros beside what was zeroed", wrong, func(m *model) error {
			m.do(clone.OpWriteZeroes, 5, 7)
			return m.read(7, valueZeros)
		}},

		{"power loss keeps a write that was not flushed", right, func(m *model) error { w := m.write(4, 5); return m.cut(4, w.id) }},
		{"power loss takes a write that was not flushed", right, func(m *model) error { m.write(4, 5); return m.cut(4, valueSource) }},
		{"power loss takes a flushed write", wrong, func(m *model) error {
			m.write(4, 5)
			m.flush()
			return m.cut(4, valueSource)
		}},
		{"power loss takes flushed zeros", wrong, func(m *model) error {
			m.do(clone.OpDiscard, 0, 8)
			m.flush()
			return m.cut(4, valueSource)
		}},
		{"power loss takes a write that a later FLUSH has not covered", right, func(m *model) error {
			f := m.begin(clone.OpFlush, 0, 0)
			m.write(4, 5)
			m.end(f, nil)
			return m.cut(4, valueSource)
		}},
		{"power loss takes a write that a failed FLUSH has covered", right, func(m *model) error {
			m.write(4, 5)
			m.end(m.begin(clone.OpFlush, 0, 0), errors.New("failed"))
			return m.cut(4, valueSource)
		}},
		{"power loss takes a write that a FLUSH in flight covers", right, func(m *model) error {
			m.write(4, 5)
			m.begin(clone.OpFlush, 0, 0)
			return m.cut(4, valueSource)
		}},
		{"power loss takes a write with FUA", wrong, func(m *model) error { m.durably(4, 5); return m.cut(4, valueSource) }},
		{"power loss brings an older write back", wrong, func(m *model) error {
			w := m.write(4, 5)
			m.write(4, 5)
			m.flush()
			return m.cut(4, w.id)
		}},
		{"power loss brings back what FUA has overwritten", wrong, func(m *model) error {
			w := m.write(4, 5)
			m.durably(4, 5)
			return m.cut(4, w.id)
		}},
		{"power loss leaves a newer write than the flushed one", right, func(m *model) error {
			m.write(4, 5)
			m.flush()
			w := m.write(4, 5)
			return m.cut(4, w.id)
		}},
		{"power loss leaves the destination's old content", wrong, func(m *model) error { m.write(4, 5); return m.cut(4, valueOldDest) }},
		{"power loss leaves zeros", wrong, func(m *model) error { m.write(4, 5); return m.cut(4, valueZeros) }},
		{"power loss changes what nobody wrote", wrong, func(m *model) error { m.write(4, 5); return m.cut(30, valueZeros) }},
		{"power loss leaves a sector that cannot be told", wrong, func(m *model) error {
			return m.crash(func(int64) (value, error) { return 0, errors.New("no pattern") })
		}},
		{"what power loss has left is durable", wrong, func(m *model) error {
			w := m.write(4, 5)
			must(m.cut(4, w.id))
			return m.cut(4, valueSource)
		}},
		{"a write that power loss has taken comes back", wrong, func(m *model) error {
			w := m.write(4, 5)
			must(m.cut(4, valueSource))
			return m.read(4, w.id)
		}},
		{"a write in flight at a power loss", right, func(m *model) error { w := m.begin(clone.OpWrite, 4, 5); return m.cut(4, w.id) }},

		{"the daemon's end takes an acknowledged write", wrong, func(m *model) error { m.write(4, 5); return m.die(4, valueSource) }},
		{"the daemon's end keeps an acknowledged write", right, func(m *model) error { w := m.write(4, 5); return m.die(4, w.id) }},
		{"the daemon's end takes a write in flight", right, func(m *model) error { m.begin(clone.OpWrite, 4, 5); return m.die(4, valueSource) }},
		{"the daemon's end takes a write that was seen", wrong, func(m *model) error {
			w := m.begin(clone.OpWrite, 4, 5)
			must(m.read(4, w.id))
			return m.die(4, valueSource)
		}},
		{"the daemon's end brings an older write back", wrong, func(m *model) error {
			w := m.write(4, 5)
			m.write(4, 5)
			return m.die(4, w.id)
		}},
		{"the daemon's end undoes a discard", wrong, func(m *model) error {
			m.do(clone.OpDiscard, 0, 8)
			return m.die(30, valueSource)
		}},
		{"the destination at the end", right, func(m *model) error { w := m.write(4, 5); return m.holds(4, w.id, nil) }},
		{"another destination at the end", wrong, func(m *model) error { m.write(4, 5); return m.holds(4, valueSource, nil) }},
		{"a destination that cannot be read at the end", wrong, func(m *model) error { return m.holds(4, valueSource, errors.New("failed")) }},
	} {
		if err := c.do(newModel(t)); (err == nil) != c.want {
			t.Errorf("%s: right %t, the oracle says %v", c.name, c.want, err)
		}
	}
}

// must stops a case whose beginning is not what it is meant to be.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
