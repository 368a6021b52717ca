package dataplane

import (
	"math/rand/v2"
	"os"
	"testing"

	"github.com/ublk-clone/ublk-clone/clone"
	"github.com/ublk-clone/ublk-clone/internal/livemap"
)

// cautionMap is a live map as the daemons of one session have it.
func cautionMap(t *testing.T) *livemap.Map {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "caution")
	if err != nil {
		t.Fatal(err)
	}
	m, err := livemap.Create(dir, livemap.Identity{UUID: [16]byte{1}, Regions: 100}, livemap.State{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close()
		_ = os.RemoveAll(dir)
	})
	return m
}

// life is one daemon: it serves the requests in some order until one kills it, and says which are
// left.
func life(c *Caution, rng *rand.Rand, requests []*clone.Request, deadly func(*clone.Request) bool) (left []*clone.Request, refused *clone.Request, died bool) {
	order := rng.Perm(len(requests))
	for n, i := range order {
		r := requests[i]
		if c != nil {
			switch c.ask(r) {
			case later:
				panic("nobody else is there")
			case refusal:
				refused = r
				continue
			}
		}
		if deadly(r) {
			for _, j := range order[n:] {
				left = append(left, requests[j])
			}
			return left, refused, true
		}
		if c != nil {
			c.answered(r)
		}
	}
	return nil, refused, false
}

// TestDeadlyRequest: a request that kills every daemon is answered with an error after a bounded
// number of deaths, and no other one is, whatever the order.
func TestDeadlyRequest(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 3))
		live := cautionMap(t)
		killer := &clone.Request{Op: clone.OpWrite, Off: 8192, Len: 4096}
		requests := []*clone.Request{killer}
		for i := range int64(9) {
			requests = append(requests, &clone.Request{Op: clone.OpRead, Off: i * 4096, Len: 4096})
		}
		for deaths := 0; ; deaths++ {
			c := NewCaution(live, func() {})
			left, refused, died := life(c, rng, requests, func(r *clone.Request) bool { return r == killer })
			if !died {
				if refused != killer || deaths != carefulAfter+CondemnedAfter {
					t.Fatalf("seed %d: after %d deaths %+v is refused", seed, deaths, refused)
				}
				if c.done() {
					t.Fatal("caution is over at once")
				}
				c.Survived()
				other := &clone.Request{Op: clone.OpWrite, Len: 4096}
				if c.ask(killer) != refusal || c.ask(other) != granted || c.ask(other) != granted || c.done() {
					t.Fatal("after the first seconds: the condemned request is served, or another is not")
				}
				break
			}
			if refused != nil || deaths > carefulAfter+CondemnedAfter {
				t.Fatalf("seed %d: death %d, refused %+v", seed, deaths, refused)
			}
			requests = left
		}
	}
}

// TestDeathsFromOutside: daemons that are killed for no fault of a request make none refused, as
// long as requests are answered; nor a FLUSH ever.
func TestDeathsFromOutside(t *testing.T) {
	live := cautionMap(t)
	flush := &clone.Request{Op: clone.OpFlush}
	for range 50 {
		c := NewCaution(live, func() {})
		if c == nil {
			continue
		}
		r := &clone.Request{Op: clone.OpWrite, Len: 4096}
		if c.ask(r) != granted {
			t.Fatal("a request that was always answered in the end is refused")
		}
		if c.ask(flush) != later {
			t.Fatal("two requests at a time")
		}
		c.answered(r)
		if c.ask(flush) != granted {
			t.Fatal("a FLUSH is refused")
		}
		if c.answered(flush); c.ask(r) != granted { // and at work it dies
			t.Fatal("refused")
		}
	}
}

// TestNoCaution: nothing is held up as long as daemons live.
func TestNoCaution(t *testing.T) {
	live := cautionMap(t)
	for range 20 {
		if NewCaution(live, func() {}) != nil {
			t.Fatal("caution without reason")
		}
		live.SetDeaths(0) // it has lived
	}
}
