//go:build device

package devicetest

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// replay is what the disk holds after a part of a log, as far as it is durable.
type replay struct {
	entries []harness.LogEntry
	durable []byte // bytes of the disk after the entries before next
	next    int
}

// image is what the disk may hold when the power goes in front of entry p: all that was flushed,
// and of what came after the last FLUSH those blocks that survives says. Points must not go back.
func (r *replay) image(p int, survives func(e *harness.LogEntry, off int64) bool) []byte {
	flushed := r.next
	for i := r.next; i < p; i++ {
		if r.entries[i].Is(harness.LogFlush) {
			flushed = i + 1
		}
	}
	for ; r.next < flushed; r.next++ {
		apply(&r.entries[r.next], r.durable, nil)
	}
	image := bytes.Clone(r.durable)
	for i := flushed; i < p; i++ {
		apply(&r.entries[i], image, survives)
	}
	return image
}

// apply does to the image what the entry did to the disk, or those blocks of it that survive; what
// has FUA does. Discarded bytes are junk: nobody has promised zeros.
func apply(e *harness.LogEntry, image []byte, survives func(e *harness.LogEntry, off int64) bool) {
	for off := e.Off; off < e.Off+e.Length; off += harness.Sector {
		if survives != nil && !e.Is(harness.LogFUA) && !survives(e, off) {
			continue
		}
		to := image[off : off+harness.Sector]
		if e.Is(harness.LogDiscard) {
			harness.Fill(to, off, harness.Junk)
		} else {
			copy(to, e.Data[off-e.Off:])
		}
	}
}

// subset is a survives for replay.image: of the writes one in four is there, one is not, and two
// are torn between blocks of so many bytes as unit says.
func subset(rng *rand.Rand, unit func(off int64) int64) func(e *harness.LogEntry, off int64) bool {
	var last *harness.LogEntry
	var fate int
	var block int64
	var there bool
	return func(e *harness.LogEntry, off int64) bool {
		if e != last {
			last, fate, block = e, rng.IntN(4), -1
		}
		if n := off / unit(off); n != block {
			block, there = n, fate == 0 || fate > 1 && rng.IntN(2) == 0
		}
		return there
	}
}

// TestReplay checks the tests' own tool: what was flushed or has FUA is there, of the rest what
// survives.
func TestReplay(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	content := func(v harness.Version) []byte {
		b := make([]byte, harness.Sector)
		harness.Fill(b, 0, v)
		return b
	}
	write := func(v harness.Version, flags uint64) harness.LogEntry {
		return harness.LogEntry{Length: harness.Sector, Flags: flags, Data: content(v)}
	}
	entries := []harness.LogEntry{write(2, 0), write(3, 0), {Flags: harness.LogFlush}, write(4, 0), {Length: harness.Sector, Flags: harness.LogDiscard},
		write(5, harness.LogFUA), write(6, 0), {Flags: harness.LogMark, Mark: "end"}}
	for _, kept := range []bool{false, true} {
		r := &replay{entries: entries, durable: content(harness.Original)}
		for p, want := range [][2]harness.Version{{harness.Original, harness.Original}, {harness.Original, 2}, {harness.Original, 3}, {3, 3}, {3, 4}, {3, harness.Junk}, {5, 5}, {5, 6}, {5, 6}} {
			wanted := want[0]
			if kept {
				wanted = want[1]
			}
			image := r.image(p, func(*harness.LogEntry, int64) bool { return kept })
			if !harness.Holds(image, 0, wanted) {
				t.Errorf("in front of entry %d, all that is not flushed kept: %v: %s, expected %v", p, kept, harness.Describe(image), wanted)
			}
		}
	}
}
