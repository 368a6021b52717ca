package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/hydrate"
	"github.com/ublk-clone/ublk-clone/internal/committer"
	"github.com/ublk-clone/ublk-clone/internal/copybuffers"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/records"
	"github.com/ublk-clone/ublk-clone/internal/steps"
	"github.com/ublk-clone/ublk-clone/internal/sys"
	"github.com/ublk-clone/ublk-clone/metadata"
	"github.com/ublk-clone/ublk-clone/ublk/uring"
)

// A clone of real parts over files, without the driver: open steps, rings and their threads, live
// map, core, committer, hydrator. Each of its calls of a device can be made to fail, by the kernel
// where it is a ring's: it is given a descriptor that no I/O can be done with.

// faultPlan says which call fails.
type faultPlan struct {
	mu      sync.Mutex
	at      int  // the number of the call, from 1; 0: none
	lasting bool // and all of its kind from then on
	calls   int
	kinds   map[string]int
	broken  string // kind that fails for good
	healed  bool
}

func (p *faultPlan) fails(kind string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.healed {
		return false
	}
	p.calls++
	p.kinds[kind]++
	if p.calls != p.at {
		return p.broken == kind
	}
	if p.lasting {
		p.broken = kind
	}
	return true
}

func (p *faultPlan) heal() { p.set(true) }
func (p *faultPlan) arm()  { p.set(false) }

func (p *faultPlan) set(healed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.healed = healed
}

// hit says whether something has failed.
func (p *faultPlan) hit() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at > 0 && p.calls >= p.at
}

// failingBackend is a lane's: the daemon's own, and for a call that fails another one over bad
// descriptors. Both keep the same account of reads.
type failingBackend struct {
	*dataplane.Backend
	bad  *dataplane.Backend
	plan *faultPlan
}

func (b *failingBackend) of(kind string) *dataplane.Backend {
	if b.plan.fails(kind) {
		return b.bad
	}
	return b.Backend
}

func (b *failingBackend) attach(l *uring.Loop) {
	b.Backend.Attach(l)
	b.bad.Attach(l)
}

func (b *failingBackend) ReadSource(token uint32, off int64, data clone.Data, alone bool) {
	b.of("read source").ReadSource(token, off, data, alone)
}

func (b *failingBackend) ReadDest(token uint32, off int64, data clone.Data) {
	b.of("read destination").ReadDest(token, off, data)
}

func (b *failingBackend) WriteDest(token uint32, off int64, data clone.Data, durable bool) {
	b.of("write destination").WriteDest(token, off, data, durable)
}

func (b *failingBackend) ZeroDest(token uint32, off, length int64, unmap bool) {
	b.of("zero destination").ZeroDest(token, off, length, unmap)
}

func (b *failingBackend) DiscardDest(token uint32, off, length int64) {
	b.of("discard destination").DiscardDest(token, off, length)
}

func (b *failingBackend) FlushDest(token uint32) { b.of("flush destination").FlushDest(token) }

// failingMeta is the metadata's device.
type failingMeta struct {
	metadata.Device
	plan *faultPlan
}

func (m failingMeta) WriteAt(b []byte, off int64) error {
	if m.plan.fails("write metadata") {
		return unix.EIO
	}
	return m.Device.WriteAt(b, off)
}

func (m failingMeta) Flush() error {
	if m.plan.fails("flush metadata") {
		return unix.EIO
	}
	return m.Device.Flush()
}

// assemblyLane is a thread with its ring, a lane and perhaps the hydrator.
type assemblyLane struct {
	whole    *assembly
	loop     *uring.Loop
	backend  *failingBackend
	lane     *clone.Lane
	hydrator *hydrate.Hydrator
	timer    *time.Timer
	request  clone.Request
	data     []byte
	work     chan struct{} // request is to be submitted
	answer   chan error
	quit     chan struct{}
	left     chan error
}

func (l *assemblyLane) EndIO(token uint32, err error) {
	l.lane.EndIO(token, l.backend.Ended(token, err))
}

func (l *assemblyLane) Drain() {
	l.backend.NewRound()
	l.lane.Drain()
	select {
	case <-l.work:
		l.lane.Submit(&l.request)
	case <-l.quit:
		if l.hydrator == nil || l.hydrator.InFlight() == 0 {
			l.loop.Stop()
		}
		return
	default:
	}
	if l.hydrator != nil {
		l.hydrator.Pump()
	}
}

