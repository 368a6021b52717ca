package harness

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Users of a mounted file system who know what they were told is written.

// Users are what uses a clone in the background, until they are stopped. An error of theirs is the
// test's.
type Users struct {
	m     *Machine
	Quit  chan struct{}
	group sync.WaitGroup
	Waits []func()
	Steps atomic.Int64
	rest  time.Duration // of each after a step
}

// NewUsers are no users yet; KeepOn adds one.
func (m *Machine) NewUsers() *Users { return &Users{m: m, Quit: make(chan struct{})} }

// KeepOn does a step again and again until stop.
func (u *Users) KeepOn(who string, step func() error) {
	u.group.Go(func() {
		for {
			select {
			case <-u.Quit:
				return
			default:
			}
			if err := step(); err != nil {
				u.m.Errorf("%s: %v", who, err)
				return
			}
			u.Steps.Add(1)
			time.Sleep(u.rest)
		}
	})
}

// Stop ends them.
func (u *Users) Stop() {
	u.m.Helper()
	close(u.Quit)
	u.group.Wait()
	for _, wait := range u.Waits {
		wait()
	}
}

// Files are the files of all kinds of users on one file system, in OthersDir.
type Files struct {
	m              *Machine
	root           string
	Direct, Cached *Model // of two files, past the page cache and through it
	Diary          *Diary
	rng            *rand.Rand
	Rest           time.Duration // of each user after what he has done
}

const modelled = 4 * MiB // the size of each of the two files

// NewOthers makes them on a mounted file system.
func (t *FileTree) NewOthers(rng *rand.Rand) *Files {
	t.M.Helper()
	f := &Files{m: t.M, root: filepath.Join(t.Root, OthersDir), Direct: NewModel(modelled, Sector), Cached: NewModel(modelled, Sector), rng: rng}
	if err := os.MkdirAll(filepath.Join(f.root, "diary"), 0o755); err != nil {
		t.M.Fatal(err)
	}
	for _, w := range []struct {
		name string
		*Model
	}{{"direct", f.Direct}, {"cached", f.Cached}} {
		w.Set(0, modelled, Zeros)
		if err := os.WriteFile(filepath.Join(f.root, w.name), nil, 0o644); err != nil {
			t.M.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(f.root, w.name), modelled); err != nil {
			t.M.Fatal(err)
		}
	}
	f.Diary = newDiary(f.root, rng)
	return f
}

// Start lets everybody begin: threads that write, read, zero and punch holes, one who keeps a
// diary, fio with checksums, and fstrim.
func (f *Files) Start() *Users {
	f.m.Helper()
	u := f.m.NewUsers()
	u.rest = f.Rest
	parts := Load{Threads: 2, Block: Sector, Kinds: Everything, Rest: f.Rest}
	u.Waits = append(u.Waits, f.Direct.Start(f.m, f.rng, filepath.Join(f.root, "direct"), parts, u.Quit))
	parts.Cached = true
	u.Waits = append(u.Waits, f.Cached.Start(f.m, f.rng, filepath.Join(f.root, "cached"), parts, u.Quit))
	u.KeepOn("diary", f.Diary.step)
	round := 0
	u.KeepOn("fio", func() error {
		round++
		return f.fio(round)
	})
	return u
}

// fioLimit is for a few MiB, and for fstrim, over deaths and recoveries: on a slow machine the
// clone is served a tenth of the time.
const fioLimit = time.Hour

// fio writes a file and verifies it, then what is free is trimmed.
func (f *Files) fio(round int) error {
	path := filepath.Join(f.root, "fio")
	o := f.m.TryFor(fioLimit, "fio", "--name=verify", "--filename="+path, "--direct=1", "--ioengine=libaio", "--iodepth=8",
		"--rw=randwrite", "--bsrange=512-64k", "--verify=crc32c", "--verify_fatal=1", "--randseed="+strconv.Itoa(round), "--size=2m", "--thread")
	if o.Code == 0 {
		o = f.m.TryFor(fioLimit, "fstrim", f.root)
	}
	if o.Code != 0 {
		return fmt.Errorf("exit status %d after %v: %s%s", o.Code, o.Took, o.Stdout, o.Stderr)
	}
	if round%2 == 0 {
		return os.Remove(path)
	}
	return nil
}

