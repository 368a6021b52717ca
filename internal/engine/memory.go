package engine

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/footprint"
	"github.com/ublk-clone/ublk-clone/internal/guard"
	"github.com/ublk-clone/ublk-clone/internal/process"
	"github.com/ublk-clone/ublk-clone/internal/sys"
)

// memory is that of the copy buffers, and of marks that are not committed yet. The daemon's goroutine
// takes what is always there, and gives it back; in between a goroutine adds to it before it runs
// out, and takes away what nobody has needed. That goroutine may wait for memory, and nobody waits
// for it: a lane that finds no buffer goes on with its own, and one that finds no room for a mark
// waits for a commit.
type memory struct {
	stock *copybuffers.Stock
	wanted
	marks markMemory
	// mapped are all buffers, by their first byte; the goroutine's while it runs.
	mapped map[*byte]*sys.Mapping
	spare  [][]byte // of these, what was taken in advance
	most   int      // buffers that there may be

	quit, left chan struct{} // nil: the goroutine does not run
}

// wanted is what the goroutine is told, from any thread.
type wanted struct {
	forBuffers, forMarks signal
	kept                 atomic.Int64 // buffers that lanes keep when nobody needs more
}

// signal wakes a goroutine once, however often it is given before.
type signal chan struct{}

func (s signal) give() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// When buffers are given back: those that nobody has needed for so long. And for how long the
// goroutine leaves alone a system that has no memory.
const (
	idleTime  = 10 * time.Second
	shortTime = time.Second
)

// warmUp takes in advance what the steps will need, and what else takes its time then. On an
// emulated CPU (6.12) it was 1.8 s of the 3.8 s from one daemon to the next; 0.4 s are left.
func (m *memory) warmUp(def *definition.Definition) error {
	own := def.Queues*footprint.QueueBuffers(def.RegionSize).Own + footprint.HydratorBuffers.Own
	spare, err := m.buffers(own)
	if err != nil {
		return err
	}
	m.spare = spare
	process.WarmThreads(def.Queues + process.HydratorThreads + process.ControlThreads + process.OtherThreads)
	process.ReserveHeap()
	return sys.TouchProgram()
}

// buffers gives n buffers that a lane is to have for its own.
func (m *memory) buffers(n int) (list [][]byte, err error) {
	for range n {
		b, err := m.allocate()
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}

// allocate gives a buffer that was taken in advance, or maps one. free gives it back.
func (m *memory) allocate() ([]byte, error) {
	if n := len(m.spare); n > 0 {
		b := m.spare[n-1]
		m.spare = m.spare[:n-1]
		return b, nil
	}
	mapped, err := sys.Map(footprint.BufferBytes, true)
	if err != nil {
		return nil, fmt.Errorf("allocate: %w", err)
	}
	if m.mapped == nil {
		m.mapped = make(map[*byte]*sys.Mapping)
	}
	b := mapped.Bytes()
	m.mapped[&b[0]] = mapped
	return b[:len(b):len(b)], nil
}

// takeForMarks takes the memory of uncommitted marks, of a map of so many pages.
func (m *memory) takeForMarks(pages uint64) (clone.DeltaConfig, error) {
	m.forMarks = make(signal, 1)
	return m.marks.take(pages, m.forMarks.give)
}

// makeStock makes the stock, for lanes with these buffers in all.
func (m *memory) makeStock(all footprint.Buffers) {
	m.most, m.forBuffers = all.Most, make(signal, 1)
	m.kept.Store(int64(all.Own))
	m.stock = copybuffers.NewStock(footprint.BufferBytes, m.forBuffers.give)
}

// begin starts the goroutine, when the lanes have got their own. What was taken in advance and is
// left is given back as any other.
func (m *memory) begin(core *clone.Core) {
	m.marks.core = core
	for _, b := range m.spare {
		m.stock.Add(b)
	}
	m.spare = nil
	m.quit, m.left = make(chan struct{}), make(chan struct{})
	guard.Go("copy buffers", m.serve)
}

// lane gives a lane its buffers.
func (m *memory) lane(b footprint.Buffers, complete bool, rest int) (lane copybuffers.Config, err error) {
	own := b.Own
	if complete {
		own = rest
	}
	list, err := m.buffers(own)
	return copybuffers.Config{Own: list, Stock: m.stock, Most: b.Most, Cut: b.Cut, Rest: rest}, err
}

// rest tells that the lanes, whose clone is complete, keep so many buffers from now on.
func (m *memory) rest(kept int) {
	m.kept.Store(int64(kept))
	m.forBuffers.give()
}

func (m *memory) serve() {
	defer close(m.left)
	for {
		var idle <-chan time.Time // no wake-ups while there is nothing to give back
		if len(m.mapped) > int(m.kept.Load()) || m.marks.surplus() {
			idle = time.After(idleTime)
		}
		select {
		case <-m.quit:
			return
		case <-m.forBuffers:
			m.fill()
		case <-m.forMarks:
			m.marks.grow()
		case <-idle:
			m.empty()
			m.marks.shrink()
		}
	}
}

// fill doubles what was added to the lanes' own, if somebody waits for that.
func (m *memory) fill() {
	n := max(1, len(m.mapped)-int(m.kept.Load()))
	for n = min(n, m.most-len(m.mapped)); n > 0 && m.stock.Hungry(); n-- {
		b, err := m.allocate()
		if err != nil { // there is no address space, or a limit: somebody's buffer comes free
			time.Sleep(shortTime)
			return
		}
		m.stock.Add(b)
	}
}

// empty gives back what nobody has needed.
func (m *memory) empty() {
	for _, b := range m.stock.Idle() {
		_ = m.mapped[&b[0]].Close()
		delete(m.mapped, &b[0])
	}
}

// stopLimit is how long the goroutine may take to end, when it just waits for memory.
const stopLimit = 10 * time.Second

// free gives all of it back. What is abandoned may be filled yet, and goes with the process.
func (m *memory) free(abandoned bool) (err error) {
	if m.quit != nil {
		close(m.quit)
		select {
		case <-m.left:
		case <-time.After(stopLimit):
			return errors.New("free the copy buffers: the system has no memory for one that was wanted before")
		}
		m.quit = nil
	}
	if !abandoned {
		for _, mapped := range m.mapped {
			err = errors.Join(err, mapped.Close())
		}
	}
	m.mapped, m.spare = nil, nil
	return errors.Join(err, m.marks.free())
}

// lockMemory keeps the daemon from waiting for memory on a write's way. What is mapped later, the
// queues' buffers among it, is locked as it comes. The live map is to be left out: its tmpfs is
// never swapped out, and pages of it are given back.
func lockMemory(warn func(format string, args ...any)) {
	process.ReserveHeap()
	err := sys.LockMemory()
	if err != nil {
		warn("the daemon's memory is not locked (%v): when memory is short the clone may be slow, or hang if it holds swap", err)
	}
}
