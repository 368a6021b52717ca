package metadata

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

func anyImage(uint64, *bitmap.Page) error { return nil }

// TestReopenKeepsWhatIsDurable: a commit whose flush has failed can be read and is lost all the same. The first write
// after Reopen, torn by a power loss, must not cost what the commit before it had made durable.
func TestReopenKeepsWhatIsDurable(t *testing.T) {
	failed := errors.New("flush failed")
	for seed := range uint64(200) {
		d, s := create(t)
		mustCommit(t, s, 1, 0, 1)
		mustCommit(t, s, 2, 0, 2)
		d.SetFault(fakedisk.FailCall(3, failed, false)) // two pages, then the flush
		if err := commit(s, 3, 0, 1); !errors.Is(err, failed) {
			t.Fatal(err)
		}
		d.SetFault(nil)
		if seed%2 == 1 { // another process has read what cannot be relied on
			s, _ = mustOpen(t, d)
		}
		if err := s.Reopen(d, 2, anyImage); err != nil {
			t.Fatal(err)
		}
		for page := range uint64(testPages) {
			if err := s.WritePage(page, image(4)); err != nil {
				t.Fatal(err)
			}
		}
		_, levels := mustOpen(t, d.CrashClone(fakedisk.KeepRandom(rand.New(rand.NewPCG(seed, 7)))))
		for page, least := range []uint64{2, 1, 2} {
			if levels[page] < least {
				t.Fatalf("seed %d: page %d holds level %d, %d was durable", seed, page, levels[page], least)
			}
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if s.CommitSequence() != 3 {
			t.Errorf("commit %d", s.CommitSequence())
		}
		mustUpdate(t, s, func(sb *Superblock) { sb.Clean = true })
		if _, levels := mustOpen(t, d.CrashClone(fakedisk.KeepNone)); levels != [testPages]uint64{4, 4, 4} {
			t.Fatalf("seed %d: levels %v after the commit", seed, levels)
		}
	}
}

// TestReopenRefuses: what somebody else has had is not taken, and the store goes on as it was.
func TestReopenRefuses(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 1, 0)
	mustUpdate(t, s, func(*Superblock) {})
	other := func(change func(*Superblock)) *fakedisk.Disk {
		c := d.CrashClone(fakedisk.KeepAll)
		o, _ := mustOpen(t, c)
		mustUpdate(t, o, change)
		return c
	}
	foreign := sample()
	foreign.UUID[3]++
	strange := newDisk()
	if _, err := Create(strange, foreign, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	unwanted := errors.New("unwanted")
	for _, c := range []struct {
		what   string
		dev    Device
		newest uint64
		seen   func(uint64, *bitmap.Page) error
		want   error
	}{
		{"empty", newDisk(), 1, anyImage, ErrEmpty},
		{"another clone's", strange, 1, anyImage, ErrMismatch},
		{"another session", other(func(sb *Superblock) { sb.Session++ }), 1, anyImage, ErrMismatch},
		{"closed in order", other(func(sb *Superblock) { sb.Clean = true }), 1, anyImage, ErrMismatch},
		{"of a later commit", d, 0, anyImage, ErrMismatch},
		{"an image that the caller does not know", d, 1, func(uint64, *bitmap.Page) error { return unwanted }, unwanted},
		{"unreadable", failing{d}, 1, anyImage, ErrDamaged},
	} {
		if err := s.Reopen(c.dev, c.newest, c.seen); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, expected %v", c.what, err, c.want)
		}
	}
	mustCommit(t, s, 2, 0)
	if _, levels := mustOpen(t, d); levels[0] != 2 {
		t.Errorf("level %d after a commit", levels[0])
	}
}

// failing is a device that cannot be read.
type failing struct{ *fakedisk.Disk }

func (failing) ReadAt([]byte, int64) error { return errors.New("input/output error") }

// TestDetached: a store without device knows its superblock and writes nothing, until it gets one.
func TestDetached(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 1, 0, 1)
	mustUpdate(t, s, func(sb *Superblock) { sb.Counters.Starts = 77 })
	block := s.Copy()
	a, err := Detached(block)
	if err != nil {
		t.Fatal(err)
	}
	if a.Superblock() != s.Superblock() {
		t.Errorf("superblock %+v, expected %+v", a.Superblock(), s.Superblock())
	}
	err = a.Update(func(*Superblock) error { return nil })
	if !errors.Is(err, ErrDetached) || !errors.Is(a.Load(anyImage), ErrDetached) || !errors.Is(a.WritePage(0, image(1)), ErrNotLoaded) {
		t.Errorf("a store without device: update %v", err)
	}
	if err := a.Reopen(d, 1, anyImage); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, a, 2, 0, 2)
	mustUpdate(t, a, func(sb *Superblock) { sb.Clean = true })
	if _, levels := mustOpen(t, d); levels != [testPages]uint64{2, 1, 2} {
		t.Errorf("levels %v", levels)
	}
	block[300] ^= 1
	if _, err := Detached(block); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged copy: %v", err)
	}
	if _, err := Detached(nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("no copy: %v", err)
	}
}
