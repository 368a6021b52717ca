package metadata

// An error at every call, then a power loss at every later one. A store goes on after an error, as
// the daemon does when the mode has become ro or a status could not be recorded; whatever it writes
// then must not cost what was durable before.

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

var errCall = errors.New("call failed")

// failThenCut is a fault: the n-th changing call fails, and during the m-th, a later one, the power
// goes.
func failThenCut(n, m int, landed bool) func(fakedisk.Call) *fakedisk.Fault {
	fail, cut := fakedisk.FailCall(n, errCall, landed), fakedisk.CutPower(m)
	return func(c fakedisk.Call) *fakedisk.Fault {
		if f := fail(c); f != nil {
			return f
		}
		return cut(c)
	}
}

// someCrashes calls visit with a few of the disks that a power loss may leave: nothing and all of
// what was not flushed, each block alone or half of it, and the choices of rng.
func someCrashes(d *fakedisk.Disk, rng *rand.Rand, visit func(after *fakedisk.Disk)) {
	blockOf := func(u fakedisk.Unflushed) int64 { return u.Sector * fakedisk.SectorBytes / BlockSize }
	visit(d.CrashClone(fakedisk.KeepNone))
	visit(d.CrashClone(fakedisk.KeepAll))
	last := int64(-1)
	for _, one := range d.Unflushed() {
		if blockOf(one) == last {
			continue
		}
		last = blockOf(one)
		for _, sectors := range []int64{4, 8} {
			visit(d.CrashClone(func(u fakedisk.Unflushed) int {
				if blockOf(u) != last || u.Sector%8 >= sectors {
					return 0
				}
				return u.Versions
			}))
		}
	}
	for range 4 {
		visit(d.CrashClone(fakedisk.KeepRandom(rng)))
	}
}

// history is what a store has been asked for: of each page and of the superblock the last value
// that has ended well, and those tried since.
type history struct {
	levels [testPages]uint64
	tried  [testPages][]uint64
	id     uint64
	wanted []uint64
}

// setID changes the first and a later sector of the superblock, so that part of the write is a
// torn one.
func setID(n uint64) func(*Superblock) error {
	return func(sb *Superblock) error {
		le.PutUint64(sb.MachineID[:], n)
		sb.Counters.BytesCopied = n
		return nil
	}
}

func (h *history) commit(s *Store, level uint64, pages ...uint64) error {
	for _, p := range pages {
		h.tried[p] = append(h.tried[p], level)
	}
	err := commit(s, level, pages...)
	if err == nil {
		for _, p := range pages {
			h.levels[p], h.tried[p] = level, nil
		}
	}
	return err
}

func (h *history) update(s *Store, id uint64) error {
	h.wanted = append(h.wanted, id)
	err := s.Update(setID(id))
	if err == nil {
		h.id, h.wanted = id, nil
	}
	return err
}

// check opens what is left.
func (h *history) check(t *testing.T, after *fakedisk.Disk, what ...any) {
	t.Helper()
	s, levels, err := open(after)
	if err != nil {
		t.Errorf("%v: %v", what, err)
		return
	}
	for p, level := range levels {
		if !among(level, h.levels[p], h.tried[p]) {
			t.Errorf("%v: page %d holds %d, committed %d, tried since %v", what, p, level, h.levels[p], h.tried[p])
		}
	}
	sb := s.Superblock()
	if id := le.Uint64(sb.MachineID[:]); !among(id, h.id, h.wanted) || id != sb.Counters.BytesCopied {
		t.Errorf("%v: id %d and %d, updated to %d, tried since %v", what, id, sb.Counters.BytesCopied, h.id, h.wanted)
	}
}

func among(v, ended uint64, tried []uint64) bool {
	for _, x := range tried {
		if v == x {
			return true
		}
	}
	return v == ended
}

