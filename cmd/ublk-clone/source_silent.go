package main

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A source that does not answer is an outage after a time (I15). What is with the kernel cannot be taken back: it has the
// memory of users, or ours. So
//
//	lanes       note when each read of the source began, and when one has ended last
//	the engine  looks every second. If reads wait, the oldest for longer than the limit, and none has ended for as long, the
//	            source is silent: what is in line fails, and so does each new read, at once
//	then        as with any source that is away: hydrated regions are served, hydration is stalled, and del and restart do
//	            not wait for reads of the background
//	an answer   to any of the reads that wait ends it, and so does a resume that finds the source to answer
//
// Places are kept for users of hydrated regions: no more than three quarters of a queue's requests are with the source.

// sourceRead is a read of the source under way. The lane writes it, the engine looks.
type sourceRead struct {
	from  atomic.Pointer[openSource] // nil: none is
	since atomic.Int64               // when it began, see clock; 0: it was refused
}

var programStart = time.Now()

// clock is a time that only grows, in nanoseconds, never 0.
func clock() int64 { return int64(time.Since(programStart)) + 1 }

// most bounds the reads of the source that a queue gives to the kernel; 0 is no limit. A queue has two tokens for a request.
func (b *backend) most(share int) int {
	if b.users == nil {
		return share
	}
	most := max(1, len(b.reading)*3/8)
	if share == 0 {
		return most
	}
	return min(share, most)
}

// giveUp fails what is in line for a source that is silent.
func (b *backend) giveUp() {
	if b.from == nil {
		return
	}
	if s := b.source.now.Load(); s.silent.Load() != nil && s.file != nil && s.file.File == b.from.File() {
		b.givingUp = true
		b.from.GiveUp(unix.ETIMEDOUT)
		b.givingUp = false
	}
}

// abandonReads lets the loop end if nothing but reads of the source is outstanding. The source is let go of: the kernel keeps
// what it needs of it.
func (b *backend) abandonReads() bool {
	reads := 0
	for i := range b.reading {
		if b.reading[i].since.Load() != 0 {
			reads++
		}
	}
	if reads != b.loop.Outstanding() {
		return false // asked again when something has ended
	}
	for i := range b.reading {
		if s := b.reading[i].from.Swap(nil); s != nil {
			s.done()
		}
	}
	b.loop.Abandon()
	return true
}

// unanswered is what the lanes wait for.
type unanswered struct {
	reads, users int
	oldest       int64 // when the first of them began
	answered     int64 // when the last answer came
}

// add counts the reads of o that a lane has under way.
func (u *unanswered) add(b *backend, o *openSource) {
	u.answered = max(u.answered, b.answered.Load())
	for i := range b.reading {
		r := &b.reading[i]
		since := r.since.Load()
		if since == 0 || r.from.Load() != o {
			continue
		}
		u.reads++
		if b.users != nil {
			u.users++
		}
		if u.oldest == 0 || since < u.oldest {
			u.oldest = since
		}
	}
}

// overdue says whether that is an outage by now.
func (u *unanswered) overdue(now int64, limit time.Duration) bool {
	return u.reads > 0 && now-u.oldest > int64(limit) && now-u.answered > int64(limit)
}

// waitingFor is what these lanes wait for from o.
func waitingFor(lanes []*backend, o *openSource) (u unanswered) {
	for _, b := range lanes {
		u.add(b, o)
	}
	return u
}

// usersWaiting is how many reads of users wait for the source.
func (s *source) usersWaiting(lanes []*backend) int {
	o := s.take()
	defer o.done()
	u := waitingFor(lanes, o)
	return u.users
}

// watchAnswers notices that the source has fallen silent, and says why, or that it has answered again.
func (s *source) watchAnswers(lanes []*backend, limit time.Duration) (silent error, again bool) {
	o := s.take()
	defer o.done()
	u, now := waitingFor(lanes, o), clock()
	switch {
	case o.silent.Load() != nil:
		if u.reads == 0 || u.answered > o.silentSince {
			o.silent.Store(nil)
			return nil, true
		}
	case limit > 0 && u.overdue(now, limit):
		began := time.Now().Add(-time.Duration(now - u.oldest)).UTC().Format(time.TimeOnly)
		why := fmt.Errorf("%s has not answered for %s: %d reads wait, the first since %s UTC: %w", o.device.Path(), limit, u.reads, began, syscall.ETIMEDOUT)
		o.silentSince = now
		o.silent.Store(&why)
		for _, b := range lanes {
			b.wake()
		}
		return why, false
	}
	return nil, false
}
