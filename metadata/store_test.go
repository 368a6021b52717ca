package metadata

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/ublk-clone/ublk-clone/bitmap"
	"github.com/ublk-clone/ublk-clone/internal/fakedisk"
)

func TestCreateOpenCommitReopen(t *testing.T) {
	d := newDisk()
	s, err := Create(d, sample(), CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sb := s.Superblock()
	want := *sample()
	want.Version, want.Sequence, want.Clean, want.NrRegions, want.MapOffset = 1, 1, true, NrRegions(want.DeviceSize, 4096), mapOffset
	if sb != want {
		t.Errorf("created\n%+v\nexpected\n%+v", sb, want)
	}
	s = expectLevels(t, d, 0, 0, 0)
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean, sb.Session = false, 9 })
	mustCommit(t, s, 5, 0, 2)
	mustCommit(t, s, 6, 2)
	if s.CommitSequence() != 2 {
		t.Errorf("commit sequence %d", s.CommitSequence())
	}
	s = expectLevels(t, d, 5, 0, 6) // not clean
	if r := s.Report(); r.Clean || len(r.Warnings) > 0 || s.CommitSequence() != 2 || s.Superblock().CommitSequence != 0 {
		t.Errorf("report %+v, commit %d", r, s.CommitSequence())
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean = true })
	s = expectLevels(t, d, 5, 0, 6)
	sb = s.Superblock()
	if !s.Report().Clean || sb.Session != 9 || sb.CommitSequence != 2 || sb.MapSum != mix(0, 1)+mix(2, 2) {
		t.Errorf("after a clean stop: %+v", sb)
	}
}

// TestNothingMarkedNothingWritten: a commit without pages does not touch the device.
func TestNothingMarkedNothingWritten(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 1, 0)
	before := d.Calls()
	if err := s.Flush(); err != nil || d.Calls() != before || s.CommitSequence() != 1 {
		t.Errorf("%v, %d calls, commit %d", err, d.Calls()-before, s.CommitSequence())
	}
}

// TestPageTwiceInACommit goes to the same slot and counts once.
func TestPageTwiceInACommit(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 1, 1)
	mustCommit(t, s, 2, 1, 1)
	if s.sum != mix(1, 2) || s.undecided != 0 {
		t.Errorf("sum %x, %d undecided", s.sum, s.undecided)
	}
	expectLevels(t, d, 0, 2, 0)
}

func TestCreateRefusesContent(t *testing.T) {
	for _, off := range []int64{0, 4095, copyOffset1, copyOffset1 + 4095, mapOffset, mapOffset + 8191} {
		d := newDisk()
		edit(t, d, off/BlockSize*BlockSize, flip(int(off%BlockSize)))
		calls := d.Calls()
		if _, err := Create(d, sample(), CreateOptions{}); !errors.Is(err, ErrNotEmpty) || d.Calls() != calls {
			t.Errorf("data at byte %d: %v, %d calls", off, err, d.Calls()-calls)
		}
		if _, err := Create(d, sample(), CreateOptions{Force: true}); err != nil {
			t.Errorf("data at byte %d, forced: %v", off, err)
		}
		expectLevels(t, d, 0, 0, 0)
	}
}

