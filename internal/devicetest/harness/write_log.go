package harness

import (
	"fmt"
	"strings"
)

// WriteLog is a device of which every write is kept, in an order in which a disk with a volatile
// cache may have got them (dm-log-writes; the format: drivers/md/dm-log-writes.c, v6.12). A write
// is in the log in front of the first FLUSH that came after its end, one with FUA at its own end.
//
//	sector 0   u64 magic, version, entries; u32 sector size
//	then       u64 sector, sectors, flags, length of a mark's text; the text
//	           the sectors' data, if they are not discarded
//	           the next entry...
type WriteLog struct {
	*Disk
	name string
	log  *Disk
}

// Logged makes a device over another that writes a log.
func (m *Devices) Logged(name string, under, log *Disk) WriteLog {
	m.Helper()
	m.MustRun("modprobe", "dm-log-writes")
	d := m.Mapper(name, fmt.Sprintf("0 %d log-writes %s %s", under.Size/Sector, under.Path, log.Path))
	return WriteLog{Disk: d, name: name, log: log}
}

// Mark puts a text without spaces into the log: what was flushed before is in front of it.
func (l WriteLog) Mark(text string) error {
	if o := l.M.Try("dmsetup", "message", l.name, "0", "mark", text); o.Code != 0 {
		return fmt.Errorf("mark %s: %s", text, o.Stderr)
	}
	return nil
}

const (
	logMagic = 0x6a736677736872

	LogFlush   = 1
	LogFUA     = 2
	LogDiscard = 4
	LogMark    = 8
)

// LogEntry is a write, a FLUSH, a discard or a mark.
type LogEntry struct {
	Off, Length int64 // bytes
	Flags       uint64
	Data        []byte // of a write
	Mark        string
}

// Is tells whether the entry has the flag.
func (e *LogEntry) Is(flag uint64) bool { return e.Flags&flag != 0 }

// Read gives all entries. The last thing that happened to the device is a mark.
func (l WriteLog) Read() []LogEntry {
	l.M.Helper()
	var logged, last uint64
	var raw []byte
	l.M.WaitFor(CleanLimit, "the log to be written", func() error {
		text := strings.TrimSpace(l.M.MustRun("dmsetup", "status", l.name))
		if _, err := fmt.Sscanf(text[strings.Index(text, "log-writes"):], "log-writes %d %d", &logged, &last); err != nil || strings.HasSuffix(text, "disabled") {
			l.M.Fatalf("status of the log: %q", text)
		}
		raw = raw[:0]
		l.M.Sweep(l.log.Path, min(l.log.Size, int64(last+1)*Sector), func(_ int64, b []byte) error {
			raw = append(raw, b...)
			return nil
		})
		if magic, written := LittleEndian.Uint64(raw), LittleEndian.Uint64(raw[16:]); magic != logMagic || written != logged {
			return fmt.Errorf("magic %x, %d entries, not %d", magic, written, logged)
		}
		return nil
	})
	entries := make([]LogEntry, logged)
	at := raw[Sector:]
	for i := range entries {
		at = entries[i].decode(at)
	}
	return entries
}

// decode takes an entry from the log and gives what comes behind it.
func (e *LogEntry) decode(b []byte) []byte {
	e.Off, e.Length, e.Flags = int64(LittleEndian.Uint64(b))*Sector, int64(LittleEndian.Uint64(b[8:]))*Sector, LittleEndian.Uint64(b[16:])
	if e.Is(LogMark) {
		e.Mark = string(b[32 : 32+LittleEndian.Uint64(b[24:])])
	}
	b = b[Sector:]
	if e.Is(LogDiscard) || e.Length == 0 {
		return b
	}
	e.Data = b[:e.Length]
	return b[e.Length:]
}