// TestFailThenCut: whatever call of updates and commits fails, and whenever the power goes after
// that: the metadata open, no page is older than its last commit that ended well, and no superblock
// than its last update.
func TestFailThenCut(t *testing.T) {
	base, first := create(t)
	if err := first.Update(setID(0)); err != nil {
		t.Fatal(err)
	}
	var h history
	script := func(d *fakedisk.Disk) (calls int) {
		h = history{}
		s, _ := mustOpen(t, d)
		for i, do := range []func() error{
			func() error { return h.commit(s, 1, 0, 1) },
			func() error { return h.update(s, 101) },
			func() error { return h.update(s, 102) },
			func() error { return h.commit(s, 2, 1, 2) },
			func() error { return h.commit(s, 3, 0, 1) },
			func() error { return h.update(s, 103) },
			func() error { return h.commit(s, 4, 1) },
		} {
			if err := do(); errors.Is(err, fakedisk.ErrPowerCut) {
				break
			} else if err != nil && !errors.Is(err, errCall) {
				t.Fatalf("step %d: %v", i, err)
			}
		}
		return d.Calls()
	}
	calls := script(base.CrashClone(fakedisk.KeepAll))
	if calls < 20 {
		t.Fatalf("only %d calls", calls)
	}
	rng := rand.New(rand.NewPCG(3, 11))
	for fail := 1; fail < calls; fail++ {
		for cut := fail + 1; cut <= calls; cut++ {
			landed := rng.IntN(2) == 0
			d := base.CrashClone(fakedisk.KeepAll)
			d.SetFault(failThenCut(1+fail, 1+cut, landed)) // the first is the flush of Open
			script(d)
			someCrashes(d, rng, func(after *fakedisk.Disk) {
				h := h
				h.check(t, after, "call", fail, "fails, landed:", landed, "then the power goes at", cut)
			})
			if t.Failed() {
				return
			}
		}
	}
}

// TestReopenOfACopy: metadata that somebody has copied back are in the device's cache at first.
// They are durable before anything is written over a slot or a superblock.
func TestReopenOfACopy(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 11))
	for cut, ended := 1, false; !ended; cut++ {
		d, s := create(t)
		var h history
		if err := errors.Join(h.update(s, 100), h.commit(s, 1, 0, 1), h.commit(s, 2, 0, 2), h.update(s, 101)); err != nil {
			t.Fatal(err)
		}
		restored, b := newDisk(), make([]byte, d.Size())
		if err := errors.Join(d.ReadAt(b, 0), restored.WriteAt(b, 0), s.Reopen(restored, 2, anyImage)); err != nil {
			t.Fatal(err)
		}
		restored.SetFault(fakedisk.CutPower(cut))
		err := h.commit(s, 5, 0, 1, 2)
		if err == nil {
			err = h.update(s, 102)
		}
		ended = err == nil
		someCrashes(restored, rng, func(after *fakedisk.Disk) { h.check(t, after, "cut at", cut) })
		if t.Failed() {
			return
		}
	}
}

// TestFailThenReopenThenCut: a commit or an update fails at some call, the metadata is opened
// again, in vain or not, and written anew; the power goes at every call of that.
func TestFailThenReopenThenCut(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	for fail := 1; fail <= 7; fail++ {
		for cut, ended := 1, false; !ended; cut++ {
			for variant := range 4 {
				d, s := create(t)
				var h history
				if err := errors.Join(h.update(s, 100), h.commit(s, 1, 0, 1), h.commit(s, 2, 0, 2)); err != nil {
					t.Fatal(err)
				}
				d.SetFault(fakedisk.FailCall(fail, errCall, variant%2 == 1)) // 1 to 3 of the commit, 4 to 7 of the update
				if err := errors.Join(h.commit(s, 3, 0, 1), h.update(s, 101)); !errors.Is(err, errCall) {
					t.Fatalf("call %d: %v", fail, err)
				}
				newest := s.CommitSequence()
				d.SetFault(nil)
				seen := map[uint64]bool{}
				look := func(_ uint64, img *bitmap.Page) error {
					n, _ := img.Counts()
					seen[n] = true
					return nil
				}
				for range 1 + variant/2 {
					if err := s.Reopen(d, newest, look); err != nil {
						t.Fatal(err)
					}
				}
				if !seen[1] || !seen[2] || seen[3] != (fail >= 2 || variant%2 == 1) {
					t.Fatalf("call %d: images %v were looked at", fail, seen)
				}
				d.SetFault(fakedisk.CutPower(cut))
				err := h.commit(s, 5, 0, 1, 2)
				if err == nil {
					err = h.update(s, 102)
				}
				if err == nil {
					err = h.update(s, 103)
				}
				ended = err == nil
				someCrashes(d, rng, func(after *fakedisk.Disk) {
					h := h
					h.check(t, after, "call", fail, "fails, variant", variant, "then the power goes at", cut)
				})
				if t.Failed() {
					return
				}
			}
		}
	}
}

