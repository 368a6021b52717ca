package events

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
	"github.com/ublk-clone/ublk-clone/internal/testkit"
)

func TestEventLogKeepsTheLast(t *testing.T) {
	var log bytes.Buffer
	l := NewLog("c", zerolog.New(&log))
	if ans := l.Answer(t.Context(), nil, 0); ans.Last != 0 || len(ans.Events) != 0 {
		t.Errorf("nothing has happened: %+v", ans)
	}
	for range control.KeptEvents + 10 {
		l.Add(control.EventSettings, "text")
	}
	kept, last, _ := l.since(0)
	if len(kept) != control.KeptEvents || kept[0].Seq != 11 || last != control.KeptEvents+10 || kept[control.KeptEvents-1].Seq != last {
		t.Errorf("%d kept kept, from %d to %d", len(kept), kept[0].Seq, last)
	}
	for seq, want := range map[uint64]int{last: 0, last - 1: 1, last - 3: 3, 10: control.KeptEvents, last + 1: control.KeptEvents} {
		if kept, _, _ := l.since(seq); len(kept) != want {
			t.Errorf("behind %d of %d: %d kept, want %d", seq, last, len(kept), want)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != control.KeptEvents+10 {
		t.Errorf("%d lines in the log", n)
	}
}

// TestEventNumbersOutliveTheDaemon: who waits behind a number misses nothing of the next daemon.
func TestEventNumbersOutliveTheDaemon(t *testing.T) {
	live, err := livemap.Create(t.TempDir(), livemap.Identity{Regions: 1}, livemap.State{})
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	first := NewLog("c", zerolog.Nop())
	first.KeepIn(live)
	first.Add(control.EventStarted, "")
	first.Add(control.EventSettings, "")
	next := NewLog("c", zerolog.Nop())
	seen := uint64(1)
	if ans := next.Answer(t.Context(), &seen, 0); len(ans.Events) != 0 { // asked before the map is there
		t.Errorf("nothing has happened: %+v", ans)
	}
	next.KeepIn(live)
	next.Add(control.EventStarted, "")
	for _, seen := range []uint64{1, 2} {
		if ans := next.Answer(t.Context(), &seen, 0); len(ans.Events) != 1 || ans.Events[0].Seq != 3 || ans.Last != 3 {
			t.Errorf("behind %d: %+v", seen, ans)
		}
	}
	next.KeepIn(nil)
	next.Add(control.EventSettings, "")
	if live.Events() != 3 {
		t.Errorf("the map was written after it was given up: %d", live.Events())
	}
}

func TestEventLogWaits(t *testing.T) {
	l := NewLog("c", zerolog.Nop())
	zero := uint64(0)
	if ans := l.Answer(t.Context(), &zero, time.Millisecond); len(ans.Events) != 0 {
		t.Errorf("nothing has happened: %+v", ans)
	}
	var waiting sync.WaitGroup
	for range control.MaxPolls {
		waiting.Go(func() {
			if ans := l.Answer(t.Context(), &zero, time.Minute); testkit.KindsOf(ans.Events) != control.EventMode || ans.Last != 1 {
				t.Errorf("waited for %+v", ans)
			}
		})
	}
	for len(l.Polls) < control.MaxPolls {
		time.Sleep(time.Millisecond) // they are goroutines that nothing tells of
	}
	if ans := l.Answer(t.Context(), &zero, time.Minute); len(ans.Events) != 0 { // at once: too many wait
		t.Errorf("one too many: %+v", ans)
	}
	l.Add(control.EventMode, "text")
	waiting.Wait()
}