// TestCreateErasesTheMap: junk deep in the map of a block device is gone, by ZeroRange
// where the device has it and by writing where it has not.
func TestCreateErasesTheMap(t *testing.T) {
	for name, wrap := range map[string]func(*fakedisk.Disk) Device{
		"ZeroRange": func(d *fakedisk.Disk) Device { return d },
		"written":   func(d *fakedisk.Disk) Device { return struct{ Device }{d} },
	} {
		d := newDisk()
		d.SetDense(true)
		edit(t, d, slotOffset(2, 1), flip(9))
		edit(t, d, 32<<10, flip(9))
		if _, err := Create(wrap(d), sample(), CreateOptions{}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		expectLevels(t, d.CrashClone(fakedisk.KeepNone), 0, 0, 0)
		edit(t, d, 32<<10, func(b []byte) {
			if !isZero(b) {
				t.Errorf("%s: the space between the copies is not zero", name)
			}
		})
	}
}

func TestCreateRefusesWhatCouldNotBeOpened(t *testing.T) {
	sb := sample()
	sb.RegionSize = 5000
	if _, err := Create(newDisk(), sb, CreateOptions{}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	small := fakedisk.New(Size(testPages*bitmap.RegionsPerPage)-BlockSize, 1)
	if _, err := Create(small, sample(), CreateOptions{}); !errors.Is(err, ErrTooSmall) {
		t.Error(err)
	}
	if s := small.Stats(); s.Writes+s.Zeroes != 0 {
		t.Error("a device that is too small was written")
	}
}

func TestOpenEmpty(t *testing.T) {
	d := newDisk()
	if _, _, err := Open(d); !errors.Is(err, ErrEmpty) {
		t.Error(err)
	}
	if _, err := Check(d); !errors.Is(err, ErrEmpty) {
		t.Error(err)
	}
	if err := Dump(d, new(bytes.Buffer)); !errors.Is(err, ErrEmpty) {
		t.Error(err)
	}
}

func TestOpenTooSmall(t *testing.T) {
	d, _ := create(t)
	small := fakedisk.New(d.Size()-slotPairBytes, 1)
	for i := range 2 {
		b := make([]byte, BlockSize)
		if err := errors.Join(d.ReadAt(b, copyOffset(i)), small.WriteAt(b, copyOffset(i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Open(small); !errors.Is(err, ErrTooSmall) {
		t.Error(err)
	}
	if r, err := Check(small); err != nil || r.OK() {
		t.Errorf("check: %v %v", r.Problems, err)
	}
}

// TestUpdateRefuses what is fixed, what is impossible, and what change itself refuses;
// nothing is written then.
func TestUpdateRefuses(t *testing.T) {
	d, s := create(t)
	calls := d.Calls()
	for name, change := range map[string]func(*Superblock){
		"uuid":          func(sb *Superblock) { sb.UUID[3]++ },
		"created":       func(sb *Superblock) { sb.CreatedNs++ },
		"region size":   func(sb *Superblock) { sb.RegionSize *= 2 },
		"device size":   func(sb *Superblock) { sb.DeviceSize += 512 },
		"logical block": func(sb *Superblock) { sb.LogicalBlockSize = 4096 },
		"path":          func(sb *Superblock) { sb.Source.Path = strings.Repeat("x", 512) },
	} {
		if err := s.Update(func(sb *Superblock) error { change(sb); return nil }); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	own := errors.New("own")
	if err := s.Update(func(*Superblock) error { return own }); !errors.Is(err, own) {
		t.Error(err)
	}
	if d.Calls() != calls {
		t.Error("the device was written")
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Sequence, sb.NrRegions, sb.MapSum, sb.Version = 0, 0, 7, 9 })
	if sb := s.Superblock(); sb.NrRegions == 0 || sb.MapSum != 0 || sb.Version != 1 {
		t.Errorf("fields of the store were taken from the caller: %+v", sb)
	}
}

func TestWritePageRefuses(t *testing.T) {
	d, _ := create(t)
	s, _, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WritePage(0, image(1)); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("before load: %v", err)
	}
	if err := s.Update(func(sb *Superblock) error { sb.Clean = true; return nil }); !errors.Is(err, ErrNotLoaded) {
		t.Errorf("clean before load: %v", err)
	}
	if err := s.Load(func(uint64, *bitmap.Page) error { return nil }); err != nil {
		t.Fatal(err)
	}
	img := new(bitmap.Page)
	img[bitmap.PlaneWords-1] = 1 << 63
	if err := s.WritePage(testPages-1, img); err == nil {
		t.Error("bits beyond the last region were written")
	}
	if err := s.WritePage(testPages, image(1)); err == nil {
		t.Error("a page beyond the map was written")
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean = true })
	if err := s.WritePage(0, image(1)); !errors.Is(err, ErrClean) {
		t.Errorf("clean: %v", err)
	}
}

// TestCleanStaysWithoutLoad: settings may be changed in metadata that was opened for that
// only; clean flag and map sum stay.
func TestCleanStaysWithoutLoad(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 4, 1)
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean = true })
	s, _, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Settings.Rate = 1 })
	expectLevels(t, d, 0, 4, 0)
}

