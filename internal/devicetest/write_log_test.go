//go:build device

package devicetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// writeLog is a device of which every write is kept, in an order in which a disk with a volatile cache may have
// got them (dm-log-writes; the format: drivers/md/dm-log-writes.c, v6.12). A write is in the log in front of the
// first FLUSH that came after its end, one with FUA at its own end.
//
//	sector 0   u64 magic, version, entries; u32 sector size
//	then       u64 sector, sectors, flags, length of a mark's text; the text
//	           the sectors' data, if they are not discarded
//	           the next entry...
type writeLog struct {
	*disk
	name string
	log  *disk
}

// logged makes a device over another that writes a log.
func (m *machine) logged(name string, under, log *disk) writeLog {
	m.Helper()
	m.run("modprobe", "dm-log-writes")
	d := m.mapper(name, fmt.Sprintf("0 %d log-writes %s %s", under.size/sector, under.path, log.path))
	return writeLog{disk: d, name: name, log: log}
}

// mark puts a text without spaces into the log: what was flushed before is in front of it.
func (l writeLog) mark(text string) error {
	if o := l.m.try("dmsetup", "message", l.name, "0", "mark", text); o.code != 0 {
		return fmt.Errorf("mark %s: %s", text, o.stderr)
	}
	return nil
}

const (
	logMagic = 0x6a736677736872

	logFlush   = 1
	logFUA     = 2
	logDiscard = 4
	logMark    = 8
)

// logEntry is a write, a FLUSH, a discard or a mark.
type logEntry struct {
	off, length int64 // bytes
	flags       uint64
	data        []byte // of a write
	mark        string
}

func (e *logEntry) is(flag uint64) bool { return e.flags&flag != 0 }

// read gives all entries. The last thing that happened to the device is a mark.
func (l writeLog) read() []logEntry {
	l.m.Helper()
	var logged, last uint64
	var raw []byte
	l.m.waitFor(cleanLimit, "the log to be written", func() error {
		text := strings.TrimSpace(l.m.run("dmsetup", "status", l.name))
		if _, err := fmt.Sscanf(text[strings.Index(text, "log-writes"):], "log-writes %d %d", &logged, &last); err != nil || strings.HasSuffix(text, "disabled") {
			l.m.Fatalf("status of the log: %q", text)
		}
		raw = raw[:0]
		l.m.sweep(l.log.path, min(l.log.size, int64(last+1)*sector), func(_ int64, b []byte) error {
			raw = append(raw, b...)
			return nil
		})
		if magic, written := le.Uint64(raw), le.Uint64(raw[16:]); magic != logMagic || written != logged {
			return fmt.Errorf("magic %x, %d entries, not %d", magic, written, logged)
		}
		return nil
	})
	entries := make([]logEntry, logged)
	at := raw[sector:]
	for i := range entries {
		at = entries[i].decode(at)
	}
	return entries
}

// decode takes an entry from the log and gives what comes behind it.
func (e *logEntry) decode(b []byte) []byte {
	e.off, e.length, e.flags = int64(le.Uint64(b))*sector, int64(le.Uint64(b[8:]))*sector, le.Uint64(b[16:])
	if e.is(logMark) {
		e.mark = string(b[32 : 32+le.Uint64(b[24:])])
	}
	b = b[sector:]
	if e.is(logDiscard) || e.length == 0 {
		return b
	}
	e.data = b[:e.length]
	return b[e.length:]
}

// replay is what the disk holds after a part of a log, as far as it is durable.
type replay struct {
	entries []logEntry
	durable []byte // bytes of the disk after the entries before next
	next    int
}

// image is what the disk may hold when the power goes in front of entry p: all that was flushed, and of what came
// after the last FLUSH those blocks that survives says. Points must not go back.
func (r *replay) image(p int, survives func(e *logEntry, off int64) bool) []byte {
	flushed := r.next
	for i := r.next; i < p; i++ {
		if r.entries[i].is(logFlush) {
			flushed = i + 1
		}
	}
	for ; r.next < flushed; r.next++ {
		r.entries[r.next].apply(r.durable, nil)
	}
	image := bytes.Clone(r.durable)
	for i := flushed; i < p; i++ {
		r.entries[i].apply(image, survives)
	}
	return image
}

// apply does to the image what the entry did to the disk, or those blocks of it that survive; what has FUA does.
// Discarded bytes are junk: nobody has promised zeros.
func (e *logEntry) apply(image []byte, survives func(e *logEntry, off int64) bool) {
	for off := e.off; off < e.off+e.length; off += sector {
		if survives != nil && !e.is(logFUA) && !survives(e, off) {
			continue
		}
		to := image[off : off+sector]
		if e.is(logDiscard) {
			fill(to, off, junk)
		} else {
			copy(to, e.data[off-e.off:])
		}
	}
}

// subset is a survives for replay.image: of the writes one in four is there, one is not, and two are torn between
// blocks of so many bytes as unit says.
func subset(rng *rand.Rand, unit func(off int64) int64) func(e *logEntry, off int64) bool {
	var last *logEntry
	var fate int
	var block int64
	var there bool
	return func(e *logEntry, off int64) bool {
		if e != last {
			last, fate, block = e, rng.IntN(4), -1
		}
		if n := off / unit(off); n != block {
			block, there = n, fate == 0 || fate > 1 && rng.IntN(2) == 0
		}
		return there
	}
}

// TestReplay checks the tests' own tool: what was flushed or has FUA is there, of the rest what survives.
func TestReplay(t *testing.T) {
	runs.On(t, runs.EveryKernel)
	content := func(v version) []byte {
		b := make([]byte, sector)
		fill(b, 0, v)
		return b
	}
	write := func(v version, flags uint64) logEntry {
		return logEntry{length: sector, flags: flags, data: content(v)}
	}
	entries := []logEntry{write(2, 0), write(3, 0), {flags: logFlush}, write(4, 0), {length: sector, flags: logDiscard},
		write(5, logFUA), write(6, 0), {flags: logMark, mark: "end"}}
	for _, kept := range []bool{false, true} {
		r := &replay{entries: entries, durable: content(original)}
		for p, want := range [][2]version{{original, original}, {original, 2}, {original, 3}, {3, 3}, {3, 4}, {3, junk}, {5, 5}, {5, 6}, {5, 6}} {
			wanted := want[0]
			if kept {
				wanted = want[1]
			}
			image := r.image(p, func(*logEntry, int64) bool { return kept })
			if !holds(image, 0, wanted) {
				t.Errorf("in front of entry %d, all that is not flushed kept: %v: %s, expected %v", p, kept, describe(image), wanted)
			}
		}
	}
}