// assembly is all of a clone but the driver.
type assembly struct {
	t      *testing.T
	plan   *faultPlan
	steps  steps.List // of the files
	engine *Engine
	opened []*os.File
	memory []*sys.Mapping

	dest, bad  *dataplane.File
	badSource  dataplane.Source
	live       *livemap.Map
	core       *clone.Core
	committer  *committer.Committer
	users      []*assemblyLane
	background *assemblyLane
}

const (
	assemblyRegion = 8 << 10
	assemblySize   = 33*assemblyRegion - 3*definition.SectorSize
)

// newAssembly makes a clone of a source in dir, whose destination and metadata are new.
func newAssembly(t *testing.T, dir string, plan *faultPlan) *assembly {
	t.Helper()
	p := &assembly{t: t, plan: plan}
	def := definition.Definition{
		Name: "c", Source: filepath.Join(dir, "source"), Dest: filepath.Join(t.TempDir(), "dest"), Metadata: filepath.Join(t.TempDir(), "meta"),
		RegionSize: assemblyRegion, Queues: 1, QueueDepth: 2,
	}
	p.engine = New(definition.Start{Definition: def, Create: true}, zerolog.Nop())
	p.engine.Dest.Records = records.Dir(t.TempDir())
	p.must(p.steps.Run(context.Background(), p.engine.Devices.Steps()))
	p.dest, p.bad = p.wrap(p.engine.Dest.File()), p.open(def.Source, unix.O_PATH)
	p.badSource.Replace(&dataplane.OpenSource{File: p.bad, Idle: make(chan struct{}, 1)})
	plan.heal() // the start may fail as a whole: that is the steps' test
	store, _, err := metadata.Open(failingMeta{p.engine.Meta.File, plan})
	p.must(err)
	p.must(store.Update(func(sb *metadata.Superblock) error { sb.Clean = false; return nil }))
	p.makeCore(store)
	return p
}

func (p *assembly) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *assembly) open(path string, flags int) *dataplane.File {
	p.t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	p.must(err)
	p.opened = append(p.opened, f)
	return p.wrap(f)
}

func (p *assembly) wrap(f *os.File) *dataplane.File {
	p.t.Helper()
	u, err := uring.NewFile(f)
	p.must(err)
	return &dataplane.File{File: u, Depth: 2, Queues: 1}
}

func (p *assembly) allocate(size int) []byte {
	p.t.Helper()
	m, err := sys.Map(size, false)
	p.must(err)
	p.memory = append(p.memory, m)
	return m.Bytes()[:size:size]
}

func (p *assembly) makeCore(store *metadata.Store) {
	p.t.Helper()
	geo, err := clone.NewGeometry(assemblySize, assemblyRegion)
	p.must(err)
	p.live, err = livemap.Create(p.t.TempDir(), livemap.Identity{Regions: geo.Regions()}, livemap.State{})
	p.must(err)
	regions := bitmap.New(geo.Regions(), p.live.Pages())
	p.must(store.Load(regions.Load))
	p.committer = committer.NewCommitter(zerolog.Nop())
	p.core = clone.New(clone.Config{
		Geometry: geo, Map: regions, Kick: p.committer.Kick,
		Touch: func(page uint64) error {
			if p.plan.fails("take memory for the map") {
				return unix.ENOMEM
			}
			return p.live.Touch(page)
		},
	})
	p.core.SetReadThrough(true)
	p.core.SetDiscardPassdown(true)
	for range 2 {
		p.users = append(p.users, p.newLane(2))
	}
	p.background = p.newLane(4)
	p.addHydrator()
	c := p.committer
	c.Core, c.Dest, c.Store, c.Update = p.core, p, mapStore{store, p.live}, store.Update
	c.Refresh = func(sb *metadata.Superblock) error { sb.Mode = max(sb.Mode, metadata.Mode(p.core.Mode())); return nil }
	p.plan.arm()
	go c.Run()
	for _, l := range append(p.users, p.background) {
		p.must(l.start())
	}
}