func TestMatch(t *testing.T) {
	if err := sample().Match(sample()); err != nil {
		t.Error(err)
	}
	other := sample()
	other.Source.Path, other.Settings.Rate, other.UUID = "", 0, UUID{1}
	if err := sample().Match(other); err != nil {
		t.Errorf("a path, a setting: %v", err)
	}
	for name, change := range map[string]func(*Superblock){
		"region size":              func(sb *Superblock) { sb.RegionSize *= 2 },
		"device size":              func(sb *Superblock) { sb.DeviceSize -= 512 },
		"logical block size":       func(sb *Superblock) { sb.LogicalBlockSize = 1024 },
		"source kind":              func(sb *Superblock) { sb.Source.Kind = KindNone },
		"source size":              func(sb *Superblock) { sb.Source.Size++ },
		"source id":                func(sb *Superblock) { sb.Source.ID += "x" },
		"source modification time": func(sb *Superblock) { sb.Source.ModTimeNs++ },
		"source sample":            func(sb *Superblock) { sb.Source.Sample[9]++ },
		"destination kind":         func(sb *Superblock) { sb.Dest.Kind = KindBlock },
		"destination size":         func(sb *Superblock) { sb.Dest.Size, sb.Dest.ID, sb.BootID[0] = sb.Dest.Size+1, "", sb.BootID[0]+1 },
		"destination id":           func(sb *Superblock) { sb.Dest.ID = "" },
	} {
		sb := sample()
		change(sb)
		if err := sb.Match(sample()); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), name+":") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMatchResizedDestination: a destination that was made larger or smaller is the same where
// something else says so and the clone fits.
func TestMatchResizedDestination(t *testing.T) {
	for _, c := range []struct {
		name          string
		id            string
		sameBoot, fit bool
		same          bool
	}{
		{"with an identity", "serial", false, true, true},
		{"in the same boot", "", true, true, true},
		{"nothing tells", "", false, true, false},
		{"too small", "serial", true, false, false},
	} {
		sb, want := sample(), sample()
		sb.Dest.ID, want.Dest.ID = c.id, c.id
		if !c.sameBoot {
			want.BootID[0]++
		}
		want.Dest.Size = sb.DeviceSize
		if !c.fit {
			want.Dest.Size -= 512
		}
		sb.Dest.Size = sb.DeviceSize + 4096
		if err := sb.Match(want); (err == nil) != c.same {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestAbove2To32Regions commits the last page of a 16 TiB device and finds it again without
// reading the hole before it.
func TestAbove2To32Regions(t *testing.T) {
	sb := sample()
	sb.DeviceSize = (1<<32 + 100) * 4096
	d := fakedisk.New(Size(1<<32+100), 1)
	s, err := Create(d, sb, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean = false })
	last := bitmap.PageOf(1<<32 + 99)
	mustCommit(t, s, 50, last)
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean = true })
	read := d.Stats().BytesRead
	s, _, err = Open(d)
	if err != nil {
		t.Fatal(err)
	}
	var pages []uint64
	err = s.Load(func(page uint64, img *bitmap.Page) error {
		if *img != *image(50) {
			t.Error("another image")
		}
		pages = append(pages, page)
		return nil
	})
	if err != nil || len(pages) != 1 || pages[0] != last {
		t.Errorf("pages %v, %v", pages, err)
	}
	if read = d.Stats().BytesRead - read; read > 1<<20 {
		t.Errorf("%d bytes read for one page", read)
	}
}

// TestLoadPassesOnItsCallersError and reads nothing further.
func TestLoadPassesOnItsCallersError(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 1, 0, 1)
	own, calls := errors.New("own"), 0
	s, _, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Load(func(uint64, *bitmap.Page) error { calls++; return own }); !errors.Is(err, own) || calls != 1 {
		t.Errorf("%v, %d calls", err, calls)
	}
	if err := s.WritePage(0, image(1)); !errors.Is(err, ErrNotLoaded) {
		t.Error(err)
	}
}