// Check reads all of it from the device and compares. Nobody writes.
func (f *Files) Check() {
	f.m.Helper()
	f.m.DropCaches()
	f.Direct.Check(f.m, filepath.Join(f.root, "direct"))
	f.Cached.Check(f.m, filepath.Join(f.root, "cached"))
	if err := f.Diary.check(); err != nil {
		f.m.Error(err)
	}
}

// Moved says where the file system is mounted now.
func (f *Files) Moved(root string) {
	f.root = filepath.Join(root, OthersDir)
	f.Diary.dir = filepath.Join(f.root, "diary")
}

// Longest is how long one of them waited at most for something to be done.
func (f *Files) Longest() time.Duration {
	return max(time.Duration(f.Diary.slowest.Load()), f.Direct.Longest(), f.Cached.Longest())
}

// Diary is somebody who makes, overwrites, renames and removes small files, some with fsync, and
// keeps a log of what was acknowledged.
type Diary struct {
	dir    string
	rng    *rand.Rand
	log    map[string]entry // by name
	last   Version
	Synced chan struct{} // an fsync was acknowledged just now
	buf    []byte

	slowest atomic.Int64 // of its steps, nanoseconds
}

// entry is what a file holds: that many bytes of one version.
type entry struct {
	size    int
	version Version
}

const (
	diaryFiles = 40
	diaryBytes = 64 << 10 // of a file, at most
)

func newDiary(root string, rng *rand.Rand) *Diary {
	return &Diary{dir: filepath.Join(root, "diary"), rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), log: map[string]entry{}, last: Original,
		Synced: make(chan struct{}), buf: make([]byte, diaryBytes)}
}

func (d *Diary) path(name string) string { return filepath.Join(d.dir, name) }

// step does one thing to one file.
func (d *Diary) step() error {
	begin := time.Now()
	err := d.doOne()
	d.slowest.Store(max(d.slowest.Load(), int64(time.Since(begin))))
	return err
}

func (d *Diary) doOne() error {
	name := fmt.Sprint("f", d.rng.IntN(diaryFiles))
	_, there := d.log[name]
	switch pick := d.rng.IntN(8); {
	case there && pick == 0:
		delete(d.log, name)
		return os.Remove(d.path(name))
	case there && pick == 1:
		return d.rename(name, fmt.Sprint("f", d.rng.IntN(diaryFiles)))
	case there && pick < 4:
		return d.read(name)
	case there && pick == 4:
		return d.write(name, os.O_TRUNC) // in place
	}
	if err := d.write("new", os.O_CREATE|os.O_TRUNC); err != nil {
		return err
	}
	return d.rename("new", name)
}

func (d *Diary) rename(from, to string) error {
	if from == to {
		return nil
	}
	if err := os.Rename(d.path(from), d.path(to)); err != nil {
		return err
	}
	d.log[to] = d.log[from]
	delete(d.log, from)
	return nil
}

// write gives a file new content, every other time with fsync.
func (d *Diary) write(name string, flags int) (err error) {
	d.last++
	now := entry{size: Sector * (1 + d.rng.IntN(diaryBytes/Sector)), version: d.last}
	Fill(d.buf[:now.size], 0, now.version)
	f, err := os.OpenFile(d.path(name), os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(d.buf[:now.size]); err != nil {
		return err
	}
	d.log[name] = now
	if d.rng.IntN(2) == 0 {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	select {
	case d.Synced <- struct{}{}:
	default:
	}
	return nil
}

// read compares a file, read from the device where its pages are clean.
func (d *Diary) read(name string) error {
	f, err := os.Open(d.path(name))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	b, err := os.ReadFile(d.path(name))
	if err != nil {
		return err
	}
	want := d.log[name]
	if len(b) != want.size {
		return fmt.Errorf("file %s has %d bytes, %d were written", name, len(b), want.size)
	}
	for i := 0; i < len(b); i += Sector {
		if s := b[i : i+Sector]; !Holds(s, int64(i/Sector), want.version) {
			return fmt.Errorf("file %s, sector %d: expected %v, found %s", name, i/Sector, want.version, Describe(s))
		}
	}
	return nil
}

// check compares all files; there are no more.
func (d *Diary) check() error {
	names := slices.Sorted(maps.Keys(d.log))
	for _, name := range names {
		if err := d.read(name); err != nil {
			return err
		}
	}
	found, err := os.ReadDir(d.dir)
	if err == nil && len(found) != len(names) {
		err = fmt.Errorf("%d files, %d were made", len(found), len(names))
	}
	return err
}
