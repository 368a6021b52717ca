package clonetest

import (
	"errors"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// liesConfig is a small clone with a script, without any fault: regions 0 and 1 are written, the
// first twice, region 2 is discarded, 3 and 4 are written in part, 5 and the tail are left alone.
// Everything is flushed but the last write.
func liesConfig() Config {
	c := Config{
		Seed:   11,
		device: device{Size: 6*4096 + 3*sectorBytes, RegionSize: 4096},
		pools:  pools{Lanes: 1, Depth: 1, Ops: 2, Buffers: 2, BufferSize: 8192, MaxIO: 4 * 4096},
		requests: requests{Script: []Step{
			{Op: clone.OpWrite, First: 0, End: 16},
			{Op: clone.OpWrite, First: 0, End: 8},
			{Op: clone.OpDiscard, First: 16, End: 24},
			{Op: clone.OpWrite, First: 30, End: 34},
			{Op: clone.OpFlush},
			{Op: clone.OpWrite, First: 12, End: 13},
		}},
	}
	c.Windows = []Window{{0, c.Size / sectorBytes}}
	for i := range c.Weight {
		c.Weight[i] = 8
	}
	return c
}

// Values that the script's operations leave.
const (
	firstWrite  = firstValue + 1
	secondWrite = firstValue + 2
	lastWrite   = firstValue + 6
)

// mark sets a region's bit in the live map, behind the core's back.
func mark(s *sim, region uint64) {
	s.core.Regions().Mark(bitmap.PlaneHydrated, region, region+1, bitmap.NewDelta(1, 1))
}

func onDest(sector int64, v value) func(*sim) {
	return func(s *sim) { lay(s.disks.dest, sector, sector+1, v) }
}

// TestSimulatorSees: a simulator is worth what it sees. The script is run, and when all is answered
// something is changed that must not be: on a disk, in the live map, in an answer. Each is
// reported, as what it is; without it nothing is.
func TestSimulatorSees(t *testing.T) {
	reads := func(s *sim) error { return s.readAll() }
	dies := func(s *sim) error { return s.death() }
	cuts := func(s *sim) error { return s.powerCut() }
	nothing := func(*sim) {}
	for _, c := range []struct {
		name string
		lie  func(s *sim)
		then func(s *sim) error
		want string // of the report; empty: all is well
	}{
		{"nothing, all is read", nothing, reads, ""},
		{"nothing, the daemon dies", nothing, dies, ""},
		{"nothing, the power goes", nothing, cuts, ""},
		{"nothing, the end", nothing, func(s *sim) error { return errors.Join(s.hydrateAll(), s.destAlone(), s.untouched()) }, ""},

		{"a stale read", onDest(1, firstWrite), reads, "READ #"},
		{"the source's bytes where data was written", onDest(9, valueSource), reads, "READ #"},
		{"the destination's old content", onDest(9, valueOldDest), reads, "old content"},
		{"zeros where data was written", onDest(9, valueZeros), reads, "zeros"},
		{"a write that is not issued yet", onDest(9, lastWrite+50), reads, "READ #"},
		{"a write in another sector", onDest(28, lastWrite), reads, "READ #"},
		{"another sector's content", func(s *sim) {
			buf := make([]byte, sectorBytes)
			fill(buf, 10, firstWrite)
			must(s.disks.dest.WriteAt(buf, 9*sectorBytes))
		}, reads, "content of sector 10"},
		{"half a sector", func(s *sim) {
			buf := make([]byte, sectorBytes)
			fill(buf[:], 9, firstWrite)
			clear(buf[sectorBytes/2:])
			must(s.disks.dest.WriteAt(buf, 9*sectorBytes))
		}, reads, "no pattern"},
		{"a discarded region with the destination's content", func(s *sim) { mark(s, 2) }, reads, "old content"},
		{"a region that is marked and was not written", func(s *sim) { mark(s, 5) }, reads, "old content"},
		{"a discard beyond its range", func(s *sim) {
			s.core.Regions().Mark(bitmap.PlaneZero, 5, 6, bitmap.NewDelta(1, 1))
		}, reads, "READ #"},
		{"a mark that is gone", func(s *sim) { s.live.pages[0][0] &^= 1 }, reads, "READ #"},
		{"bytes of a READ that are left out", func(s *sim) {
			s.each = func() error {
				for _, c := range s.answers() {
					if c.doing.op == clone.OpRead {
						spoil(c.data[3*sectorBytes:][:sectorBytes])
					}
				}
				return nil
			}
		}, reads, "sector 3 (region 0): READ #"},

		{"an acknowledged write that is gone after the daemon's death", onDest(12, firstWrite), dies, "after the daemon's end"},
		{"a mark that is gone after the daemon's death", func(s *sim) {
			s.live.pages[0][0] &^= 1
			wipe(s.disks.meta.Size(), s)
		}, dies, "after the daemon's death"},
		{"a mode that is better after the daemon's death", func(s *sim) {
			s.core.SetMode(clone.ReadOnly)
			s.live.mode = clone.ReadWrite
		}, dies, "(I10)"},
		{"a lost flush that is forgotten", func(s *sim) { s.live.flushLost, s.live.mode = true, clone.ReadOnly }, dies, "(I10)"},
		{"a commit that is forgotten after the daemon's death", func(s *sim) { s.live.commit-- }, dies, "durably hydrated after the daemon's death"},
		{"a commit that is forgotten after the death of a daemon in mode ro", func(s *sim) {
			s.core.SetMode(clone.ReadOnly)
			s.live.commit--
		}, dies, "durably hydrated after the daemon's death"},
		{"a complete clone that is not complete after the daemon's death", func(s *sim) {
			must(s.hydrateAll())
			s.live.commit--
		}, dies, "complete before the daemon's death"},

		{"a flushed write that is gone after power loss", onDest(1, firstWrite), cuts, "after power loss"},
		{"the destination's old content after power loss", onDest(31, valueOldDest), cuts, "after power loss"},
		{"a newer write than the last after power loss", onDest(31, lastWrite+1), cuts, "after power loss"},
		{"durable marks that are gone after power loss", func(s *sim) { wipe(s.disks.meta.Size(), s) }, cuts, "durably hydrated after the power loss"},
		{"a superblock that says complete too early", saysComplete, cuts, "the superblock says"},

		{"a changed source", func(s *sim) { lay(s.disks.source, 1, 2, lastWrite) }, func(s *sim) error { return s.untouched() }, "source was changed"},
		{"a changed source that nobody reads any more", func(s *sim) { lay(s.disks.source, 1, 2, valueOldDest) },
			func(s *sim) error { return errors.Join(s.readAll(), s.untouched()) }, "source was changed"},
		{"a destination written behind the device's end", onDest(6*8+3, valueZeros), func(s *sim) error { return s.untouched() },
			"behind the device's end"},
		{"a complete destination that differs", func(s *sim) {
			must(s.hydrateAll())
			lay(s.disks.dest, 40, 41, valueZeros)
		}, func(s *sim) error { return s.destAlone() }, "at the end the destination holds"},
		{"a hydration that cannot complete", func(s *sim) { s.core.SetMode(clone.ReadOnly) }, func(s *sim) error { return s.hydrateAll() },
			"nothing left to happen"},

		{"a request that is never answered", func(s *sim) {
			s.each = func() error { s.lanes[0].ios = nil; return nil }
		}, reads, "never answered"},
		{"a request that is answered twice", func(s *sim) { s.lanes[0].clients[0].end(nil) }, reads, "answered twice"},
		{"a request that fails without an error", func(s *sim) {
			s.each = func() error {
				for _, q := range s.lanes[0].ios {
					q.done, q.err = true, errors.New("own")
				}
				return nil
			}
		}, reads, "no error was injected"},
		{"I/O outside of the device", func(s *sim) { s.lanes[0].ZeroDest(0, s.cfg.Size-4096, 8192, false) }, reads, "outside of the device"},
		{"two flushes at once", func(s *sim) { s.lanes[0].FlushDest(0); s.lanes[0].FlushDest(1) }, reads, "begins while another"},
		{"a durable write beside a flush", func(s *sim) {
			s.lanes[0].FlushDest(0)
			s.lanes[0].WriteDest(1, 0, clone.Data{Buf: make([]byte, 512)}, true)
		}, reads, "begins while another"},
		{"a panic", func(s *sim) { s.each = func() error { panic("own") } }, func(s *sim) error { return recovered(func() error { return reads(s) }) }, "panic: own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(liesConfig())
			defer func() {
				if s.committer != nil {
					s.committer.stop()
				}
			}()
			must(s.begin())
			s.left = len(s.cfg.Script)
			must(s.until(func() bool { return s.left+s.inFlight == 0 && !s.busy() }))
			c.lie(s)
			err := c.then(s)
			if err == nil {
				err = s.failure
			}
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("the report has no %q: %v", c.want, err)
			}
		})
	}
}

// saysComplete has the superblock say that hydration is complete.
func saysComplete(s *sim) {
	committer := s.committer
	s.committer = nil // what it does is not paused
	must(s.store.Update(func(sb *metadata.Superblock) error { sb.Complete = true; return nil }))
	s.committer = committer
}

// wipe empties the slots of the region map.
func wipe(size int64, s *sim) {
	from := size - 2*metadata.BlockSize
	must(s.disks.meta.WriteAt(make([]byte, size-from), from))
	must(s.disks.meta.Flush())
}
