package copybuffers

// pieces is how many a buffer is cut into for small requests. At 64 KiB regions a piece of a buffer
// of 1 MiB holds the two regions that a small write may touch.
const pieces = 8

// Config is what a Set is made from. Buffers are page-aligned and all of one size, a multiple of 4096
// bytes.
type Config struct {
	Own [][]byte // the lane's, from the start
	// Stock is where the lane takes more from, up to Most in all; nil: nowhere. It may have none of
	// its own then, if the clone is complete.
	Stock *Stock
	Most  int
	// Cut: one of its own is cut into pieces for requests that need no more.
	Cut bool
	// Rest is how many of its own it keeps when the clone is complete.
	Rest int
}

// Set is a lane's buffers: its own, and while it needs more of them some of the stock's. Where
// regions are small one of its own is cut into pieces, for requests that need no more. It belongs to
// the lane's thread.
type Set struct {
	size   int64
	own    int // so many it keeps
	most   int // it may have
	atRest int // so many it keeps when the clone is complete
	whole  [][]byte
	used   int // whole ones
	cut    []cutBuffer
	stock  *Stock // nil: its own are all there are

	wake   func()
	hungry bool // in the stock's list; guarded by its lock
}

// cutBuffer is one that is cut.
type cutBuffer struct {
	buf  []byte
	free [pieces]bool
	used int
}

// Init makes the set. wake has the lane's thread look again when the stock has been filled.
func (s *Set) Init(cfg *Config, wake func()) {
	s.own, s.most, s.atRest = len(cfg.Own), max(cfg.Most, len(cfg.Own)), cfg.Rest
	s.whole = append(make([][]byte, 0, s.most), cfg.Own...)
	s.stock, s.wake = cfg.Stock, wake
	if s.stock == nil {
		s.size = int64(len(cfg.Own[0]))
		return
	}
	s.size = s.stock.size
	s.cut = make([]cutBuffer, 0, s.most)
	s.stock.expect(s.own, 1)
	if cfg.Cut && s.own > 0 {
		s.cutOne(s.whole[s.own-1])
		s.whole = s.whole[:s.own-1]
	}
}

func (s *Set) cutOne(buf []byte) {
	s.cut = append(s.cut, cutBuffer{buf: buf})
	for i := range pieces {
		s.cut[len(s.cut)-1].free[i] = true
	}
}

// Size is that of a whole buffer.
func (s *Set) Size() int64 { return s.size }

// Whole is how many whole ones of the lane's own are free.
func (s *Set) Whole() int { return len(s.whole) }

func (s *Set) piece() int64 { return s.size / pieces }

// ownWhole is how many of its own are not cut.
func (s *Set) ownWhole() int { return s.own - min(1, s.own, len(s.cut)) }

// held is how many the lane has.
func (s *Set) held() int { return len(s.whole) + s.used + len(s.cut) }

// InUse is how many are in use, pieces included.
func (s *Set) InUse() int {
	n := s.used
	for i := range s.cut {
		n += s.cut[i].used
	}
	return n
}

// Take gives a buffer of need bytes, or as many as a whole one has; nil: there is none. What is cut
// comes from the stock, but for the first: so neither who needs a piece nor who needs more waits
// for the other when there is no memory.
func (s *Set) Take(need int64) []byte {
	if len(s.cut) == 0 || need > s.piece() {
		return s.takeWhole()
	}
	for i := range s.cut {
		if c := &s.cut[i]; c.used < pieces {
			return c.take(s.piece())
		}
	}
	buf := s.borrow()
	if buf == nil {
		return nil
	}
	s.cutOne(buf)
	return s.cut[len(s.cut)-1].take(s.piece())
}

func (s *Set) takeWhole() []byte {
	buf := pop(&s.whole)
	if buf == nil {
		buf = s.borrow()
	}
	if buf != nil {
		s.used++
	}
	return buf
}

// borrow takes one of the stock.
func (s *Set) borrow() []byte {
	if s.stock == nil || s.held() >= s.most {
		return nil
	}
	return s.stock.take(s)
}

func pop(list *[][]byte) []byte {
	n := len(*list)
	if n == 0 {
		return nil
	}
	buf := (*list)[n-1]
	*list = (*list)[:n-1]
	return buf
}

func (c *cutBuffer) take(size int64) []byte {
	for i, free := range c.free {
		if free {
			c.free[i] = false
			c.used++
			from, to := int64(i)*size, int64(i+1)*size
			return c.buf[from:to:to]
		}
	}
	panic("no piece of a cut buffer is free")
}

// Give takes one back.
func (s *Set) Give(buf []byte) {
	if int64(len(buf)) == s.size {
		s.used--
		s.keep(buf)
		return
	}
	for i := range s.cut {
		if s.cut[i].give(buf, s.piece()) {
			s.joinIdle(i)
			return
		}
	}
	panic("a copy buffer of another lane")
}

// give says whether the piece is one of this buffer.
func (c *cutBuffer) give(piece []byte, size int64) bool {
	for i := range c.free {
		if &c.buf[int64(i)*size] == &piece[0] {
			c.free[i] = true
			c.used--
			return true
		}
	}
	return false
}

// joinIdle gives up a cut buffer of which no piece is in use, but for the first.
func (s *Set) joinIdle(i int) {
	if s.cut[i].used > 0 || i == 0 && s.own > 0 {
		return
	}
	buf := s.cut[i].buf
	last := len(s.cut) - 1
	s.cut[i] = s.cut[last]
	s.cut = s.cut[:last]
	s.keep(buf)
}

// keep keeps a buffer that nobody uses, if it is the lane's own, or gives it to the stock.
func (s *Set) keep(buf []byte) {
	if s.stock != nil && len(s.whole)+s.used >= s.ownWhole() {
		s.stock.put(buf)
		return
	}
	s.whole = append(s.whole, buf)
}

// Rest gives up what the lane does not need when the clone is complete.
func (s *Set) Rest() {
	if s.stock == nil || s.own <= s.atRest {
		return
	}
	s.own = s.atRest
	for s.held() > s.own {
		buf := pop(&s.whole)
		if buf == nil {
			break
		}
		s.stock.put(buf)
	}
	for i := len(s.cut) - 1; i >= 0 && s.own == 0; i-- {
		s.joinIdle(i)
	}
}

// Plenty says that more than half of the buffers, of those that need bytes need, are free.
func (s *Set) Plenty(need int64) bool {
	switch {
	case s.stock == nil:
		return len(s.whole) > s.own/2
	case len(s.cut) > 0 && need <= s.piece():
		free := 0
		for i := range s.cut {
			free += pieces - s.cut[i].used
		}
		return len(s.cut) < s.most/2 && (free > pieces/2 || s.stock.any(s))
	}
	return s.used < s.most/2 && (len(s.whole) > 1 || s.stock.any(s))
}