// TestReadErrors: a slot that cannot be read is no torn slot: it may be the current one,
// readable again tomorrow.
func TestReadErrors(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 1, 0, 1)
	medium := errors.New("medium error")
	d.SetFault(fakedisk.BadRange(fakedisk.OpRead, slotOffset(1, 0), 512, medium))
	if _, _, err := open(d); !errors.Is(err, medium) || errors.Is(err, ErrDamaged) {
		t.Errorf("open: %v", err)
	}
	if _, err := Check(d); !errors.Is(err, medium) {
		t.Errorf("check: %v", err)
	}
	d.SetFault(fakedisk.BadRange(fakedisk.OpRead, copyOffset1, 512, medium))
	s, _ = mustOpen(t, d)
	if w := s.Report().Warnings; len(w) != 1 || !strings.Contains(w[0], "copy 1") {
		t.Errorf("warnings %v", w)
	}
	d.SetFault(fakedisk.BadRange(fakedisk.OpNextData, 0, d.Size(), medium))
	if _, _, err := open(d); !errors.Is(err, medium) {
		t.Errorf("find data: %v", err)
	}
}

// null is a device that takes every write and allocates nothing.
type null struct{ size int64 }

func (null) ReadAt(b []byte, _ int64) error      { clear(b); return nil }
func (null) WriteAt([]byte, int64) error         { return nil }
func (null) Flush() error                        { return nil }
func (n null) Size() int64                       { return n.size }
func (n null) NextData(off int64) (int64, error) { return n.size, nil }
func (n null) ZeroRange(off, length int64) error { return nil }
func (n null) AllocBuffer(size int) (b []byte)   { return make([]byte, size) }

func TestNoAllocation(t *testing.T) {
	s, err := Create(null{newDisk().Size()}, sample(), CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Clean = false })
	img := image(100)
	n := testing.AllocsPerRun(100, func() {
		for p := range uint64(testPages) {
			if s.WritePage(p, img) != nil {
				t.Error("write failed")
			}
		}
		if s.Flush() != nil {
			t.Error("flush failed")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestTwoGoroutines has a committer and somebody who changes settings, for the race
// detector.
func TestTwoGoroutines(t *testing.T) {
	d, s := create(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range uint64(50) {
			if err := commit(s, i+1, i%testPages); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for range 50 {
			if err := s.Update(func(sb *Superblock) error { sb.Counters.Starts++; return nil }); err != nil {
				t.Error(err)
			}
			s.Superblock()
			s.Report()
		}
	})
	wg.Wait()
	expectLevels(t, d, 49, 50, 48)
	if s.Superblock().Counters.Starts != sample().Counters.Starts+50 {
		t.Error("an update is lost")
	}
}

func TestDump(t *testing.T) {
	d, s := create(t)
	mustCommit(t, s, 70, 1)
	edit(t, d, copyOffset1, flip(50))
	var text, object bytes.Buffer
	if err := errors.Join(Dump(d, &text), DumpJSON(d, &object)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"uuid             3f1c9a01-0203-0405-0607-08090a0b0c0d\n",
		"destination      file of 1099511628288 bytes, id \"8f0c5d:1234\"",
		"map              1 of 3 pages used, 70 regions hydrated, 70 zero\n",
		"page             1 slot 0 sequence 1 hydrated 70 zero 70\n",
		"warning          byte 65536: superblock copy 1: checksum: found",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("not in the dump: %q\n%s", want, text.String())
		}
	}
	var got struct {
		Superblock struct {
			UUID string `json:"uuid"`
			Mode string `json:"mode"`
			Dest struct {
				Kind string `json:"kind"`
			} `json:"dest"`
		} `json:"superblock"`
		Hydrated uint64     `json:"hydrated"`
		Problems []Problem  `json:"problems"`
		PageList []dumpPage `json:"page_list"`
	}
	if err := json.Unmarshal(object.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Superblock.UUID != sample().UUID.String() || got.Superblock.Mode != "ro" || got.Superblock.Dest.Kind != "file" ||
		got.Hydrated != 70 || len(got.Problems) != 1 || len(got.PageList) != 1 || got.PageList[0].Sequence != 1 {
		t.Errorf("JSON: %+v\n%s", got, object.String())
	}
	broken := errors.New("pipe")
	if err := Dump(d, failingWriter{broken}); !errors.Is(err, broken) {
		t.Error(err)
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }
