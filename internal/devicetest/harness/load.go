package harness

import (
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

// Mix is how often a random request is of a kind.
type Mix struct{ Write, Read, Zero, Discard, Flush int }

// Everything is a mix of all kinds of requests.
var Everything = Mix{Write: 50, Read: 35, Zero: 5, Discard: 5, Flush: 5}

// Request makes one random request in the range.
func (w *Model) Request(rng *rand.Rand, v *Volume, buf []byte, off, length int64, kinds Mix) error {
	pick := rng.IntN(kinds.Write + kinds.Read + kinds.Zero + kinds.Discard + kinds.Flush)
	for _, kind := range []struct {
		weight int
		do     func() error
	}{
		{kinds.Write, func() error { return w.Write(v, buf[:length], off, rng.IntN(8) == 0) }},
		{kinds.Read, func() error { return w.Read(v, buf[:length], off) }},
		{kinds.Zero, func() error { return w.Zero(v, off, length) }},
		{kinds.Discard, func() error { return w.Discard(v, off, length) }},
		{kinds.Flush, v.Flush},
	} {
		if pick -= kind.weight; pick < 0 {
			return kind.do()
		}
	}
	return nil
}

// Place chooses a range: mostly small, now and then up to IOSize, often at the end of the device or
// beside the border of a region.
func (w *Model) Place(rng *rand.Rand, block int64) (off, length int64) {
	blocks := w.Size / block
	most := min(int64(IOSize)/block, blocks)
	n := min(most, 1+rng.Int64N(1+rng.Int64N(most)>>rng.IntN(12)))
	at := rng.Int64N(blocks - n + 1)
	switch rng.IntN(8) {
	case 0:
		at = blocks - n
	case 1, 2:
		border := (at * block / w.region) * w.region / block
		at = max(0, min(blocks-n, border-rng.Int64N(n+1)))
	}
	return at * block, n * block
}

// after is place for a thread whose requests follow each other: the range begins at off, or at the
// beginning where the device ends.
func (w *Model) after(rng *rand.Rand, block, off int64) (from, length int64) {
	_, length = w.Place(rng, block)
	if off >= w.Size {
		off = 0
	}
	return off, min(length, w.Size-off)
}

// Load makes random requests from several threads.
type Load struct {
	Threads    int
	Sequential int // of the threads, whose requests follow each other, from different places on
	Requests   int // of each thread
	Block      int64
	Kinds      Mix
	Cached     bool          // through the page cache
	Rest       time.Duration // of a thread after each request
}

// Run carries out the load and returns when every thread has ended; the first error stops its
// thread.
func (w *Model) Run(m *Machine, rng *rand.Rand, path string, l Load) {
	m.Helper()
	wait := w.Start(m, rng, path, l, nil)
	wait()
}

// Start begins the load; it ends when the requests are made or, with stop, when that is closed. The
// returned function waits for it.
func (w *Model) Start(m *Machine, rng *rand.Rand, path string, l Load, stop <-chan struct{}) (wait func()) {
	m.Helper()
	var group sync.WaitGroup
	open := m.Open
	if l.Cached {
		open = m.openCached
	}
	for thread := range l.Threads {
		v := open(path, os.O_RDWR)
		buf, free := m.Scratch(IOSize)
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		next := w.Size / l.Block * int64(thread) / int64(l.Threads) * l.Block
		group.Go(func() {
			defer v.F.Close()
			defer free()
			for i := 0; i < l.Requests || stop != nil; i++ {
				select {
				case <-stop:
					return
				default:
				}
				off, length := w.Place(own, l.Block)
				if thread < l.Sequential {
					off, length = w.after(own, l.Block, next)
					next = off + length
				}
				begin := time.Now()
				err := w.Request(own, v, buf, off, length, l.Kinds)
				w.Took(time.Since(begin))
				if err != nil {
					m.Errorf("%s: request %d: %v", path, i, err)
					return
				}
				time.Sleep(l.Rest)
			}
		})
	}
	return func() {
		m.Helper()
		group.Wait()
		if m.Failed() {
			m.FailNow()
		}
	}
}
