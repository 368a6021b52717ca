package main

import (
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// TestOverdue: what counts as no answer.
func TestOverdue(t *testing.T) {
	const limit = 30 * time.Second
	now := int64(time.Hour)
	ago := func(d time.Duration) int64 { return now - int64(d) }
	for name, c := range map[string]struct {
		u    unanswered
		want bool
	}{
		"nothing waits":                     {unanswered{}, false},
		"just begun":                        {unanswered{reads: 1, oldest: ago(time.Second)}, false},
		"never answered":                    {unanswered{reads: 1, oldest: ago(31 * time.Second)}, true},
		"slow, but it answers":              {unanswered{reads: 9, oldest: ago(time.Minute), answered: ago(time.Second)}, false},
		"answered long ago":                 {unanswered{reads: 9, oldest: ago(31 * time.Second), answered: ago(time.Minute)}, true},
		"a read after a long time of peace": {unanswered{reads: 1, oldest: ago(time.Second), answered: ago(time.Hour / 2)}, false},
	} {
		if got := c.u.overdue(now, limit); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestUnansweredReads: only what is under way from the source of now counts.
func TestUnansweredReads(t *testing.T) {
	users := &backend{users: memoryOf(nil), reading: make([]sourceRead, 4)}
	background := &backend{reading: make([]sourceRead, 2)}
	now, former := new(openSource), new(openSource)
	set := func(b *backend, token int, from *openSource, since int64) {
		b.reading[token].from.Store(from)
		b.reading[token].since.Store(since)
	}
	set(users, 0, now, 70)
	set(users, 1, now, 0) // refused
	set(users, 2, former, 10)
	set(background, 1, now, 60)
	users.answered.Store(50)
	background.answered.Store(40)
	var u unanswered
	u.add(users, now)
	u.add(background, now)
	if want := (unanswered{reads: 2, users: 1, oldest: 60, answered: 50}); u != want {
		t.Errorf("%+v, want %+v", u, want)
	}
}

// TestPlacesForHydrated: a queue never gives all of its requests to the source.
func TestPlacesForHydrated(t *testing.T) {
	for _, c := range []struct{ depth, share, want int }{{64, 0, 48}, {64, 20, 20}, {64, 128, 48}, {1, 0, 1}, {4, 0, 3}} {
		b := &backend{users: memoryOf(nil), reading: make([]sourceRead, queueOps(c.depth))}
		if got := b.most(c.share); got != c.want {
			t.Errorf("depth %d, share %d: %d", c.depth, c.share, got)
		}
	}
	if got := (&backend{reading: make([]sourceRead, 32)}).most(0); got != 0 {
		t.Errorf("hydration: %d", got)
	}
}

// TestSilentSource: a source that does not answer is away until it does; an error of it is an outage.
func TestSilentSource(t *testing.T) {
	dir := t.TempDir()
	p := newPartsOfSectors(t, dir)
	e := p.engine
	e.core = p.core
	e.background = &background{Hydrator: p.background.hydrator, backend: p.background.backend.backend}
	e.frontends = []*frontend{{backend: p.users[0].backend.backend}}
	e.mu.settings.SourceTimeout = 1
	r := &e.background.backend.reading[0]
	r.from.Store(e.source.now.Load())
	r.since.Store(1)
	for clock() < int64(1100*time.Millisecond) {
		time.Sleep(10 * time.Millisecond)
	}
	e.watchAnswers()
	why := e.source.away()
	if why == nil || e.classify(&sideError{err: why}) != clone.Away {
		t.Fatalf("away for %v", why)
	}
	if err := p.users[0].do(clone.OpRead, 0, partsRegion, false); err == nil {
		t.Error("a read of a silent source has succeeded")
	}
	e.watchAnswers()
	if e.source.away() == nil {
		t.Error("a read that was refused counts as an answer")
	}
	r.since.Store(0)
	r.from.Store(nil)
	e.watchAnswers()
	if why := e.source.away(); why != nil {
		t.Errorf("after the answer: %v", why)
	}
	if err := p.users[0].do(clone.OpRead, 0, partsRegion, false); err != nil {
		t.Errorf("a read after the answer: %v", err)
	}
	e.mu.settings.SourceTimeout = 0
	r.from.Store(e.source.now.Load())
	r.since.Store(1)
	p.users[0].backend.answered.Store(0)
	e.watchAnswers()
	if why := e.source.away(); why != nil {
		t.Errorf("without a limit: %v", why)
	}
	r.since.Store(0)
	r.from.Store(nil)
	e.core = nil
	p.must(p.close())
}

// TestSourceTimeoutKept: the default needs nothing new in the metadata.
func TestSourceTimeoutKept(t *testing.T) {
	for seconds, want := range map[int64]uint32{defaultSourceTimeout: 0, 0: metadata.NoTimeout, 5: 5} {
		s := defaultSettings(1 << 16)
		s.SourceTimeout = seconds
		kept := s.toMetadata()
		if kept.SourceTimeout != want || fromMetadata(kept).SourceTimeout != seconds {
			t.Errorf("%d s: kept as %d, read as %d", seconds, kept.SourceTimeout, fromMetadata(kept).SourceTimeout)
		}
	}
	for text, want := range map[string]int64{"30s": 30, "2m": 120, "none": 0, "0": 0, "500ms": -1, "1.5s": -1, "25h": -1, "x": -1, "-1s": -1} {
		if got, ok := parseTimeout(text); ok != (want >= 0) || ok && (got != want) {
			t.Errorf("%q: %d, %v", text, got, ok)
		}
		if want > 0 {
			if again, ok := parseTimeout(formatTimeout(want)); !ok || again != want {
				t.Errorf("%q is written as %q", text, formatTimeout(want))
			}
		}
	}
}
