package metadata

import (
	"errors"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

// TestEveryByteOfASuperblock flips each byte of one copy, then of both.
func TestEveryByteOfASuperblock(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 3, 1)
	for i := range BlockSize {
		for bad := range 2 {
			edit(t, d, copyOffset(bad), flip(i))
			s, levels, err := open(d)
			if err != nil || levels[1] != 3 || len(s.Report().Warnings) != 1 ||
				!strings.Contains(s.Report().Warnings[0], "copy "+string(rune('0'+bad))) {
				t.Fatalf("copy %d byte %d: %v", bad, i, err)
			}
			edit(t, d, copyOffset(bad), flip(i))
		}
		edit(t, d, copyOffset(0), flip(i))
		edit(t, d, copyOffset(1), flip(i))
		calls := d.Calls()
		_, _, err := Open(d)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "copy 0 at byte 0") ||
			!strings.Contains(err.Error(), "copy 1 at byte 65536") || d.Calls() != calls {
			t.Fatalf("both copies, byte %d: %v, %d calls", i, err, d.Calls()-calls)
		}
		edit(t, d, copyOffset(0), flip(i))
		edit(t, d, copyOffset(1), flip(i))
	}
}

// TestSuperblockCases: pairs of copies, by what is done to each, and what Open says.
func TestSuperblockCases(t *testing.T) {
	newer := func(change func(b []byte)) func([]byte) {
		return reseal(func(b []byte) { le.PutUint64(b[offSequence:], 99); change(b) })
	}
	nothing := func([]byte) {}
	for _, c := range []struct {
		name    string
		copies  [2]func([]byte)
		want    error
		warning string
	}{
		{"both good", [2]func([]byte){nothing, nothing}, nil, ""},
		{"copy 0 newer", [2]func([]byte){newer(nothing), nothing}, nil, "copy 1 at byte 65536 is older"},
		{"copy 1 newer", [2]func([]byte){nothing, newer(nothing)}, nil, "copy 0 at byte 0 is older"},
		{"copy 0 zero", [2]func([]byte){zero, nothing}, nil, "copy 0 at byte 0 is bad"},
		{"copy 1 zero", [2]func([]byte){nothing, zero}, nil, "copy 1 at byte 65536 is bad"},
		{"both zero", [2]func([]byte){zero, zero}, ErrEmpty, ""},
		{"zero and bad", [2]func([]byte){zero, flip(0)}, ErrDamaged, ""},
		{"same sequence, not the same", [2]func([]byte){nothing, reseal(flip(offSession))}, ErrDamaged, ""},
		{"two clones", [2]func([]byte){newer(flip(offUUID)), nothing}, ErrDamaged, ""},
		{"swapped", [2]func([]byte){reseal(func(b []byte) { le.PutUint64(b[offOwn:], copyOffset1) }), nothing}, nil, "own offset"},
		{"newer version in one", [2]func([]byte){newer(func(b []byte) { le.PutUint32(b[offVersion:], 2) }), nothing}, ErrVersion, ""},
		{"newer version, other bad", [2]func([]byte){reseal(func(b []byte) { le.PutUint32(b[offVersion:], 2) }), flip(1)}, ErrVersion, ""},
		{"incompatible feature", [2]func([]byte){nothing, newer(func(b []byte) { b[offIncompat] = 1 })}, ErrVersion, ""},
	} {
		d, _ := create(t)
		for i, change := range c.copies {
			edit(t, d, copyOffset(i), change)
		}
		calls := d.Calls()
		s, _, err := open(d)
		if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
			t.Errorf("%s: %v, expected %v", c.name, err, c.want)
			continue
		}
		agree(t, d, c.name, err)
		if err != nil {
			if d.Calls() != calls {
				t.Errorf("%s: refused, and the device was written or flushed", c.name)
			}
			continue
		}
		w := s.Report().Warnings
		if c.warning == "" && len(w) > 0 || c.warning != "" && (len(w) != 1 || !strings.Contains(w[0], c.warning)) {
			t.Errorf("%s: warnings %v, expected %q", c.name, w, c.warning)
		}
		mustUpdate(t, s, func(sb *Superblock) { sb.Session = 4711 })
		if r, err := Check(d); err != nil || len(r.Problems) > 0 || r.Superblock.Session != 4711 {
			t.Errorf("%s: after an update: %v %v", c.name, r.Problems, err)
		}
	}
}

// agree checks that Check comes to the same verdict as Open and Load did.
func agree(t *testing.T, d *fakedisk.Disk, name string, opened error) {
	t.Helper()
	r, err := Check(d)
	if errors.Is(opened, ErrEmpty) != errors.Is(err, ErrEmpty) || err == nil && r.OK() != (opened == nil) {
		t.Errorf("%s: open says %v, check %v %+v", name, opened, err, r.Problems)
	}
	for _, p := range r.Problems {
		if p.What == "" || p.Offset < 0 || p.Offset >= d.Size() {
			t.Errorf("%s: problem %+v", name, p)
		}
	}
}

// TestReadOnlyFeature: metadata with a feature that permits reading only.
func TestReadOnlyFeature(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 3, 1)
	mustCommit(t, s, 4, 1)
	for i := range 2 {
		edit(t, d, copyOffset(i), reseal(func(b []byte) { b[offROCompat] = 2 }))
	}
	edit(t, d, slotOffset(1, 0), flip(70)) // torn: not rewritten
	before := d.Stats().Writes
	s = expectLevels(t, d, 0, 4, 0)
	if !s.Report().ReadOnly || len(s.Report().Warnings) != 1 {
		t.Errorf("report %+v", s.Report())
	}
	if err := s.WritePage(0, image(1)); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	if err := s.Update(func(*Superblock) error { return nil }); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	if d.Stats().Writes != before {
		t.Error("the device was written")
	}
}