// Flush is the committer's, of the destination.
func (p *assembly) Flush() error {
	if p.plan.fails("flush destination to commit") {
		return unix.EIO
	}
	return flusher{p.engine.Dest.Device}.Flush()
}

func (p *assembly) newLane(buffers int) *assemblyLane {
	p.t.Helper()
	l := &assemblyLane{
		whole: p, data: p.allocate(4 * assemblyRegion), work: make(chan struct{}, 1), answer: make(chan error, 1),
		quit: make(chan struct{}), left: make(chan error, 1),
	}
	good, bad := dataplane.NewBackend(&p.engine.Source.Source, p.dest, 2*buffers, 1), dataplane.NewBackend(&p.badSource, p.bad, 0, 1)
	good.Users = memoryOf(l.data)
	bad.Users, bad.Reading = good.Users, good.Reading
	l.backend = &failingBackend{Backend: good, bad: bad, plan: p.plan}
	l.request.End = func(_ *clone.Request, err error) { l.answer <- err }
	var memory [][]byte
	for range buffers {
		memory = append(memory, p.allocate(2*assemblyRegion))
	}
	l.lane = p.core.NewLane(clone.LaneConfig{Backend: l.backend, Wake: func() { l.loop.Wake() }, Ops: 2 * buffers, Buffers: copybuffers.Config{Own: memory}})
	return l
}

// memoryOf is the data of the only request.
type memoryOf []byte

func (m memoryOf) Data(uint16) uring.Data { return uring.Memory(m) }

func (m memoryOf) Fetch(_ uint16, at int64, dst []byte) error { copy(dst, m[at:]); return nil }

func (m memoryOf) Store(_ uint16, at int64, src []byte) error { copy(m[at:], src); return nil }

func (m memoryOf) Clear(_ uint16, at, n int64) error { clear(m[at : at+n]); return nil }

func (p *assembly) addHydrator() {
	l := p.background
	l.timer = time.AfterFunc(time.Hour, func() { l.loop.Wake() })
	l.hydrator = hydrate.New(hydrate.Config{
		Core: p.core, Lane: l.lane, Batches: 4, Now: time.Now, After: func(d time.Duration) { l.timer.Reset(d) },
		Wake: func() { l.loop.Wake() }, Event: func() {},
		Settings: assemblySettings(false),
	})
}

func assemblySettings(enabled bool) hydrate.Settings {
	return hydrate.Settings{Enabled: enabled, Threshold: 2, Batch: 2, Retries: 2}
}

// start runs the lane's thread.
func (l *assemblyLane) start() error {
	ready := make(chan error)
	go func() {
		runtime.LockOSThread()
		loop, err := uring.NewLoop(l, uring.LoopOptions{Tokens: 16})
		l.loop = loop
		l.backend.attach(loop)
		ready <- err
		if err == nil {
			loop.Wake()
			l.left <- errors.Join(loop.Run(), loop.Close())
		}
	}()
	return <-ready
}

// do carries out one request.
func (l *assemblyLane) do(op clone.Op, off, length int64, fua bool) error {
	l.request.Op, l.request.Off, l.request.Len, l.request.FUA = op, off, length, fua
	l.work <- struct{}{}
	l.loop.Wake()
	return <-l.answer
}

func (l *assemblyLane) stop() error {
	close(l.quit)
	l.loop.Wake()
	err := <-l.left
	if l.timer != nil {
		l.timer.Stop()
	}
	return err
}

// close takes everything down in the daemon's order and says what is held yet.
func (p *assembly) close() error {
	var err error
	for _, l := range append(p.users, p.background) {
		err = errors.Join(err, l.stop())
	}
	p.committer.Stop()
	if p.core.Mode() == clone.ReadWrite {
		err = errors.Join(err, p.core.Commit(p, p.committer.Store))
	}
	if held := p.core.Held(); held != "" {
		err = errors.Join(err, errors.New("held: "+held))
	}
	err = errors.Join(err, p.live.Remove(), p.live.Close())
	for _, f := range p.opened {
		err = errors.Join(err, f.Close())
	}
	for _, m := range p.memory {
		err = errors.Join(err, m.Close())
	}
	return errors.Join(err, p.steps.Stop())
}

// random is always the same.
func (p *assembly) random() *rand.Rand { return rand.New(rand.NewPCG(7, 60)) }
