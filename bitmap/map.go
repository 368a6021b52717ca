package bitmap

import (
	"fmt"
	"math/bits"
	"sync/atomic"
)

// Map is the live region map. See the package comment for threads and memory order.
type Map struct {
	tally
	mem   []Page
	zeros zeroBits // KeepZeros
}

// New returns an empty map of nrRegions regions over mem, which must be PagesFor(nrRegions)
// long, and all zero but for pages that Recover takes over. A page of mem is first touched
// when a region in it is marked.
func New(nrRegions uint64, mem []Page) *Map {
	pages := PagesFor(nrRegions)
	if uint64(len(mem)) != pages {
		panic(fmt.Sprintf("bitmap: %d pages of memory for %d regions, need %d", len(mem), nrRegions, pages))
	}
	m := &Map{mem: mem}
	m.init(nrRegions)
	return m
}

// KeepZeros gives the map a bit a page, beside its memory and as lasting as that. A page whose bit
// is set has no region in state Source, and its memory need not say so in the Z plane: a page that
// is zero throughout needs no memory. Before anything is loaded or marked; what is in bits is for
// Recover and RecoverZero.
func (m *Map) KeepZeros(bits []atomic.Uint64) {
	if uint64(len(bits))*64 < m.NrPages() {
		panic(fmt.Sprintf("bitmap: %d words of bits for %d pages", len(bits), m.NrPages()))
	}
	m.zeros = bits
}

// KeepsZeros says whether it was given bits.
func (m *Map) KeepsZeros() bool { return m.zeros != nil }

// AllHydrated reports whether every region of [first, end) is hydrated; an empty range
// is. Any thread. This is what every write asks first: a range inside one word costs a
// load of the counter and one of the word.
func (m *Map) AllHydrated(first, end uint64) bool {
	m.checkRange(first, end)
	for first < end {
		page := first / RegionsPerPage
		switch n := uint64(m.marked[PlaneHydrated][page].Load()); n {
		case 0:
			return false
		case regionsIn(m.nr, page):
			first = (page + 1) * RegionsPerPage
			continue
		}
		c := chunkAt(first, end)
		if c.mask&^m.mem[page].load(PlaneHydrated, c.word) != 0 && !m.Full(page) { // the double look
			return false
		}
		first = c.next
	}
	return true
}

// Load ORs the image of a page, as read from the metadata, into the map. It is for open,
// before any reader: what it sets is durable and goes into no Delta. It fails, and loads
// nothing, if the image has bits beyond the last region.
func (m *Map) Load(page uint64, img *Page) error {
	if err := Valid(m.nr, page, img); err != nil {
		return fmt.Errorf("load region map: %w", err)
	}
	if m.Full(page) {
		return nil
	}
	if m.FullImage(page, img) && !m.Used(page) {
		m.LoadFull(page)
		return nil
	}
	if m.zeros != nil && m.zeroImage(page, img) && !m.Used(page) {
		m.loadZero(page)
		return nil
	}
	if m.AllZero(page) {
		m.mem[page].fillZeros(regionsIn(m.nr, page))
	}
	for _, p := range [...]Plane{PlaneZero, PlaneHydrated} {
		n := uint64(0)
		for w := range uint64(PlaneWords) {
			if v := *img.word(p, w); v != 0 {
				n += m.set(p, page, w, v&^m.mem[page].load(p, w))
			}
		}
		m.marked[p][page].Add(uint32(n))
	}
	return nil
}

// loadZero takes over a page that is zero throughout. The memory stays untouched.
func (m *Map) loadZero(page uint64) {
	m.zeros.set(page)
	m.countZero(page)
}

// LoadFull is Load of an image with every region hydrated. The memory stays untouched.
func (m *Map) LoadFull(page uint64) {
	if m.Used(page) {
		panic(fmt.Sprintf("bitmap: page %d is loaded already", page))
	}
	m.countFull(page)
}

// Holds reports whether every mark of an image is in the map, a Z perhaps as H. Any thread.
func (m *Map) Holds(page uint64, img *Page) bool {
	if m.Full(page) {
		return true
	}
	for w := range uint64(PlaneWords) {
		if img[w]|img[PlaneWords+w] == 0 {
			continue
		}
		if !m.Used(page) {
			return false
		}
		h, z := m.words(page, w)
		if img[w]&^h != 0 || img[PlaneWords+w]&^(h|z) != 0 {
			return m.Full(page) // the double look
		}
	}
	return true
}

// words loads a word of both planes, without a look at memory that may have been released because
// the page is zero throughout.
func (m *Map) words(page, w uint64) (h, z uint64) {
	if m.AllZero(page) {
		return 0, ^uint64(0)
	}
	h, z = m.mem[page].load(PlaneHydrated, w), m.mem[page].load(PlaneZero, w)
	if m.noSource(page) {
		z = ^uint64(0)
	}
	return h, z
}

// RecoverZero is Recover of a page whose bit is set (KeepZeros) and that has no memory.
func (m *Map) RecoverZero(page uint64, durable *Page, d *Delta) error {
	switch {
	case !m.zeros.has(page) || m.Used(page):
		panic(fmt.Sprintf("bitmap: page %d is not one that is zero throughout, or is loaded already", page))
	case durable == nil || *durable == Page{}:
		if d != nil {
			d.addZeroPage(page, regionsIn(m.nr, page))
		}
	case !m.zeroImage(page, durable):
		return m.Recover(page, durable, d)
	}
	m.loadZero(page)
	return nil
}

