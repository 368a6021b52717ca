//go:build device

package devicetest

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

// users are what uses a clone in the background, until they are stopped. An error of theirs is the test's.
type users struct {
	m     *machine
	quit  chan struct{}
	group sync.WaitGroup
	waits []func()
	steps atomic.Int64
	rest  time.Duration // of each after a step
}

func (m *machine) newUsers() *users { return &users{m: m, quit: make(chan struct{})} }

// keepOn does a step again and again until stop.
func (u *users) keepOn(who string, step func() error) {
	u.group.Go(func() {
		for {
			select {
			case <-u.quit:
				return
			default:
			}
			if err := step(); err != nil {
				u.m.Errorf("%s: %v", who, err)
				return
			}
			u.steps.Add(1)
			time.Sleep(u.rest)
		}
	})
}

// stop ends them.
func (u *users) stop() {
	u.m.Helper()
	close(u.quit)
	u.group.Wait()
	for _, wait := range u.waits {
		wait()
	}
}

// files are the files of all kinds of users on one file system, in othersFolder.
type files struct {
	m              *machine
	root           string
	direct, cached *model // of two files, past the page cache and through it
	diary          *diary
	rng            *rand.Rand
	rest           time.Duration // of each user after what he has done
}

const modelled = 4 * mib // the size of each of the two files

// newOthers makes them on a mounted file system.
func (t *fileTree) newOthers(rng *rand.Rand) *files {
	t.m.Helper()
	f := &files{m: t.m, root: filepath.Join(t.root, othersFolder), direct: newModel(modelled, sector), cached: newModel(modelled, sector), rng: rng}
	if err := os.MkdirAll(filepath.Join(f.root, "diary"), 0o755); err != nil {
		t.m.Fatal(err)
	}
	for _, w := range []struct {
		name string
		*model
	}{{"direct", f.direct}, {"cached", f.cached}} {
		w.set(0, modelled, zeros)
		if err := os.WriteFile(filepath.Join(f.root, w.name), nil, 0o644); err != nil {
			t.m.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(f.root, w.name), modelled); err != nil {
			t.m.Fatal(err)
		}
	}
	f.diary = newDiary(f.root, rng)
	return f
}

// start lets everybody begin: threads that write, read, zero and punch holes, one who keeps a diary, fio with
// checksums, and fstrim.
func (f *files) start() *users {
	f.m.Helper()
	u := f.m.newUsers()
	u.rest = f.rest
	parts := load{threads: 2, block: sector, kinds: everything, rest: f.rest}
	u.waits = append(u.waits, f.direct.start(f.m, f.rng, filepath.Join(f.root, "direct"), parts, u.quit))
	parts.cached = true
	u.waits = append(u.waits, f.cached.start(f.m, f.rng, filepath.Join(f.root, "cached"), parts, u.quit))
	u.keepOn("diary", f.diary.step)
	round := 0
	u.keepOn("fio", func() error {
		round++
		return f.fio(round)
	})
	return u
}

// fioLimit is for a few MiB, and for fstrim, over deaths and recoveries: on a slow machine the clone is served a tenth of the time.
const fioLimit = time.Hour

// fio writes a file and verifies it, then what is free is trimmed.
func (f *files) fio(round int) error {
	path := filepath.Join(f.root, "fio")
	o := f.m.tryFor(fioLimit, "fio", "--name=verify", "--filename="+path, "--direct=1", "--ioengine=libaio", "--iodepth=8",
		"--rw=randwrite", "--bsrange=512-64k", "--verify=crc32c", "--verify_fatal=1", "--randseed="+strconv.Itoa(round), "--size=2m", "--thread")
	if o.code == 0 {
		o = f.m.tryFor(fioLimit, "fstrim", f.root)
	}
	if o.code != 0 {
		return fmt.Errorf("exit status %d after %v: %s%s", o.code, o.took, o.stdout, o.stderr)
	}
	if round%2 == 0 {
		return os.Remove(path)
	}
	return nil
}

// check reads all of it from the device and compares. Nobody writes.
func (f *files) check() {
	f.m.Helper()
	f.m.dropCaches()
	f.direct.check(f.m, filepath.Join(f.root, "direct"))
	f.cached.check(f.m, filepath.Join(f.root, "cached"))
	if err := f.diary.check(); err != nil {
		f.m.Error(err)
	}
}

// moved says where the file system is mounted now.
func (f *files) moved(root string) {
	f.root = filepath.Join(root, othersFolder)
	f.diary.dir = filepath.Join(f.root, "diary")
}

// longest is how long one of them waited at most for something to be done.
func (f *files) longest() time.Duration {
	return max(time.Duration(f.diary.slowest.Load()), f.direct.longest(), f.cached.longest())
}

// diary is somebody who makes, overwrites, renames and removes small files, some with fsync, and keeps a log of
// what was acknowledged.
type diary struct {
	dir    string
	rng    *rand.Rand
	log    map[string]entry // by name
	last   version
	synced chan struct{} // an fsync was acknowledged just now
	buf    []byte

	slowest atomic.Int64 // of its steps, nanoseconds
}

// entry is what a file holds: that many bytes of one version.
type entry struct {
	size    int
	version version
}

const (
	diaryFiles = 40
	diaryBytes = 64 << 10 // of a file, at most
)

func newDiary(root string, rng *rand.Rand) *diary {
	return &diary{dir: filepath.Join(root, "diary"), rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), log: map[string]entry{}, last: original,
		synced: make(chan struct{}), buf: make([]byte, diaryBytes)}
}

func (d *diary) path(name string) string { return filepath.Join(d.dir, name) }

// step does one thing to one file.
func (d *diary) step() error {
	begin := time.Now()
	err := d.doOne()
	d.slowest.Store(max(d.slowest.Load(), int64(time.Since(begin))))
	return err
}

func (d *diary) doOne() error {
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

func (d *diary) rename(from, to string) error {
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
func (d *diary) write(name string, flags int) (err error) {
	d.last++
	now := entry{size: sector * (1 + d.rng.IntN(diaryBytes/sector)), version: d.last}
	fill(d.buf[:now.size], 0, now.version)
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
	case d.synced <- struct{}{}:
	default:
	}
	return nil
}

// read compares a file, read from the device where its pages are clean.
func (d *diary) read(name string) error {
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
	for i := 0; i < len(b); i += sector {
		if s := b[i : i+sector]; !holds(s, int64(i/sector), want.version) {
			return fmt.Errorf("file %s, sector %d: expected %v, found %s", name, i/sector, want.version, describe(s))
		}
	}
	return nil
}

// check compares all files; there are no more.
func (d *diary) check() error {
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
