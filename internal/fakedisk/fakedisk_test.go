package fakedisk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func mustWrite(t *testing.T, d *Disk, b byte, off int64, n int) {
	t.Helper()
	if err := d.WriteAt(fill(b, n), off); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, d *Disk, b byte, off int64, n int) {
	t.Helper()
	got := make([]byte, n)
	if err := d.ReadAt(got, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, fill(b, n)) {
		t.Fatalf("byte %d: found %d..., expected %d", off, got[0], b)
	}
}

func TestCrashKeepsAnyVersionOfEachSector(t *testing.T) {
	d := New(1<<20, 1)
	mustWrite(t, d, 1, 4096, 1024)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, d, 2, 4096, 1024)
	mustWrite(t, d, 3, 4608, 512)
	if u := d.Unflushed(); len(u) != 2 || u[0] != (Unflushed{8, 1}) || u[1] != (Unflushed{9, 2}) {
		t.Fatalf("unflushed: %v", u)
	}
	expect(t, d, 2, 4096, 512)
	expect(t, d, 3, 4608, 512)

	got := make([]byte, SectorBytes)
	for i, want := range []byte{1, 2, 3} {
		d.Version(9, i, got)
		if d.Versions(9) != 3 || !bytes.Equal(got, fill(want, SectorBytes)) {
			t.Errorf("version %d of %d of sector 9 holds %d..., expected %d", i, d.Versions(9), got[0], want)
		}
	}
	none := d.CrashClone(KeepNone)
	expect(t, none, 1, 4096, 1024)
	all := d.CrashClone(KeepAll)
	expect(t, all, 2, 4096, 512)
	expect(t, all, 3, 4608, 512)
	torn := d.CrashClone(func(u Unflushed) int { return int(u.Sector - 8) })
	expect(t, torn, 1, 4096, 512)
	expect(t, torn, 2, 4608, 512)
	if len(torn.Unflushed()) != 0 {
		t.Fatal("a crashed disk has a cache")
	}
}

func TestFlushCoversWhatWasWrittenWhenItWasIssued(t *testing.T) {
	d := New(1<<20, 1)
	mustWrite(t, d, 1, 0, 512)
	position := d.Position()
	mustWrite(t, d, 2, 0, 512)
	if err := d.FlushTo(position); err != nil {
		t.Fatal(err)
	}
	expect(t, d, 2, 0, 512)
	expect(t, d.CrashClone(KeepNone), 1, 0, 512)
	d.Persist(0, 512)
	expect(t, d.CrashClone(KeepNone), 2, 0, 512)
}

func TestFailedFlushLosesUntilWrittenAgain(t *testing.T) {
	d := New(1<<20, 1)
	mustWrite(t, d, 1, 0, 512)
	boom := errors.New("boom")
	d.SetFault(FailCall(1, boom, false))
	if err := d.Flush(); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	expect(t, d, 1, 0, 512)
	expect(t, d.CrashClone(KeepNone), 0, 0, 512)
	mustWrite(t, d, 1, 0, 512)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	expect(t, d.CrashClone(KeepNone), 1, 0, 512)
}

func TestPowerCut(t *testing.T) {
	d := New(1<<20, 1)
	d.SetFault(CutPower(2))
	mustWrite(t, d, 1, 0, 512)
	if err := d.WriteAt(fill(2, 512), 512); !errors.Is(err, ErrPowerCut) {
		t.Fatal(err)
	}
	if err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrPowerCut) {
		t.Fatal(err)
	}
	after := d.CrashClone(KeepAll)
	expect(t, after, 1, 0, 512)
	expect(t, after, 2, 512, 512)
	expect(t, d.CrashClone(KeepNone), 0, 0, 1024)
}

func TestNextData(t *testing.T) {
	d := New(1<<30, 1)
	mustWrite(t, d, 1, 1<<20, 4096)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, d, 1, 1<<21+512, 512)
	for _, c := range []struct{ off, want int64 }{
		{0, 1 << 20}, {1<<20 + 512, 1<<20 + 512}, {1<<20 + 4096, 1<<21 + 512}, {1<<21 + 1024, 1 << 30},
	} {
		if got, err := d.NextData(c.off); got != c.want || err != nil {
			t.Errorf("next data from %d: %d, %v, expected %d", c.off, got, err, c.want)
		}
	}
	d.SetDense(true)
	if got, err := d.NextData(512); got != 512 || err != nil {
		t.Errorf("dense: %d, %v", got, err)
	}
}

func TestZeroAndDiscard(t *testing.T) {
	d := New(1<<20, 7)
	mustWrite(t, d, 9, 0, 64*512)
	if err := d.Discard(0, 64*512); err != nil {
		t.Fatal(err)
	}
	var old, zero, noise int
	b := make([]byte, 512)
	for off := int64(0); off < 64*512; off += 512 {
		if err := d.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		switch {
		case bytes.Equal(b, fill(9, 512)):
			old++
		case bytes.Equal(b, fill(0, 512)):
			zero++
		default:
			noise++
		}
	}
	if old == 0 || zero == 0 || noise == 0 {
		t.Errorf("discarded: %d old, %d zero, %d noise", old, zero, noise)
	}
	if err := d.ZeroRange(0, 64*512); err != nil {
		t.Fatal(err)
	}
	expect(t, d, 0, 0, 64*512)
}

func TestFaultsAndBounds(t *testing.T) {
	d := New(1<<20, 1)
	bad := errors.New("medium")
	d.SetFault(BadRange(OpRead, 4096, 512, bad))
	if err := d.ReadAt(make([]byte, 8192), 0); !errors.Is(err, bad) {
		t.Error(err)
	}
	if err := d.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	d.SetFault(FailCall(1, bad, true))
	if err := d.WriteAt(fill(5, 512), 0); !errors.Is(err, bad) {
		t.Error(err)
	}
	expect(t, d, 5, 0, 512)
	for _, c := range []struct {
		off int64
		n   int
	}{{-512, 512}, {1 << 20, 512}, {100, 512}, {0, 100}} {
		if err := d.WriteAt(make([]byte, c.n), c.off); err == nil {
			t.Errorf("write of %d bytes at %d passed", c.n, c.off)
		}
	}
	if s := d.Stats(); s.Reads != 2 || s.Writes != 1 || s.BytesRead != 4608 {
		t.Errorf("stats: %+v", s)
	}
}

func TestRandomCrashIsReplayable(t *testing.T) {
	images := [2][]byte{}
	for i := range images {
		d := New(1<<16, 3)
		rng := rand.New(rand.NewPCG(3, 3))
		for range 100 {
			mustWrite(t, d, byte(rng.Uint32()), rng.Int64N(128)*512, 512)
		}
		c := d.CrashClone(KeepRandom(rng))
		images[i] = make([]byte, 1<<16)
		if err := c.ReadAt(images[i], 0); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("the same seed gave two disks")
	}
}