// mortal is a disk whose daemon is killed in one of its calls to it: a write may have got there, a
// flush has asked for nothing. From then on every call fails.
type mortal struct {
	*fakedisk.Disk
	left   int // calls that it gets done, a partial write not counted
	landed int64
}

var errKilled = errors.New("killed")

func (m *mortal) WriteAt(b []byte, off int64) error {
	switch m.left--; {
	case m.left >= 0:
		return m.Disk.WriteAt(b, off)
	case m.left == -1 && m.landed > 0:
		_ = m.Disk.WriteAt(b[:min(m.landed, int64(len(b)))], off)
	}
	return errKilled
}

func (m *mortal) Flush() error {
	if m.left--; m.left >= 0 {
		return m.Disk.Flush()
	}
	return errKilled
}

// TestDaemonsFailThenCut: several daemons have the metadata one after the other. Any call of theirs
// may fail, and they are killed in any other. The last one meets a power loss. No daemon knows
// which flush has failed under another, so it must not overwrite the only thing that is durable: a
// superblock copy, or a slot.
func TestDaemonsFailThenCut(t *testing.T) {
	for seed := range uint64(1000) {
		rng := rand.New(rand.NewPCG(seed, 13))
		d, s := create(t)
		var h history
		if err := errors.Join(h.update(s, 100), h.commit(s, 1, 0, 1), h.commit(s, 2, 0, 2)); err != nil {
			t.Fatal(err)
		}
		newest, next := s.CommitSequence(), uint64(3)
		serve := func(dev Device) error {
			s, _, err := Open(dev)
			if err == nil {
				err = s.LoadKnown(newest, func(uint64, *bitmap.Page) error { return nil })
			}
			for range rng.IntN(4) {
				switch next++; {
				case err != nil:
					return err
				case rng.IntN(3) > 0:
					err = h.update(s, 100+next)
				default:
					pages := []uint64{rng.Uint64N(testPages)}
					for page, flags := range s.flags { // of a commit that has failed, as the core does
						if flags&slotUndecided != 0 && uint64(page) != pages[0] {
							pages = append(pages, uint64(page))
						}
					}
					err = h.commit(s, next, pages...)
					newest = s.CommitSequence()
				}
			}
			return err
		}
		for range 1 + rng.IntN(3) {
			d.SetFault(fakedisk.FailCall(1+rng.IntN(10), errCall, rng.IntN(2) == 0))
			err := serve(&mortal{d, 1 + rng.IntN(12), rng.Int64N(9) * fakedisk.SectorBytes})
			if err != nil && !errors.Is(err, errCall) && !errors.Is(err, errKilled) {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		d.SetFault(fakedisk.CutPower(1 + rng.IntN(8)))
		if err := serve(d); err != nil && !errors.Is(err, fakedisk.ErrPowerCut) {
			t.Fatalf("seed %d, the last daemon: %v", seed, err)
		}
		someCrashes(d, rng, func(after *fakedisk.Disk) {
			h := h
			h.check(t, after, "seed", seed)
		})
		if t.Failed() {
			return
		}
	}
}
