package engine

import (
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/dataplane"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// TestOverdue: what counts as no answer.
func TestOverdue(t *testing.T) {
	const limit = 30 * time.Second
	now := int64(time.Hour)
	ago := func(d time.Duration) int64 { return now - int64(d) }
	for name, c := range map[string]struct {
		u    dataplane.Unanswered
		want bool
	}{
		"nothing waits":                     {dataplane.Unanswered{}, false},
		"just begun":                        {dataplane.Unanswered{Reads: 1, Oldest: ago(time.Second)}, false},
		"never answered":                    {dataplane.Unanswered{Reads: 1, Oldest: ago(31 * time.Second)}, true},
		"slow, but it answers":              {dataplane.Unanswered{Reads: 9, Oldest: ago(time.Minute), Answered: ago(time.Second)}, false},
		"answered long ago":                 {dataplane.Unanswered{Reads: 9, Oldest: ago(31 * time.Second), Answered: ago(time.Minute)}, true},
		"a read after a long time of peace": {dataplane.Unanswered{Reads: 1, Oldest: ago(time.Second), Answered: ago(time.Hour / 2)}, false},
	} {
		if got := c.u.Overdue(now, limit); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestUnansweredReads: only what is under way from the source of now counts.
func TestUnansweredReads(t *testing.T) {
	users := &dataplane.Backend{Users: memoryOf(nil), Reading: make([]dataplane.SourceRead, 4)}
	background := &dataplane.Backend{Reading: make([]dataplane.SourceRead, 2)}
	now, former := new(dataplane.OpenSource), new(dataplane.OpenSource)
	set := func(b *dataplane.Backend, token int, from *dataplane.OpenSource, since int64) {
		b.Reading[token].From.Store(from)
		b.Reading[token].Since.Store(since)
	}
	set(users, 0, now, 70)
	set(users, 1, now, 0) // refused
	set(users, 2, former, 10)
	set(background, 1, now, 60)
	users.Answered.Store(50)
	background.Answered.Store(40)
	var u dataplane.Unanswered
	u.Add(users, now)
	u.Add(background, now)
	if want := (dataplane.Unanswered{Reads: 2, Users: 1, Oldest: 60, Answered: 50}); u != want {
		t.Errorf("%+v, want %+v", u, want)
	}
}

// TestPlacesForHydrated: a queue never gives all of its requests to the source.
func TestPlacesForHydrated(t *testing.T) {
	for _, c := range []struct{ depth, share, want int }{{64, 0, 48}, {64, 20, 20}, {64, 128, 48}, {1, 0, 1}, {4, 0, 3}} {
		b := &dataplane.Backend{Users: memoryOf(nil), Reading: make([]dataplane.SourceRead, dataplane.QueueOps(c.depth))}
		if got := b.Most(c.share); got != c.want {
			t.Errorf("depth %d, share %d: %d", c.depth, c.share, got)
		}
	}
	if got := (&dataplane.Backend{Reading: make([]dataplane.SourceRead, 32)}).Most(0); got != 0 {
		t.Errorf("hydration: %d", got)
	}
}

// TestSilentSource: a source that does not answer is away until it does; an error of it is an
// outage.
func TestSilentSource(t *testing.T) {
	dir := t.TempDir()
	p := newAssemblyOfSectors(t, dir)
	e := p.engine
	e.lanes.core = p.core
	e.lanes.background = &dataplane.Background{Hydrator: p.background.hydrator, Backend: p.background.backend.Backend}
	e.lanes.frontends = []*dataplane.Frontend{{Backend: p.users[0].backend.Backend}}
	e.Settings.Set(definition.Settings{SourceTimeout: 1})
	r := &e.lanes.background.Backend.Reading[0]
	r.From.Store(e.Source.Now.Load())
	r.Since.Store(1)
	for dataplane.Clock() < int64(1100*time.Millisecond) {
		time.Sleep(10 * time.Millisecond)
	}
	e.lanes.watchAnswers()
	why := e.Source.Away()
	if why == nil || classify(&dataplane.SideError{Err: why}, e.Dest.Device) != clone.Away {
		t.Fatalf("away for %v", why)
	}
	if err := p.users[0].do(clone.OpRead, 0, assemblyRegion, false); err == nil {
		t.Error("a read of a silent source has succeeded")
	}
	e.lanes.watchAnswers()
	if e.Source.Away() == nil {
		t.Error("a read that was refused counts as an answer")
	}
	r.Since.Store(0)
	r.From.Store(nil)
	e.lanes.watchAnswers()
	if why := e.Source.Away(); why != nil {
		t.Errorf("after the answer: %v", why)
	}
	if err := p.users[0].do(clone.OpRead, 0, assemblyRegion, false); err != nil {
		t.Errorf("a read after the answer: %v", err)
	}
	e.Settings.Set(definition.Settings{SourceTimeout: 0})
	r.From.Store(e.Source.Now.Load())
	r.Since.Store(1)
	p.users[0].backend.Answered.Store(0)
	e.lanes.watchAnswers()
	if why := e.Source.Away(); why != nil {
		t.Errorf("without a limit: %v", why)
	}
	r.Since.Store(0)
	r.From.Store(nil)
	e.lanes.core = nil
	p.must(p.close())
}

// TestSourceTimeoutKept: the default needs nothing new in the metadata.
func TestSourceTimeoutKept(t *testing.T) {
	for seconds, want := range map[int64]uint32{definition.DefaultSourceTimeout: 0, 0: metadata.NoTimeout, 5: 5} {
		s := definition.DefaultSettings(1 << 16)
		s.SourceTimeout = seconds
		kept := s.ToMetadata()
		if kept.SourceTimeout != want || definition.FromMetadata(kept).SourceTimeout != seconds {
			t.Errorf("%d s: kept as %d, read as %d", seconds, kept.SourceTimeout, definition.FromMetadata(kept).SourceTimeout)
		}
	}
	for text, want := range map[string]int64{"30s": 30, "2m": 120, "none": 0, "0": 0, "500ms": -1, "1.5s": -1, "25h": -1, "x": -1, "-1s": -1} {
		if got, ok := definition.ParseTimeout(text); ok != (want >= 0) || ok && (got != want) {
			t.Errorf("%q: %d, %v", text, got, ok)
		}
		if want > 0 {
			if again, ok := definition.ParseTimeout(definition.FormatTimeout(want)); !ok || again != want {
				t.Errorf("%q is written as %q", text, definition.FormatTimeout(want))
			}
		}
	}
}