// Recover takes over a page of a live map that a process has left behind when it died: its
// memory holds the marks. durable is the page as read from the metadata, nil if there is
// nothing. What is only in the memory was marked and not committed: it goes into d, which
// grows where it has to; nil if nobody keeps account of that. Each page once, before any
// reader; a page that was released, or never used, is Load's.
func (m *Map) Recover(page uint64, durable *Page, d *Delta) error {
	if durable == nil {
		durable = &Page{}
	}
	for _, img := range [...]*Page{durable, &m.mem[page]} {
		if err := Valid(m.nr, page, img); err != nil {
			return fmt.Errorf("recover region map: %w", err)
		}
	}
	if m.zeros.has(page) {
		m.mem[page].fillZeros(regionsIn(m.nr, page))
	}
	mem := &m.mem[page]
	for _, p := range [...]Plane{PlaneZero, PlaneHydrated} {
		n := 0
		for w := range uint64(PlaneWords) {
			live := mem.word(p, w)
			if fresh := *live &^ *durable.word(p, w); fresh != 0 && d != nil {
				d.growFor(page)
				d.record(p, page, w, fresh)
			}
			*live |= *durable.word(p, w)
			n += bits.OnesCount64(*live)
		}
		m.marked[p][page].Store(uint32(n))
	}
	hydrated, zero := mem.Counts()
	m.hydrated.Add(hydrated)
	m.zero.Add(int64(zero))
	return nil
}

// Mark sets the bits of [first, end) in a plane, and returns how many of them were clear.
// Those are recorded in d, which must have a slot left for every page (Delta.Missing). A
// hydrated region is not marked zero: H wins, the bit would say nothing.
// The core's lock must be held.
func (m *Map) Mark(p Plane, first, end uint64, d *Delta) (newly uint64) {
	m.checkRange(first, end)
	for first < end {
		page := PageOf(first)
		pageEnd := min(end, (page+1)*RegionsPerPage)
		newly += m.markPage(p, first, pageEnd, d)
		first = pageEnd
	}
	return newly
}

// markPage is Mark for a range inside one page.
func (m *Map) markPage(p Plane, first, end uint64, d *Delta) (newly uint64) {
	page := PageOf(first)
	n := regionsIn(m.nr, page)
	switch {
	case m.Full(page), p == PlaneZero && m.noSource(page): // nothing to add, and the memory may have been released
		return 0
	case p == PlaneZero && m.zeros != nil && end-first == n && !m.Used(page):
		d.addZeroPage(page, n) // in this order: package comment, Threads
		m.loadZero(page)
		return n
	case m.AllZero(page):
		m.mem[page].fillZeros(regionsIn(m.nr, page)) // before the counter of the other plane makes readers look there
	}
	for first < end {
		c := chunkAt(first, end)
		first = c.next
		fresh := c.mask &^ (m.mem[page].load(p, c.word) | m.mem[page].load(PlaneHydrated, c.word))
		if fresh == 0 {
			continue
		}
		d.record(p, page, c.word, fresh) // before the bit can be seen: package comment, Threads
		newly += m.set(p, page, c.word, fresh)
	}
	if newly > 0 {
		m.marked[p][page].Add(uint32(newly))
	}
	return newly
}

// set sets bits that are clear in a word and accounts for them, except in the page's
// counter: the caller adds the returned number when the page's words are done.
func (m *Map) set(p Plane, page, w, fresh uint64) uint64 {
	n := bits.OnesCount64(fresh)
	atomic.OrUint64(m.mem[page].word(p, w), fresh)
	if p == PlaneHydrated {
		m.hydrated.Add(uint64(n))
		m.zero.Add(-int64(bits.OnesCount64(fresh & m.mem[page].load(PlaneZero, w))))
	} else {
		m.zero.Add(int64(bits.OnesCount64(fresh &^ m.mem[page].load(PlaneHydrated, w))))
	}
	return uint64(n)
}

// DurableImage puts into out what a commit of the frozen set writes for a page: the live
// bits without those in active, which were marked after the freeze. That is the last
// durable image and the frozen set, exactly (I4). The core's lock must be held.
//
// A page that is full and not in active is hydrated throughout in that image, so its Z
// plane says nothing any more and is left out: the memory may have been released. A full
// page that is in active has not been (Release), and its Z plane still counts: regions
// that are Z durably and H only in active must not fall back to Source.
func (m *Map) DurableImage(page uint64, active *Delta, out *Page) {
	*out = Page{}
	since, n := active.Page(page), regionsIn(m.nr, page)
	if since == nil && m.Full(page) {
		for w := range uint64(PlaneWords) {
			out[w] = maskBelow(n, w)
		}
		return
	}
	if !m.Used(page) {
		return
	}
	for w := range uint64(PlaneWords) {
		h, z := m.words(page, w)
		out[w], out[PlaneWords+w] = h, z&maskBelow(n, w)
		if active.zeroPage(page) {
			out[PlaneWords+w] = 0
		}
	}
	if since != nil {
		for w := range uint64(2 * PlaneWords) {
			out[w] &^= since[w]
		}
	}
}

// Release hands the memory of a full page to give, which may make it read as zeros, and
// reports whether it did: a page that is not full is left alone. The caller knows that
// the page is durably hydrated throughout: no bit of it is in the active Delta, and the
// frozen one has been written and flushed. The core's lock must be held; readers need not
// have stopped.
func (m *Map) Release(page uint64, give func(mem *Page)) bool {
	if !m.Full(page) {
		return false
	}
	give(&m.mem[page])
	return true
}

// ReleaseZero is Release of a page that is durably zero throughout. Before a region of it is
// hydrated the caller sees to it that there is memory again.
func (m *Map) ReleaseZero(page uint64, give func(mem *Page)) bool {
	if m.zeros == nil || !m.AllZero(page) {
		return false
	}
	m.zeros.set(page)
	give(&m.mem[page])
	return true
}