// slotCase is a page with slots of commits 1 (level 3, slot 0) and 2 (level 4, slot 1).
type slotCase struct {
	name  string
	clean bool
	slot  int
	do    func([]byte)
	want  uint64 // level, if it opens
	fails bool   // with ErrDamaged
	warns bool
}

// TestSlotCases: a bad or missing slot with and without the clean flag.
func TestSlotCases(t *testing.T) {
	foreign := reseal(flip(slotUUID))
	for _, c := range []slotCase{
		{name: "unclean, newer torn", slot: 1, do: flip(500), want: 3, warns: true},
		{name: "unclean, older torn", slot: 0, do: flip(500), want: 4, warns: true},
		{name: "unclean, newer of another clone", slot: 1, do: foreign, want: 3, warns: true},
		{name: "unclean, newer of another page", slot: 1, do: reseal(flip(slotPage)), want: 3, warns: true},
		{name: "unclean, newer without magic", slot: 1, do: reseal(flip(0)), want: 3, warns: true},
		{name: "unclean, newer with reserved bytes", slot: 1, do: reseal(flip(slotReserved + 3)), want: 3, warns: true},
		{name: "unclean, newer with sequence 0", slot: 1, do: reseal(func(b []byte) { clear(b[slotSequence:slotPage]) }), want: 3, warns: true},
		{name: "unclean, same sequence", slot: 1, do: reseal(func(b []byte) { b[slotSequence] = 1 }), fails: true},
		{name: "clean, newer bad", clean: true, slot: 1, do: flip(500), fails: true},
		{name: "clean, newer lost", clean: true, slot: 1, do: zero, fails: true},
		{name: "clean, older bad", clean: true, slot: 0, do: flip(500), want: 4, warns: true},
		{name: "clean, older lost", clean: true, slot: 0, do: zero, want: 4},
		{name: "clean, older newer than it was", clean: true, slot: 0, do: reseal(func(b []byte) { b[slotSequence] = 77 }), fails: true},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func (c *slotCase) run(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 3, 1)
	mustCommit(t, s, 4, 1)
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean = c.clean })
	edit(t, d, slotOffset(1, c.slot), c.do)
	agreeBefore, _ := Check(d)
	calls := d.Stats().Writes
	s, levels, err := open(d)
	if c.fails {
		if !errors.Is(err, ErrDamaged) || agreeBefore.OK() || d.Stats().Writes != calls {
			t.Fatalf("%v, check %v, %d writes", err, agreeBefore.Problems, d.Stats().Writes-calls)
		}
		return
	}
	if err != nil || levels[1] != c.want || !agreeBefore.OK() {
		t.Fatalf("%v, pages %v, expected %d, check %v", err, levels, c.want, agreeBefore.Problems)
	}
	if (len(s.Report().Warnings) == 1) != c.warns || (len(agreeBefore.Problems) == 1) != c.warns {
		t.Errorf("warnings %v, check %v", s.Report().Warnings, agreeBefore.Problems)
	}
	if r, err := Check(d.CrashClone(fakedisk.KeepNone)); err != nil || len(r.Problems) > 0 {
		t.Errorf("the bad slot was not rewritten: %v %v", r.Problems, err)
	}
	if s.next(1) != c.slot && c.warns {
		t.Error("the next write goes over the good slot")
	}
}

// TestBothSlotsBad names both.
func TestBothSlotsBad(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 3, 1)
	mustCommit(t, s, 4, 1)
	edit(t, d, slotOffset(1, 0), flip(500))
	edit(t, d, slotOffset(1, 1), flip(500))
	_, _, err := open(d)
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "page 1: slot 0 at byte 139264") ||
		!strings.Contains(err.Error(), "slot 1 at byte 143360") {
		t.Error(err)
	}
	agree(t, d, "both slots bad", err)
}

// TestFirstWriteTorn: a page whose first slot ever was torn is empty again.
func TestFirstWriteTorn(t *testing.T) {
	d, s := create(t)
	if err := s.WritePage(2, image(9)); err != nil {
		t.Fatal(err)
	}
	edit(t, d, slotOffset(2, 0), func(b []byte) { clear(b[1024:]); b[1024] = 1 })
	s = expectLevels(t, d, 0, 0, 0)
	mustCommit(t, s, 9, 2)
	expectLevels(t, d, 0, 0, 9)
}

// TestManyBadSlots are not all named.
func TestManyBadSlots(t *testing.T) {
	sb := sample()
	sb.DeviceSize = 100 * bitmap.RegionsPerPage * 4096
	d := fakedisk.New(Size(100*bitmap.RegionsPerPage), 1)
	s, err := Create(d, sb, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean, sb.Complete = false, false })
	for p := range uint64(50) {
		edit(t, d, slotOffset(p, 0), flip(77))
	}
	s, _, err = Open(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Load(func(uint64, *bitmap.Page) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Report().Warnings); n != maxSlotWarnings+1 {
		t.Errorf("%d warnings", n)
	}
	if r, err := Check(d); err != nil || len(r.Problems) > 0 {
		t.Errorf("%v %v", r.Problems, err)
	}
}

// TestCompleteButNotFull is a warning of Check: the core trusts the map and not the flag.
func TestCompleteButNotFull(t *testing.T) {
	d, s := create(t)
	mustUpdate(t, s, func(sb *Superblock) { sb.Complete = true })
	r, err := Check(d)
	if err != nil || !r.OK() || len(r.Problems) != 1 || !strings.Contains(r.Problems[0].What, "0 of 48284 regions") {
		t.Errorf("%v %v", r.Problems, err)
	}
}
