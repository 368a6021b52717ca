package metadata

// Power loss at every step. A scenario runs on a fake disk whose power is cut during its
// n-th changing call, for every n until it gets through; after each cut every subset of
// the unflushed sectors (or many random ones, where there are more than ten) is kept, and
// the disk that is left is opened and looked at.

import (
	"errors"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

// cutEverywhere runs scenario on clones of base with the power cut during each of its
// calls in turn, and calls visit with each disk that may be left.
func cutEverywhere(t *testing.T, base *fakedisk.Disk, scenario func(d *fakedisk.Disk) error,
	visit func(after *fakedisk.Disk, call int, keep string)) {
	t.Helper()
	for call := 1; ; call++ {
		d := base.CrashClone(fakedisk.KeepAll)
		d.SetFault(fakedisk.CutPower(call))
		err := scenario(d)
		if err == nil {
			if call < 3 {
				t.Fatalf("the scenario has only %d calls", call-1)
			}
			return
		}
		if !errors.Is(err, fakedisk.ErrPowerCut) {
			t.Fatalf("call %d: %v", call, err)
		}
		crashes(d, func(after *fakedisk.Disk, keep string) { visit(after, call, keep) })
		if t.Failed() {
			return
		}
	}
}

// TestCrashDuringCreate: before the superblock is written there is no metadata or a torn
// copy 0; from there on there are new and empty ones.
func TestCrashDuringCreate(t *testing.T) {
	scenario := func(d *fakedisk.Disk) error {
		_, err := Create(d, sample(), CreateOptions{})
		return err
	}
	opened := 0
	cutEverywhere(t, newDisk(), scenario, func(after *fakedisk.Disk, call int, keep string) {
		s, levels, err := open(after)
		switch {
		case errors.Is(err, ErrEmpty) || errors.Is(err, ErrDamaged):
			if _, err := Create(after, sample(), CreateOptions{Force: true}); err != nil {
				t.Errorf("call %d %s: create again: %v", call, keep, err)
			}
		case err != nil:
			t.Errorf("call %d %s: %v", call, keep, err)
		case levels != [testPages]uint64{} || !s.Superblock().Clean || s.Superblock().UUID != sample().UUID:
			t.Errorf("call %d %s: opened with %v, %+v", call, keep, levels, s.Superblock())
		default:
			opened++
		}
	})
	if opened == 0 {
		t.Error("no crash left metadata that open")
	}
}

// TestCrashDuringForcedCreate: over older metadata. What opens is either the old clone,
// whole, or the new one, empty; never a mixture.
func TestCrashDuringForcedCreate(t *testing.T) {
	for _, dense := range []bool{false, true} {
		base, s := create(t)
		mustCommit(t, s, 5, 0, 1, 2)
		mustCommit(t, s, 7, 1)
		base.SetDense(dense)
		fresh := sample()
		fresh.UUID[0]++
		scenario := func(d *fakedisk.Disk) error {
			_, err := Create(d, fresh, CreateOptions{Force: true})
			return err
		}
		found := map[byte]int{}
		cutEverywhere(t, base, scenario, func(after *fakedisk.Disk, call int, keep string) {
			if _, _, err := Open(pooled{after}); errors.Is(err, ErrEmpty) || errors.Is(err, ErrDamaged) {
				return // no superblock; where there is one the map must be right as well
			}
			s, levels, err := open(after)
			if err != nil {
				t.Errorf("call %d %s: %v", call, keep, err)
				return
			}
			want := [testPages]uint64{5, 7, 5}
			if s.Superblock().UUID == fresh.UUID {
				want = [testPages]uint64{}
			}
			found[s.Superblock().UUID[0]]++
			if levels != want {
				t.Errorf("call %d %s: clone %v has %v", call, keep, s.Superblock().UUID, levels)
			}
		})
		if len(found) != 2 {
			t.Errorf("crashes left %v", found)
		}
	}
}

// setSession changes the first and a later sector of the superblock, so that part of the
// write is a torn superblock.
func setSession(n uint64) func(*Superblock) error {
	return func(sb *Superblock) error {
		sb.Session, sb.Counters.BytesCopied = n, n
		return nil
	}
}

// TestCrashDuringUpdate: the superblock is the old or the new one, and an Update that
// ended is the new one. Also where one copy was bad before: an update that starts with the
// only good copy would lose both.
func TestCrashDuringUpdate(t *testing.T) {
	for name, bad := range map[string]int{"both copies good": -1, "copy 0 bad": 0, "copy 1 bad": 1} {
		t.Run(name, func(t *testing.T) {
			base, s := create(t)
			mustCommit(t, s, 3, 1)
			if bad >= 0 {
				edit(t, base, copyOffset(bad), flip(100))
			}
			ended := uint64(0)
			scenario := func(d *fakedisk.Disk) error {
				ended = 0
				s, _, err := open(d)
				for i := uint64(1); err == nil && i <= 3; i++ {
					if err = s.Update(setSession(1000 + i)); err == nil {
						ended = i
					}
				}
				return err
			}
			cutEverywhere(t, base, scenario, func(after *fakedisk.Disk, call int, keep string) {
				s, levels, err := open(after)
				if err != nil {
					t.Errorf("call %d %s: %v", call, keep, err)
					return
				}
				session, later := s.Superblock().Session, s.Superblock().Counters.BytesCopied
				if session != later && later != sample().Counters.BytesCopied {
					t.Errorf("call %d %s: a mixture of two updates, %d and %d", call, keep, session, later)
				}
				old := session == sample().Session && ended == 0
				if !old && (session < 1000+ended || session > 1000+ended+1) || levels != [testPages]uint64{0, 3, 0} {
					t.Errorf("call %d %s: session %d, %d updates ended, pages %v", call, keep, session, ended, levels)
				}
			})
		})
	}
}

// TestCrashTwiceDuringUpdate crashes an update, opens, and crashes the next one.
func TestCrashTwiceDuringUpdate(t *testing.T) {
	base, _ := create(t)
	session := func(n uint64) func(d *fakedisk.Disk) error {
		return func(d *fakedisk.Disk) error {
			s, _, err := open(d)
			if err != nil {
				return err
			}
			return s.Update(setSession(n))
		}
	}
	cutEverywhere(t, base, session(1), func(first *fakedisk.Disk, call int, keep string) {
		s, _ := mustOpen(t, first)
		least := s.Superblock().Session
		if call != 2 || keep[len(keep)-4:] != "0000" { // one call, one subset in sixteen: enough
			return
		}
		cutEverywhere(t, first, session(2), func(after *fakedisk.Disk, call2 int, keep2 string) {
			s, _, err := open(after)
			if err != nil || s.Superblock().Session != least && s.Superblock().Session != 2 {
				t.Errorf("call %d %s, then call %d %s: %v", call, keep, call2, keep2, err)
			}
		})
	})
}

// commits is a run of commits of which a crash may leave the last one in any state.
type commits struct {
	ended, tried [testPages]uint64 // per page: level of the last commit that ended, and tried
}

// run commits ever higher levels of changing pages until the power goes.
func (c *commits) run(s *Store, n int) error {
	c.tried = c.ended
	for i := range n {
		level := max(c.ended[0], c.ended[1], c.ended[2]) + 1
		pages := [][]uint64{{0}, {1}, {0, 1}, {2}}[i%4]
		for _, p := range pages {
			c.tried[p] = level
		}
		if err := commit(s, level, pages...); err != nil {
			return err
		}
		c.ended = c.tried
	}
	return nil
}

// check opens what a crash left and compares.
func (c *commits) check(t *testing.T, after *fakedisk.Disk, what ...any) *Store {
	t.Helper()
	s, levels, err := open(after)
	if err != nil {
		t.Errorf("%v: %v", what, err)
		return nil
	}
	for p := range levels {
		if levels[p] != c.ended[p] && levels[p] != c.tried[p] {
			t.Errorf("%v: page %d holds %d, committed %d, being committed %d", what, p, levels[p], c.ended[p], c.tried[p])
		}
	}
	c.ended = levels
	if r, err := Check(pooled{after}); err != nil || len(r.Problems) > 0 && !olderCopyOnly(&r) {
		t.Errorf("%v: after open, check finds %v %v", what, r.Problems, err)
	}
	return s
}

// olderCopyOnly reports whether nothing is wrong but an interrupted superblock update,
// which the next one heals.
func olderCopyOnly(r *CheckReport) bool {
	return len(r.Problems) == 1 && !r.Problems[0].Fatal && r.Problems[0].Offset < mapOffset
}

// TestCrashDuringCommits: no page is ever older than its last commit that ended, and a torn
// slot is gone after the next open. After each crash the next run crashes as well.
func TestCrashDuringCommits(t *testing.T) {
	base, _ := create(t)
	var c commits
	visits := 0
	cutEverywhere(t, base, func(d *fakedisk.Disk) error {
		c = commits{}
		s, _, err := open(d)
		if err != nil {
			return err
		}
		return c.run(s, 6)
	}, func(after *fakedisk.Disk, call int, keep string) {
		c2 := c
		visits++
		s := c2.check(t, after, "call", call, keep)
		if s == nil || visits%97 != 0 {
			return
		}
		again := after.CrashClone(fakedisk.KeepAll)
		again.SetFault(fakedisk.CutPower(1 + visits%13))
		s2, _, err := open(again)
		if err == nil {
			err = c2.run(s2, 6)
		}
		if !errors.Is(err, fakedisk.ErrPowerCut) {
			return // got through
		}
		crashes(again, func(after *fakedisk.Disk, keep2 string) {
			c3 := c2
			c3.check(t, after, "call", call, keep, "then", 1+visits%13, keep2)
		})
	})
	if visits < 1000 {
		t.Errorf("only %d crashes", visits)
	}
}

// TestDaemonDeathDuringCommits: the daemon dies at any call, the disk keeps its cache; the
// next one opens, commits, and then the power goes.
func TestDaemonDeathDuringCommits(t *testing.T) {
	base, _ := create(t)
	for call := 2; call < 14; call++ {
		for call2 := 1; call2 < 10; call2++ {
			d := base.CrashClone(fakedisk.KeepAll)
			d.SetFault(fakedisk.CutPower(call))
			var c commits
			s, _ := mustOpen(t, d)
			if err := c.run(s, 6); !errors.Is(err, fakedisk.ErrPowerCut) {
				t.Fatalf("call %d: %v", call, err)
			}
			d.SetFault(fakedisk.CutPower(call2)) // the power is on again: it was the daemon that died
			s, levels, err := open(d)
			if err == nil {
				c.ended, c.tried = levels, levels
				err = c.run(s, 6)
			}
			if !errors.Is(err, fakedisk.ErrPowerCut) {
				t.Fatalf("call %d, %d: %v", call, call2, err)
			}
			if call2 == 1 {
				continue // the flush of the second open: its reads were never vouched for
			}
			crashes(d, func(after *fakedisk.Disk, keep string) {
				c := c
				c.check(t, after, "call", call, call2, keep)
			})
		}
	}
}

// noFlush is a device whose first flush, the one of Open, is left out.
type noFlush struct {
	*fakedisk.Disk
	flushes int
}

func (n *noFlush) Flush() error {
	if n.flushes++; n.flushes == 1 {
		return nil
	}
	return n.Disk.Flush()
}

// TestSlots10And11: slots 10 and 11 of a page, 11 durable; 12 written over 10, the daemon
// killed before the flush; the next one reads 12 from the cache and writes 13 over 11;
// power loss tears 13. What Open's flush is for; without it 10 is left, which the control
// shows.
func TestSlots10And11(t *testing.T) {
	run := func(open2 func(*fakedisk.Disk) Device) [testPages]uint64 {
		d, s := create(t)
		for seq := uint64(1); seq <= 11; seq++ {
			mustCommit(t, s, seq, 1)
		}
		if err := s.WritePage(1, image(12)); err != nil {
			t.Fatal(err)
		}
		s, levels := mustOpen(t, open2(d)) // the daemon was killed
		if levels[1] != 12 {
			t.Fatalf("the next daemon reads %d", levels[1])
		}
		if err := s.WritePage(1, image(13)); err != nil {
			t.Fatal(err)
		}
		over11 := slotOffset(1, s.next(1))
		after := d.CrashClone(func(u fakedisk.Unflushed) int { // of 13 half is there, of 12 nothing
			if off := u.Sector * fakedisk.SectorBytes; off >= over11 && off < over11+BlockSize/2 {
				return u.Versions
			}
			return 0
		})
		_, levels = mustOpen(t, after)
		return levels
	}
	if got := run(func(d *fakedisk.Disk) Device { return d }); got[1] != 12 {
		t.Errorf("left is %d, expected 12", got[1])
	}
	if got := run(func(d *fakedisk.Disk) Device { return &noFlush{Disk: d} }); got[1] != 10 {
		t.Errorf("control, without the flush: left is %d, expected 10: the case is not what it was", got[1])
	}
}

// TestFailedFlushWritesTheSameSlotAgain: after a failed flush a second one that succeeds
// proves nothing, so the slot that was durable is spared until a written one is.
func TestFailedFlushWritesTheSameSlotAgain(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 1, 1)
	mustCommit(t, s, 2, 1)
	first := s.next(1)
	boom := errors.New("boom")
	d.SetFault(fakedisk.FailCall(2, boom, false)) // 1 the write, 2 the flush
	if err := commit(s, 3, 1); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil || s.CommitSequence() != 2 {
		t.Fatalf("flush of nothing: %v, commit %d", err, s.CommitSequence())
	}
	if s.next(1) != first {
		t.Fatal("the next write goes over the durable slot")
	}
	if err := s.Update(func(sb *Superblock) error { sb.Clean = true; return nil }); !errors.Is(err, ErrUnflushed) {
		t.Fatalf("clean flag with an undecided page: %v", err)
	}
	if err := s.Load(nil); !errors.Is(err, ErrUnflushed) {
		t.Fatalf("load with an undecided page: %v", err)
	}
	mustCommit(t, s, 2, 0) // another page: its flush does not vouch for page 1
	if s.next(1) != first || s.undecided != 1 {
		t.Fatal("another page's flush has decided the page")
	}
	if err := s.WritePage(1, image(3)); err != nil {
		t.Fatal(err)
	}
	crashes(d, func(after *fakedisk.Disk, keep string) {
		if _, levels, err := open(after); err != nil || levels[1] < 2 {
			t.Errorf("%s: %v %v", keep, levels, err)
		}
	})
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean = true })
	expectLevels(t, d.CrashClone(fakedisk.KeepNone), 2, 3, 0)
}

