package identity

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/blockdev"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// The superblock holds checksums of some blocks of the destination, by which the next daemon knows
// it again (dest.go). A goroutine of its own reads them, so that no commit and no status waits for
// a destination that does not answer:
//
//	1  read the blocks of the sample again, and new ones           the goroutine
//	2  the next commit takes what was read (begin), flushes the
//	   destination, and with that the blocks are durable (end)     committer
//	3  the superblock is written with them                         committer
//
// Only step 2 makes a sample true after a power cut. Until the next sample users may write its
// blocks again. So a block counts as steady when it has not changed for steadyAfter times as long
// as it takes to the next sample: of such blocks few change in that time, whatever users do. Those
// that change again and again go. At a clean stop nobody writes any more, and the last sample is
// exact.

// Samples come often at first, and every tenth of the time for which the daemon has served later,
// within these bounds.
const (
	sampleOften  = time.Second
	sampleSeldom = 10 * time.Second
	steadyAfter  = 3
)

// young is how long blocks that are not steady are told. Later on that nothing becomes steady means
// that users write everything all the time; then such blocks tell nothing.
const young = 10 * time.Second

// enoughSteady is how many steady blocks are enough to do without others.
const enoughSteady = 4

// What goes into a sample, at most.
const (
	mostWritten = 36 // blocks that users wrote; the rest is left for what was copied
	mostUniform = 16
	mostReads   = 2 * metadata.SampleBlocks // of new blocks, for one sample
	eachStretch = 4                         // blocks of one write
)

// sampleLimit bounds the last sample, and the wait for one that is under way, when the clone ends.
const sampleLimit = 3 * time.Second

// sampled is a block of the sample and when it was first seen as it is.
type sampled struct {
	metadata.SampleBlock
	since time.Time
}

// DestSample keeps the sample up to date.
type DestSample struct {
	core   *clone.Core
	dest   *blockdev.Device
	size   int64       // of the clone, bytes
	usable func() bool // the metadata can be written

	first   chan struct{} // the first commit has succeeded
	quit    chan struct{}
	left    chan struct{}
	stopped bool

	// The goroutine's; after it has left, of whoever has stopped it.
	buf    *sys.Mapping
	rng    *rand.Rand
	blocks []sampled
	begun  time.Time
	taken  time.Time
	moved  int64 // bytes, when it was taken: what users wrote and hydration copied

	mu struct {
		sync.Mutex
		next     *metadata.SampleTable // was read, and no commit has begun since
		inCommit *metadata.SampleTable
		durable  metadata.SampleTable
	}
}

// Known is the sample for the superblock of a session.
func (s *DestSample) Known(session uint64) metadata.DestSample {
	s.mu.Lock()
	defer s.mu.Unlock()
	return metadata.DestSample{Session: session, Blocks: s.mu.durable}
}

// adopt takes over blocks that are in the destination.
func (s *DestSample) adopt(blocks []metadata.SampleBlock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(s.mu.durable[:], blocks)
	for _, b := range blocks {
		was := sampled{SampleBlock: b, since: time.Now()}
		if b.Is(metadata.SampleSteady) {
			was.since = time.Time{}
		}
		s.blocks = append(s.blocks, was)
	}
}

// Begin says that the commit that begins now will make a sample durable. The committer's, as is
// end.
func (s *DestSample) Begin() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.inCommit, s.mu.next = s.mu.next, nil
	return s.mu.inCommit != nil
}

// End is the outcome of that commit; true: the superblock is to be written.
func (s *DestSample) End(err error) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	table := s.mu.inCommit
	s.mu.inCommit = nil
	if err != nil {
		if s.mu.next == nil {
			s.mu.next = table // for the next commit
		}
		return false
	}
	select {
	case s.first <- struct{}{}:
	default:
	}
	if table != nil {
		s.mu.durable = *table
	}
	return table != nil
}

// Start begins to sample the destination of a core; usable says whether the metadata can be
// written, and kick asks for a commit.
func (s *DestSample) Start(core *clone.Core, dest *blockdev.Device, size int64, usable func() bool, kick func()) {
	s.core, s.dest, s.size, s.usable = core, dest, size, usable
	s.first, s.begun = make(chan struct{}, 1), time.Now()
	s.Resume(kick)
}

func (s *DestSample) Resume(kick func()) {
	s.quit, s.left, s.stopped = make(chan struct{}), make(chan struct{}), false
	guard.Go("sample of the destination", func() { s.run(kick) })
}

// Stop ends the goroutine, unless that hangs in a read: then it is left behind, and false is the
// answer, also to who asks again.
func (s *DestSample) Stop() bool {
	if !s.stopped {
		s.stopped = true
		close(s.quit)
		select {
		case <-s.left:
		case <-time.After(sampleLimit):
		}
	}
	select {
	case <-s.left:
		return true
	default:
		return false
	}
}

