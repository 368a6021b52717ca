package clone

import (
	"sync/atomic"
	"time"
)

// lanes are all lanes of a core: set up before the first request and not changed afterwards. Any
// thread may ask for what they have counted.
type lanes struct {
	list   []*Lane
	period atomic.Uint64 // of the time of users' reads of the source, from 1 on
}

// Stats are sums over lanes, in bytes: how regions left the source (Copied from it, Written whole
// by users, Discarded or zeroed), what was read from the source, what users read and wrote; Ops is
// the number of requests by Op.
type Stats struct {
	Copied, Written, Discarded int64
	SourceRead                 int64
	ReadBytes, WriteBytes      int64
	Ops                        [OpWriteZeroes + 1]int64
}

// Stats sums up the lanes.
func (all *lanes) Stats() (s Stats) {
	for _, l := range all.list {
		s.Copied += l.plans.copied.Load()
		s.Written += l.plans.written.Load()
		s.Discarded += l.plans.discarded.Load()
		s.SourceRead += l.source.readBytes.Load()
		s.ReadBytes += l.users.readBytes.Load()
		s.WriteBytes += l.users.writeBytes.Load()
		for i := range s.Ops {
			s.Ops[i] += l.users.ops[i].Load()
		}
	}
	return s
}

// UserInFlight is how many requests of users are being worked on, in all lanes.
func (all *lanes) UserInFlight() (n int64) {
	for _, l := range all.list {
		n += l.users.inFlight.Load()
	}
	return n
}

// Waits may be asked from any thread.
func (all *lanes) Waits() (w Waits) {
	for _, l := range all.list {
		w.Requests += l.Requests()
		w.Reads += l.source.waits.reads.Load()
		w.Timed += l.source.waits.timed.Load()
		w.Time += time.Duration(l.source.waits.time.Load())
	}
	return w
}

// NewPeriod begins one and answers what has been counted up to then. There is one for all: only the
// hydrator asks for it.
func (all *lanes) NewPeriod() Waits {
	all.period.Add(1)
	return all.Waits()
}

// RecentWrites adds some of the last writes of users to list.
func (all *lanes) RecentWrites(list []WrittenStretch) []WrittenStretch {
	for _, l := range all.list {
		for i := range l.changes.recent.at {
			if v := l.changes.recent.at[i].Load(); v != 0 {
				list = append(list, WrittenStretch{int64(v>>8) * recentBlock, int64(v&0xff) * recentBlock})
			}
		}
	}
	return list
}
