package main

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/exit"
	"github.com/ublk-clone/ublk-clone/internal/explain"
	"github.com/ublk-clone/ublk-clone/internal/succession"
	"github.com/ublk-clone/ublk-clone/internal/testkit"
	"github.com/ublk-clone/ublk-clone/metadata"
)

// TestStillThere: whatever a recovery fails of, nothing of the clone is removed, and what is said
// of its users is so.
func TestStillThere(t *testing.T) {
	unfit := explain.Metadata("use", "meta", metadata.ErrMismatch)
	for _, c := range []struct {
		name  string
		start definition.Start
		err   error
		alive bool
		says  string
	}{
		{name: "no error", start: definition.Start{Recover: true}},
		{name: "not written", start: definition.Start{Recover: true}, err: explain.Metadata("write", "meta", syscall.EIO)},
		{name: "another device's", start: definition.Start{Recover: true}, err: unfit, says: "Check that source"},
		{name: "replaces one that stays", start: definition.Start{Recover: true, Replace: true}, err: unfit, alive: true, says: "not interrupted"},
		{name: "replaces one that stays, of many errors", start: definition.Start{Recover: true, Replace: true}, err: errors.Join(unfit, syscall.EIO), alive: true, says: "not interrupted"},
		{name: "another recovery is under way", start: definition.Start{Recover: true}, err: control.NameTaken("c"), alive: true, says: "See `ublk-clone status c`"},
		{name: "no recovery", err: unfit, alive: true, says: "Check that source"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &program{dir: control.Dir(t.TempDir())}
			c.start.Definition = definition.Definition{Name: "c"}
			if err := p.dir.Store(&c.start.Definition); err != nil {
				t.Fatal(err)
			}
			if c.alive {
				lock, err := p.dir.Acquire("c")
				if err != nil {
					t.Fatal(err)
				}
				defer released(t, lock)
			}
			err := p.clones().StillThere(c.start, c.err)
			if exit.Code(err) != exit.Code(c.err) || !strings.Contains(exit.Next(err), c.says) {
				t.Errorf("%v, with code %d and %q", err, exit.Code(err), exit.Next(err))
			}
			if strings.Contains(exit.Next(err), "not interrupted") != strings.Contains(c.says, "not interrupted") {
				t.Errorf("it says %q", exit.Next(err))
			}
			if _, err := p.dir.Load("c"); err != nil {
				t.Errorf("the definition: %v", err)
			}
		})
	}
}

// TestServed: a name that is locked and does not answer is waited for; what becomes of it tells
// whether there is something to recover.
func TestServed(t *testing.T) {
	const soon = 100 * time.Millisecond
	t.Run("it ends", func(t *testing.T) {
		dir := control.Dir(t.TempDir())
		if err := dir.Store(&definition.Definition{Name: "c"}); err != nil {
			t.Fatal(err)
		}
		lock, err := dir.Acquire("c")
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(soon, func() { released(t, lock) })
		if served, err := succession.Served(dir, "c"); served || err != nil {
			t.Errorf("a daemon that ends: served %v, %v", served, err)
		}
	})
	t.Run("it comes up", func(t *testing.T) {
		dir := testkit.ServeRequests(t, testkit.EchoVerb)
		lock, err := dir.Acquire("c")
		if err != nil {
			t.Fatal(err)
		}
		defer released(t, lock)
		if served, err := succession.Served(dir, "c"); !served || err != nil {
			t.Errorf("a daemon that answers: served %v, %v", served, err)
		}
	})
}