func (s *DestSample) run(kick func()) {
	defer close(s.left)
	tick := time.NewTicker(sampleOften)
	defer tick.Stop()
	for {
		select {
		case <-s.first:
			if len(s.blocks) > 0 { // it is not the first one
				continue
			}
		case <-tick.C:
			if time.Since(s.taken) < s.interval() || !s.wanted() {
				continue
			}
		case <-s.quit:
			return
		}
		if s.usable() && s.read(false) {
			s.publish()
			kick()
		}
	}
}

// interval is how long it takes to the next sample.
func (s *DestSample) interval() time.Duration {
	return min(max(time.Since(s.begun)/10, sampleOften), sampleSeldom)
}

// wanted says that the next sample would tell more than the last one.
func (s *DestSample) wanted() bool {
	return s.bytes() != s.moved || s.count(metadata.SampleSteady) < len(s.blocks)
}

// bytes grows with all that is written to the destination, by the clone or past it.
func (s *DestSample) bytes() int64 {
	st := s.core.Stats()
	return st.WriteBytes + st.Copied + s.dest.WrittenBesides()
}

func (s *DestSample) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.next = s.table(false)
}

// table is what is told of the blocks: all of them if it is exact, else those that users have
// hardly written again when it is read.
func (s *DestSample) table(exact bool) *metadata.SampleTable {
	table, n := &metadata.SampleTable{}, 0
	all := exact || s.count(metadata.SampleSteady) < enoughSteady && time.Since(s.begun) < young
	for _, b := range s.blocks {
		if all || b.Is(metadata.SampleSteady) {
			table[n] = b.SampleBlock
			n++
		}
	}
	return table
}

// Last makes the sample exact, when nobody writes to the destination any more and it was flushed.
// false: it did not answer in time, or cannot be read.
func (s *DestSample) Last() bool {
	if !s.Stop() || s.dest.Align() > metadata.BlockSize {
		return false
	}
	s.quit, s.left = make(chan struct{}), make(chan struct{})
	done := make(chan *metadata.SampleTable, 1)
	guard.Go("last sample of the destination", func() {
		defer close(s.left)
		s.read(true)
		done <- s.table(true)
	})
	select {
	case table := <-done:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.durable = *table
		return len(table.Used()) > 0 || s.core.Regions().NrHydrated() == 0
	case <-time.After(sampleLimit):
		close(s.quit) // ends it after the read that does not answer
		return false
	}
}

// read brings the blocks up to date; true: they are others now. In an exact sample those that
// change often stay, too.
func (s *DestSample) read(exact bool) (changed bool) {
	if s.dest.Align() > metadata.BlockSize || !s.prepare() {
		return false
	}
	s.taken, s.moved = time.Now(), s.bytes()
	old := s.blocks
	changed = s.again(exact)
	for _, stretch := range s.core.RecentWrites(nil) {
		for range eachStretch {
			off := stretch.Off + s.rng.Int64N(stretch.Length/metadata.BlockSize)*metadata.BlockSize
			changed = s.add(off, true) || changed
		}
	}
	for n := 0; n < mostReads && s.room(false) >= 0; n++ {
		off, ok := s.anywhere()
		if !ok {
			break
		}
		changed = s.add(off, false) || changed
	}
	if s.ended() {
		s.blocks = old // what is new may be incomplete
		return false
	}
	return changed
}

// again reads the blocks that are in the sample.
func (s *DestSample) again(exact bool) (changed bool) {
	old := s.blocks
	s.blocks = make([]sampled, 0, metadata.SampleBlocks)
	for _, was := range old {
		is, ok := s.block(was.Offset(), was.Is(metadata.SampleWritten))
		differs := is.Sum != was.Sum
		switch {
		case !ok, differs && !exact && was.Is(metadata.SampleWritten):
			changed = true
			continue
		case differs: // users wrote it since
			is.Place |= metadata.SampleWritten
		default:
			is.since = was.since
		}
		if s.taken.Sub(is.since) >= steadyAfter*s.interval() {
			is.Place |= metadata.SampleSteady
		}
		changed = changed || is.SampleBlock != was.SampleBlock
		s.blocks = append(s.blocks, is)
	}
	return changed
}

func (s *DestSample) ended() bool {
	select {
	case <-s.quit:
		return true
	default:
		return false
	}
}

// prepare takes what is needed to read.
func (s *DestSample) prepare() bool {
	if s.buf == nil {
		s.buf, _ = sys.Map(metadata.BlockSize, true) // never given back: a read that hangs may still fill it
		s.rng = rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	}
	return s.buf != nil
}