// TestFailedWriteEndsTheCommit: pages of the same commit that were written before count as
// little.
func TestFailedWriteEndsTheCommit(t *testing.T) {
	for _, landed := range []bool{false, true} {
		d, s := create(t)
		mustCommit(t, s, 1, 0, 1)
		boom := errors.New("boom")
		d.SetFault(fakedisk.FailCall(2, boom, landed))
		if err := commit(s, 2, 0, 1); !errors.Is(err, boom) {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil || s.CommitSequence() != 1 || s.undecided != 2 {
			t.Fatalf("after the failure: %v, commit %d, %d undecided", err, s.CommitSequence(), s.undecided)
		}
		mustCommit(t, s, 3, 0, 1)
		mustUpdate(t, s, func(sb *Superblock) { sb.Clean = true })
		expectLevels(t, d, 3, 3, 0)
	}
}

// TestFailedUpdateFlushEndsTheCommit: a failed flush is told once, here to Update. The commit that
// is under way learns of it at its next step: it must not end as if its pages were durable.
func TestFailedUpdateFlushEndsTheCommit(t *testing.T) {
	boom := errors.New("boom")
	for _, more := range []bool{false, true} { // the commit goes on with another page
		d, s := create(t)
		if err := s.WritePage(0, image(1)); err != nil {
			t.Fatal(err)
		}
		d.SetFault(fakedisk.FailCall(2, boom, false))
		if err := s.Update(func(sb *Superblock) error { sb.Session++; return nil }); !errors.Is(err, boom) {
			t.Fatal(err)
		}
		next := s.Flush
		if more {
			next = func() error { return s.WritePage(1, image(1)) }
		}
		if err := next(); !errors.Is(err, boom) || s.CommitSequence() != 0 || s.undecided != 1 {
			t.Fatalf("the commit goes on: %v, commit %d, %d pages undecided", err, s.CommitSequence(), s.undecided)
		}
		if err := s.Flush(); err != nil {
			t.Errorf("flush of nothing, later: %v", err)
		}
		mustCommit(t, s, 2, 0, 1)
		expectLevels(t, d.CrashClone(fakedisk.KeepNone), 2, 2, 0)
	}
}

// TestFailedUpdateBetweenCommits: with no commit under way the error is Update's alone.
func TestFailedUpdateBetweenCommits(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 1, 0)
	boom := errors.New("boom")
	d.SetFault(fakedisk.FailCall(2, boom, false))
	if err := s.Update(func(sb *Superblock) error { sb.Session++; return nil }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	mustCommit(t, s, 2, 0)
	expectLevels(t, d.CrashClone(fakedisk.KeepNone), 2, 0, 0)
}

// TestFailedCleanUpdate: the clean flag may be on disk, so nothing is written until an Update
// has taken it off; otherwise the map sum would be wrong under it.
func TestFailedCleanUpdate(t *testing.T) {
	for n := 1; n <= 4; n++ {
		d, s := create(t)
		mustCommit(t, s, 1, 0)
		before := s.Superblock()
		boom := errors.New("boom")
		d.SetFault(fakedisk.FailCall(n, boom, true))
		if err := s.Update(func(sb *Superblock) error { sb.Clean = true; return nil }); !errors.Is(err, boom) {
			t.Fatal(err)
		}
		if s.Superblock() != before {
			t.Error("a failed update has changed the superblock in memory")
		}
		if err := s.WritePage(0, image(2)); !errors.Is(err, ErrClean) {
			t.Fatalf("write under a clean flag: %v", err)
		}
		mustUpdate(t, s, func(sb *Superblock) { sb.Counters.Starts++ })
		mustCommit(t, s, 2, 0)
		expectLevels(t, d.CrashClone(fakedisk.KeepNone), 2, 0, 0)
	}
}

// TestEveryFailedCallIsReported: no error of the device is swallowed, at any call of a run.
func TestEveryFailedCallIsReported(t *testing.T) {
	run := func(d *fakedisk.Disk) error {
		s, err := Create(d, sample(), CreateOptions{Force: true})
		if err != nil {
			return err
		}
		if err := s.Update(func(sb *Superblock) error { sb.Clean = false; return nil }); err != nil {
			return err
		}
		if err := commit(s, 1, 0, 1); err != nil {
			return err
		}
		_, _, err = open(d)
		return err
	}
	boom := errors.New("boom")
	for n := 1; ; n++ {
		d, _ := create(t)
		d.SetFault(fakedisk.FailCall(n, boom, false))
		if err := run(d); err == nil {
			if d.Calls() != n-1 || n < 10 {
				t.Errorf("call %d of %d failed and nobody said so", n, d.Calls())
			}
			return
		} else if !errors.Is(err, boom) {
			t.Fatalf("call %d: %v", n, err)
		}
	}
}
