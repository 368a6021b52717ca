package metadata

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

func anyImage(uint64, *bitmap.Page) error { return nil }

// TestReopenKeepsWhatIsDurable: a commit whose flush has failed can be read and is lost all the
// same. The first write after Reopen, torn by a power loss, must not cost what the commit before it
// had made durable.
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
	mustCommit(t, s, 2, 0)
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
		{"empty", newDisk(), 2, anyImage, ErrEmpty},
		{"another clone's", strange, 2, anyImage, ErrMismatch},
		{"another session", other(func(sb *Superblock) { sb.Session++ }), 2, anyImage, ErrMismatch},
		{"closed in order", other(func(sb *Superblock) { sb.Clean = true }), 2, anyImage, ErrMismatch},
		{"of a commit after the one that may have failed", d, 0, anyImage, ErrMismatch},
		{"an image that the caller does not know", d, 2, func(uint64, *bitmap.Page) error { return unwanted }, unwanted},
		{"unreadable", failing{d}, 2, anyImage, ErrDamaged},
	} {
		if err := s.Reopen(c.dev, c.newest, c.seen); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, expected %v", c.what, err, c.want)
		}
	}
	mustCommit(t, s, 3, 0)
	if _, levels := mustOpen(t, d); levels[0] != 3 {
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

// replaced opens metadata as a daemon does that takes over from another, which knew newest as its
// last commit.
func replaced(dev Device, newest uint64) (*Store, [testPages]uint64, error) {
	var levels [testPages]uint64
	s, _, err := Open(dev)
	if err != nil {
		return nil, levels, err
	}
	err = s.LoadKnown(newest, func(page uint64, img *bitmap.Page) error {
		levels[page], _ = img.Counts()
		return nil
	})
	return s, levels, err
}

// TestRepairAfterReplacements: a commit fails, with some of its slots written, and then daemons
// replace one another, of this version and of one that took the failed commit's sequence for its
// own, some of which do not get through with the superblock. Whatever has happened, metadata that
// work again can be reopened and hold everything after a commit, and no power loss on the way costs
// what was durable.
func TestRepairAfterReplacements(t *testing.T) {
	boom := errors.New("boom")
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 11))
		d, s := create(t)
		mustCommit(t, s, 1, 0, 1)
		mustCommit(t, s, 2, 0, 2)
		d.SetFault(fakedisk.FailCall(1+rng.IntN(3), boom, rng.IntN(2) == 0)) // two pages, then the flush
		if err := commit(s, 3, 0, 1); !errors.Is(err, boom) {
			t.Fatal(err)
		}
		d.SetFault(nil)
		for range rng.IntN(4) {
			s = replaceAtRandom(t, d, rng)
		}
		if err := s.Reopen(d, 2, anyImage); err != nil {
			t.Fatalf("seed %d: healthy metadata: %v", seed, err)
		}
		for page := range uint64(testPages) {
			if err := s.WritePage(page, image(4)); err != nil {
				t.Fatal(err)
			}
		}
		_, levels := mustOpen(t, d.CrashClone(fakedisk.KeepRandom(rng)))
		for page, least := range []uint64{2, 1, 2} {
			if levels[page] < least {
				t.Fatalf("seed %d: page %d holds level %d, %d was durable", seed, page, levels[page], least)
			}
		}
		if err := s.Flush(); err != nil || s.CommitSequence() != 3 {
			t.Fatalf("seed %d: flush: %v, commit %d", seed, err, s.CommitSequence())
		}
		mustUpdate(t, s, func(sb *Superblock) { sb.Clean = true })
		if _, levels := mustOpen(t, d.CrashClone(fakedisk.KeepNone)); levels != [testPages]uint64{4, 4, 4} {
			t.Fatalf("seed %d: levels %v after the commit", seed, levels)
		}
	}
}

// replaceAtRandom is another daemon, of either kind, that writes its superblock, or fails to.
func replaceAtRandom(t *testing.T, d *fakedisk.Disk, rng *rand.Rand) *Store {
	t.Helper()
	var s *Store
	var err error
	if old := rng.IntN(3) == 0; old {
		s, _, err = open(d)
	} else {
		s, _, err = replaced(d, 2)
	}
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if rng.IntN(2) == 0 {
		d.SetFault(fakedisk.FailCall(1+rng.IntN(4), boom, rng.IntN(2) == 0))
	}
	err = s.Update(func(sb *Superblock) error { sb.Counters.Starts++; return nil })
	d.SetFault(nil)
	if err != nil && !errors.Is(err, boom) {
		t.Fatal(err)
	}
	return s
}

// TestLoadKnown: slots of a commit that nobody has seen the end of count for nothing, and are the
// ones that the next commit writes.
func TestLoadKnown(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 1, 0, 1)
	mustCommit(t, s, 2, 0)
	mustCommit(t, s, 3, 0, 2)
	mustUpdate(t, s, func(*Superblock) {})
	for _, c := range []struct {
		newest    uint64
		want      error
		levels    [testPages]uint64
		undecided uint64
	}{
		{3, nil, [testPages]uint64{3, 1, 3}, 0},
		{2, nil, [testPages]uint64{2, 1, 0}, 2},
		{1, ErrMismatch, [testPages]uint64{}, 0}, // commit 3 cannot have been tried
		{4, ErrOlder, [testPages]uint64{}, 0},
	} {
		calls := d.Calls()
		s, levels, err := replaced(d, c.newest)
		if !errors.Is(err, c.want) || err == nil && levels != c.levels {
			t.Fatalf("newest %d: %v, levels %v", c.newest, err, levels)
		}
		if s.undecided != c.undecided || d.Calls() != calls+1 { // the flush of Open
			t.Errorf("newest %d: %d pages undecided, %d calls", c.newest, s.undecided, d.Calls()-calls)
		}
		if err == nil && s.CommitSequence() != c.newest {
			t.Errorf("newest %d: commit %d", c.newest, s.CommitSequence())
		}
	}
	s, _, err := replaced(d, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(func(sb *Superblock) error { sb.Clean = true; return nil }); !errors.Is(err, ErrUnflushed) {
		t.Errorf("clean flag with undecided pages: %v", err)
	}
	for _, page := range []uint64{0, 2} {
		if err := s.WritePage(page, image(5)); err != nil {
			t.Fatal(err)
		}
	}
	crashes(d, func(after *fakedisk.Disk, keep string) {
		if _, levels, err := replaced(after, 2); err != nil || levels[0] < 2 || levels[1] != 1 {
			t.Errorf("%s: a crash leaves %v, %v", keep, levels, err)
		}
	})
	if err := s.Flush(); err != nil || s.CommitSequence() != 3 || s.undecided != 0 {
		t.Fatalf("commit: %v, commit %d, %d undecided", err, s.CommitSequence(), s.undecided)
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean = true })
	expectLevels(t, d.CrashClone(fakedisk.KeepNone), 5, 1, 5)
}

// TestLoadKnownBesideBadSlot: also when the other slot of the page is bad, both slots never get the
// same sequence.
func TestLoadKnownBesideBadSlot(t *testing.T) {
	for bad := range 2 {
		d, s := create(t)
		mustCommit(t, s, 1, 0)
		mustCommit(t, s, 2, 0)
		edit(t, d, slotOffset(0, bad), flip(100))
		s, _, err := replaced(d, 1)
		if err != nil {
			t.Fatal(err)
		}
		mustCommit(t, s, 3, 0)
		expectLevels(t, d.CrashClone(fakedisk.KeepNone), 3, 0, 0)
	}
}
