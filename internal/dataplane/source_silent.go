package dataplane

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A source that does not answer is an outage after a time (I15). What is with the kernel cannot be
// taken back: it has the memory of users, or ours. So
//
//	lanes       note when each read of the source began, and when one has ended last
//	the engine  looks every second. If reads wait, the oldest for longer than the limit, and none has ended for as long, the
//	            source is silent: what is in line fails, and so does each new read, at once
//	then        as with any source that is away: hydrated regions are served, hydration is stalled, and del and restart do
//	            not wait for reads of the background
//	an answer   to any of the reads that wait ends it, and so does a resume that finds the source to answer
//
// Places are kept for users of hydrated regions: no more than three quarters of a queue's requests
// are with the source.

// SourceRead is a read of the source under way. The lane writes it, the engine looks.
type SourceRead struct {
	From  atomic.Pointer[OpenSource] // nil: none is
	Since atomic.Int64               // when it began, see clock; 0: it was refused
}

var programStart = time.Now()

// Clock is a time that only grows, in nanoseconds, never 0.
func Clock() int64 { return int64(time.Since(programStart)) + 1 }

// Most bounds the reads of the source that a queue gives to the kernel; 0 is no limit. A queue has
// two tokens for a request.
func (b *Backend) Most(share int) int {
	if b.Users == nil {
		return share
	}
	most := max(1, len(b.Reading)*3/8)
	if share == 0 {
		return most
	}
	return min(share, most)
}

// giveUp fails what is in line for a source that is silent.
func (b *Backend) giveUp() {
	if b.from == nil {
		return
	}
	if s := b.source.Now.Load(); s.silent.Load() != nil && s.File != nil && s.File.File == b.from.File() {
		b.givingUp = true
		b.from.GiveUp(unix.ETIMEDOUT)
		b.givingUp = false
	}
}

// abandonReads lets the loop end if nothing but reads of the source is outstanding. The source is
// let go of: the kernel keeps what it needs of it.
func (b *Backend) abandonReads() bool {
	reads := 0
	for i := range b.Reading {
		if b.Reading[i].Since.Load() != 0 {
			reads++
		}
	}
	if reads != b.loop.Outstanding() {
		return false // asked again when something has ended
	}
	for i := range b.Reading {
		if s := b.Reading[i].From.Swap(nil); s != nil {
			s.Done()
		}
	}
	b.loop.Abandon()
	return true
}

// Unanswered is what the lanes wait for.
type Unanswered struct {
	Reads, Users int
	Oldest       int64 // when the first of them began
	Answered     int64 // when the last answer came
}

// Add counts the reads of o that a lane has under way.
func (u *Unanswered) Add(b *Backend, o *OpenSource) {
	u.Answered = max(u.Answered, b.Answered.Load())
	for i := range b.Reading {
		r := &b.Reading[i]
		since := r.Since.Load()
		if since == 0 || r.From.Load() != o {
			continue
		}
		u.Reads++
		if b.Users != nil {
			u.Users++
		}
		if u.Oldest == 0 || since < u.Oldest {
			u.Oldest = since
		}
	}
}

// Overdue says whether that is an outage by now.
func (u *Unanswered) Overdue(now int64, limit time.Duration) bool {
	return u.Reads > 0 && now-u.Oldest > int64(limit) && now-u.Answered > int64(limit)
}

// waitingFor is what these lanes wait for from o.
func waitingFor(lanes []*Backend, o *OpenSource) (u Unanswered) {
	for _, b := range lanes {
		u.Add(b, o)
	}
	return u
}

// UsersWaiting is how many reads of users wait for the source.
func (s *Source) UsersWaiting(lanes []*Backend) int {
	o := s.Take()
	defer o.Done()
	u := waitingFor(lanes, o)
	return u.Users
}

// Hangs says whether reads wait for the source, and it has answered none for that time.
func (s *Source) Hangs(lanes []*Backend, limit time.Duration) bool {
	o := s.Take()
	defer o.Done()
	u := waitingFor(lanes, o)
	return u.Overdue(Clock(), limit)
}

// WatchAnswers notices that the source has fallen silent, and says why, or that it has answered
// again.
func (s *Source) WatchAnswers(lanes []*Backend, limit time.Duration) (silent error, again bool) {
	o := s.Take()
	defer o.Done()
	u, now := waitingFor(lanes, o), Clock()
	switch {
	case o.silent.Load() != nil:
		if u.Reads == 0 || u.Answered > o.silentSince {
			o.silent.Store(nil)
			return nil, true
		}
	case limit > 0 && u.Overdue(now, limit):
		began := time.Now().Add(-time.Duration(now - u.Oldest)).UTC().Format(time.TimeOnly)
		why := fmt.Errorf("%s has not answered for %s: %d reads wait, the first since %s UTC: %w", o.Device.Path(), limit, u.Reads, began, syscall.ETIMEDOUT)
		o.silentSince = now
		o.silent.Store(&why)
		for _, b := range lanes {
			b.Wake()
		}
		return why, false
	}
	return nil, false
}
