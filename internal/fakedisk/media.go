package fakedisk

type sector [SectorBytes]byte
type block [BlockBytes]byte

// version is the content that a write gave to a sector.
type version struct {
	order uint64 // of the write
	lost  bool   // a flush of it has failed: no later one makes it durable
	data  *sector
}

// media is what a disk holds, durable and in its cache. It knows no faults; its disk's lock guards
// it.
type media struct {
	durable map[int64]*block    // by block number; a missing one is zero
	cache   map[int64][]version // by sector number, oldest first
	order   uint64              // of the last write
}

// read copies the visible content.
func (m *media) read(b []byte, off int64) {
	for at := int64(0); at < int64(len(b)); at += SectorBytes {
		m.readSector(b[at:at+SectorBytes], off+at)
	}
}

func (m *media) readSector(b []byte, off int64) {
	if versions := m.cache[off/SectorBytes]; len(versions) > 0 {
		copy(b, versions[len(versions)-1].data[:])
		return
	}
	m.readDurable(b, off)
}

func (m *media) readDurable(b []byte, off int64) {
	if blk := m.durable[off/BlockBytes]; blk != nil {
		copy(b, blk[off%BlockBytes:])
		return
	}
	clear(b)
}

// write gives each sector of a range a new version that fill fills; at is its place in
// the range. fill sees the content before the write.
func (m *media) write(off, length int64, fill func(s *sector, at int64)) {
	m.order++
	for at := int64(0); at < length; at += SectorBytes {
		data := new(sector)
		fill(data, at)
		s := (off + at) / SectorBytes
		m.cache[s] = append(m.cache[s], version{order: m.order, data: data})
	}
}

// block returns the durable block at off, made if it is missing.
func (m *media) block(off int64) *block {
	blk := m.durable[off/BlockBytes]
	if blk == nil {
		blk = new(block)
		m.durable[off/BlockBytes] = blk
	}
	return blk
}

// harden makes a sector's newest version up to position durable. Older ones go with it: they
// were overwritten. Lost ones that are newer stay.
func (m *media) harden(s int64, position uint64) {
	versions := m.cache[s]
	for i := len(versions) - 1; i >= 0; i-- {
		if v := versions[i]; v.order <= position && !v.lost {
			copy(m.block(s * SectorBytes)[s*SectorBytes%BlockBytes:], v.data[:])
			m.cache[s] = versions[i+1:]
			break
		}
	}
	if len(m.cache[s]) == 0 {
		delete(m.cache, s)
	}
}

// lose marks what a failed flush should have made durable.
func (m *media) lose(position uint64) {
	for _, versions := range m.cache {
		for i := range versions {
			versions[i].lost = versions[i].lost || versions[i].order <= position
		}
	}
}

// nextWritten returns the first offset >= off at or behind which something was ever written, end if
// there is none.
func (m *media) nextWritten(off, end int64) int64 {
	next := end
	for b := range m.durable {
		next = nearer(next, off, b*BlockBytes, BlockBytes)
	}
	for s := range m.cache {
		next = nearer(next, off, s*SectorBytes, SectorBytes)
	}
	return next
}

// nearer returns the smaller of next and the first byte >= off of a stretch, if it has one.
func nearer(next, off, start, length int64) int64 {
	if start+length <= off {
		return next
	}
	return min(next, max(off, start))
}
